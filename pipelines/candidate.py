"""What a training needs to know of the network that it trains: ours, or a rival to compare with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from pipelines.bands import other_order
from pipelines.config import NetworkRecipe, TrainRecipe
from pipelines.errors import RequestError
from pipelines.fetch import cache_folder
from pipelines.pretrained import IMAGENET_BANDS, load_imagenet
from pipelines.rival import Rival, save_rival
from veca_core import (
    Segmenter,
    VecaConfig,
    VecaEncoder,
    build,
    load_card,
    load_model,
    load_official_encoder,
    preset,
    save_model,
)
from veca_core.card import Architecture, Bands, Card, ClassInfo, EncoderCard, Score
from veca_core.weights import CARD, ENCODER_CARD, load_encoder

UNSEEN: Final = ("heads", "rope_off", "rope_off_from")
"""Settings of an encoder that no weight's shape tells."""


class Candidate(ABC):
    """A network in training. It is called as (pixels, cores) -> logits, like a Segmenter."""

    network: nn.Module
    budgets: Sequence[int]
    """Every number of cores it can run with, the last one its full budget."""
    draw_weights: Sequence[int]
    """How often training draws each of them."""
    multiple: int
    """Sides of windows are multiples of this."""
    slow: str
    """What the names of pretrained parameters start with, which learn at their own rate; empty: none are."""
    idle: bool = False
    """Whether some parameters have no part in the result."""
    frozen: nn.Module | None = None
    """A part that stays as it is, its running statistics too."""

    @abstractmethod
    def start(self) -> tuple[str, ...]:
        """Loads the weights that training starts from; what the names of those that it is in start with."""

    @abstractmethod
    def save(self, folder: Path, network: nn.Module, score: Score) -> None:
        """Writes a trained copy of the network with what it scored."""


def candidate(recipe: TrainRecipe, bands: Bands, held: str) -> Candidate:
    """What a recipe says is to be trained, with random weights; `held` says which scenes are held back."""
    return RivalCandidate(recipe, bands) if recipe.network.rival else VecaCandidate(recipe, bands, held)


class VecaCandidate(Candidate):
    """A VECA segmenter."""

    def __init__(self, recipe: TrainRecipe, bands: Bands, held: str) -> None:
        self.recipe = recipe
        start = start_bands(recipe.network)
        if start and other_order(start.names, bands.names):
            raise RequestError(
                f"{recipe.network.pretrained} reads its bands in the order {', '.join(start.names)}, and the recipe "
                f"has {', '.join(bands.names)}; give the recipe that order, or leave its bands out"
            )
        described = architecture(recipe.network, len(bands.names))
        self.card = new_card(recipe, bands, described, held)
        network = build(described, bands, len(recipe.classes))
        self.network = network
        config = described.config
        self.budgets, self.draw_weights, self.multiple = config.budgets, config.draw_weights, config.patch
        self.slow = "encoder.stem.body." if recipe.network.pretrained is not None else ""
        self.idle = config.layers < 2  # one block moves no core, and no block looks at any
        if recipe.schedule.freeze:
            network.encoder.requires_grad_(False)
            self.frozen = network.encoder

    def start(self) -> tuple[str, ...]:
        return load_start(cast(Segmenter, self.network), self.recipe.network, self.recipe.classes)

    def save(self, folder: Path, network: nn.Module, score: Score) -> None:
        card = self.card.model_copy(update={"scores": (score,)})
        save_model(folder, cast(Segmenter, network), card, getattr(torch, self.recipe.store))


class RivalCandidate(Candidate):
    """A network of segmentation-models-pytorch, trained by the same recipe: it has no cores to choose from."""

    def __init__(self, recipe: TrainRecipe, bands: Bands) -> None:
        assert recipe.network.rival is not None
        self.recipe, self.bands = recipe, bands
        self.rival = Rival(recipe.network.rival, bands, len(recipe.classes))
        self.network = self.rival
        self.budgets, self.draw_weights, self.multiple = (0,), (1,), Rival.multiple
        self.idle = True  # some, like PSPNet, keep stages that nothing asks for
        self.slow = "body.encoder." if recipe.network.pretrained is not None else ""

    def start(self) -> tuple[str, ...]:
        if self.recipe.network.pretrained != "imagenet":
            return ()
        load_imagenet(self.rival.body.encoder, self.rival.encoder_name, cache_folder())
        return (self.slow,)

    def save(self, folder: Path, network: nn.Module, score: Score) -> None:
        assert isinstance(network, Rival)
        save_rival(folder, network, self.recipe, self.bands, score)


def architecture(network: NetworkRecipe, bands: int) -> Architecture:
    """What a recipe's network is made of; where it starts from an encoder, that says the encoder's part."""
    if network.pretrained in (None, "imagenet") or not _is_encoder(Path(str(network.pretrained))):
        config = network_config(network, bands)
        return Architecture(encoder=_fields(config), stem=network.stem, deep=network.deep, head=network.head)
    encoder, stem, deep = _encoder(Path(str(network.pretrained)))
    if encoder.config.in_channels != bands:
        raise RequestError(
            f"{network.pretrained} reads {encoder.config.in_channels} bands, and the images have {bands}"
        )
    config = replace(encoder.config, output_dim=None)
    return Architecture(encoder=_fields(config), stem=stem, deep=deep, head=network.head)


