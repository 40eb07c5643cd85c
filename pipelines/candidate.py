"""What a training needs to know of the network that it trains: ours, or a rival to compare with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from pipelines.config import NetworkRecipe, TrainRecipe
from pipelines.errors import RequestError
from pipelines.fetch import cache_folder
from pipelines.pretrained import load_imagenet
from pipelines.rival import Rival, save_rival
from veca_core import Segmenter, VecaConfig, build, load_model, preset, save_model
from veca_core.card import Architecture, Bands, Card, Score


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

    @abstractmethod
    def start(self) -> None:
        """Loads the weights that training starts from."""

    @abstractmethod
    def save(self, folder: Path, network: nn.Module, score: Score) -> None:
        """Writes a trained copy of the network with what it scored."""


def candidate(recipe: TrainRecipe, bands: Bands, held: str) -> Candidate:
    """What a recipe says is to be trained, with random weights; `held` says which scenes are held back."""
    return RivalCandidate(recipe, bands) if recipe.network.rival else VecaCandidate(recipe, bands, held)


class VecaCandidate(Candidate):
    """A VECA segmenter."""

    def __init__(self, recipe: TrainRecipe, bands: Bands, held: str) -> None:
        config = network_config(recipe.network, len(bands.names))
        self.recipe = recipe
        self.card = new_card(recipe, bands, config, held)
        self.network = build(self.card.architecture, bands, len(recipe.classes))
        self.budgets, self.draw_weights, self.multiple = config.budgets, config.draw_weights, config.patch
        self.slow = "encoder.stem.body." if recipe.network.pretrained is not None else ""

    def start(self) -> None:
        load_start(cast(Segmenter, self.network), self.recipe.network)

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
        self.slow = "body.encoder." if recipe.network.pretrained is not None else ""

    def start(self) -> None:
        if self.recipe.network.pretrained == "imagenet":
            load_imagenet(self.rival.body.encoder, self.rival.encoder_name, cache_folder())

    def save(self, folder: Path, network: nn.Module, score: Score) -> None:
        assert isinstance(network, Rival)
        save_rival(folder, network, self.recipe, self.bands, score)


def network_config(network: NetworkRecipe, bands: int) -> VecaConfig:
    """The encoder's sizes for a recipe and a number of bands; raises RequestError for a field that does not exist."""
    try:
        return preset(network.preset, **{**network.overrides, "in_channels": bands})
    except TypeError as error:
        raise RequestError(f"network.overrides: {error}") from error


def load_start(network: Segmenter, recipe: NetworkRecipe) -> None:
    """The weights that training starts from; raises RequestError where they are for another network."""
    if recipe.pretrained == "imagenet":
        load_imagenet(getattr(network.encoder.stem, "body", None), recipe.stem, cache_folder())
    elif recipe.pretrained is not None:
        start = load_model(recipe.pretrained).network
        try:
            network.encoder.load_state_dict(start.encoder.state_dict())
        except RuntimeError as error:
            raise RequestError(
                f"the weights of {recipe.pretrained} do not fit this network; give the recipe its preset, stem, "
                "overrides and bands, or leave 'pretrained' out"
            ) from error
        if start.classes == network.classes:
            network.head.load_state_dict(start.head.state_dict())


def new_card(recipe: TrainRecipe, bands: Bands, config: VecaConfig, held: str = "") -> Card:
    """The card of a model that is not trained yet."""
    network = recipe.network
    fields = {name: getattr(config, name) for name in VecaConfig.__dataclass_fields__}
    started = {"imagenet": f"; stem {network.stem} started from ImageNet weights"}
    return Card(
        name=recipe.name,
        summary=recipe.summary,
        architecture=Architecture(encoder=fields, stem=network.stem, deep=network.deep, head=network.head),
        classes=recipe.classes,
        bands=bands,
        kind=recipe.kind,
        spacing=recipe.spacing,
        window=recipe.window,
        validation=held,
        data=recipe.source + started.get(str(network.pretrained), ""),
        licence=recipe.licence,
        recipe=recipe.recipe,
        limits=recipe.limits,
    )