def network_config(network: NetworkRecipe, bands: int) -> VecaConfig:
    """The encoder's sizes for a recipe and a number of bands; raises RequestError for a field that does not exist."""
    try:
        return preset(network.preset, **{**network.overrides, "in_channels": bands})
    except TypeError as error:
        raise RequestError(f"network.overrides: {error}") from error


def start_bands(network: NetworkRecipe) -> Bands | None:
    """The bands of the model or encoder that training goes on from, and the scale that its weights expect."""
    place = network.pretrained
    if not isinstance(place, Path):
        return None
    if _is_encoder(place):
        if (place / ENCODER_CARD).is_file():
            return load_encoder(place)[1].bands
        return IMAGENET_BANDS if load_official_encoder(place).config.in_channels == 3 else None
    return load_card(place).bands


def load_start(network: Segmenter, recipe: NetworkRecipe, classes: Sequence[ClassInfo]) -> tuple[str, ...]:
    """The weights that training starts from; raises RequestError where they are for another network.

    A model's head counts only where it is the same head for as many classes; where they have the same names in another
    order, each has its own weights. Returns what the names of loaded weights start with.
    """
    if recipe.pretrained is None:
        return ()
    if recipe.pretrained == "imagenet":
        load_imagenet(getattr(network.encoder.stem, "body", None), recipe.stem, cache_folder())
        return ("encoder.stem.body.",)
    if _is_encoder(recipe.pretrained):
        state = _encoder(recipe.pretrained)[0].state_dict()
        # The projection to a teacher's width has no use here.
        network.encoder.load_state_dict({k: v for k, v in state.items() if not k.startswith("output.")})
        return ("encoder.",)
    model = load_model(recipe.pretrained)
    start = model.network
    other = RequestError(
        f"the weights of {recipe.pretrained} do not fit this network; give the recipe its preset, stem, "
        "overrides and bands, or leave 'pretrained' out"
    )
    configs = start.encoder.config, network.encoder.config
    same = all(getattr(configs[0], name) == getattr(configs[1], name) for name in UNSEEN)
    if not same or model.card.architecture.stem != recipe.stem:
        raise other
    try:
        network.encoder.load_state_dict(start.encoder.state_dict())
    except RuntimeError as error:
        raise other from error
    if _shapes(start.head) != _shapes(network.head):
        return ("encoder.",)
    head = start.head.state_dict()
    theirs, ours = [c.name for c in model.card.classes], [c.name for c in classes]
    if sorted(theirs) == sorted(ours):
        order = [theirs.index(name) for name in ours]
        head |= {name: value[order] for name, value in head.items() if name.startswith("classify.")}
    network.head.load_state_dict(head)
    return "encoder.", "head."


def _shapes(part: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in part.state_dict().items()}


def _is_encoder(path: Path) -> bool:
    """A published checkpoint, or a folder that `veca distill` left; a trained model is neither."""
    return path.suffix in (".pt", ".pth") or (path / ENCODER_CARD).is_file()


def _encoder(path: Path) -> tuple[VecaEncoder, str, bool]:
    """An encoder without a head, its stem's name and whether that is deep."""
    if path.suffix in (".pt", ".pth"):
        return load_official_encoder(path), "patch", False
    encoder, card = load_encoder(path)
    return encoder, card.architecture.stem, card.architecture.deep


def _fields(config: VecaConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in VecaConfig.__dataclass_fields__}


def _started_from(place: Path) -> str:
    """What a start is called, and where it came from itself."""
    if (place / CARD).is_file():
        model = load_card(place)
        name, data = f"the model {model.name}", model.data
    elif (place / ENCODER_CARD).is_file():
        encoder = EncoderCard.model_validate_json((place / ENCODER_CARD).read_bytes())
        taught = f", distilled from {encoder.teacher}" if encoder.teacher else ""
        name, data = f"the encoder {encoder.name}{taught}", encoder.data
    else:
        name, data = place.name, ""
    return f"; started from {name}{f' ({data})' if data else ''}"


def new_card(recipe: TrainRecipe, bands: Bands, described: Architecture, held: str = "") -> Card:
    """The card of a model that is not trained yet."""
    network = recipe.network
    started = _started_from(network.pretrained) if isinstance(network.pretrained, Path) else ""
    if network.pretrained == "imagenet":
        started = f"; stem {network.stem} started from ImageNet weights"
    return Card(
        name=recipe.name,
        summary=recipe.summary,
        architecture=described,
        classes=recipe.classes,
        bands=bands,
        kind=recipe.kind,
        spacing=recipe.spacing,
        window=recipe.window,
        validation=held,
        data=recipe.source + started,
        licence=recipe.licence,
        recipe=recipe.recipe,
        limits=recipe.limits,
    )
