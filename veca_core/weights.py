"""Everything that reads or writes weights. No code is unpickled: safetensors, or torch files of plain tensors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from veca_core.card import Card, EncoderCard, first_problem, parse_card
from veca_core.config import VecaConfig
from veca_core.encoder import VecaEncoder
from veca_core.errors import ModelError
from veca_core.model import Segmenter, build, build_encoder

WEIGHTS: Final = "model.safetensors"
CARD: Final = "model.json"
ENCODER_WEIGHTS: Final = "encoder.safetensors"
ENCODER_CARD: Final = "encoder.json"
ZOO: Final = Path(__file__).parent / "zoo"
"""The models that come with the package, a folder each."""


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model as it was loaded: the network in evaluation mode, its card, and what identifies it."""

    network: Segmenter
    card: Card
    folder: Path
    digest: str
    """sha256 of weights and card together."""


def shipped_models() -> list[Path]:
    """Folders of the models that come with the package."""
    return sorted(card.parent for card in ZOO.glob(f"*/{CARD}"))


def find_model(name: str | Path) -> Path:
    """The folder of a model, given the name of a shipped one or a folder; raises ModelError where there is none."""
    for folder in (Path(name), ZOO / str(name)):
        if (folder / CARD).is_file():
            return folder
    known = ", ".join(folder.name for folder in shipped_models())
    raise ModelError(f"there is no model {str(name)!r}: give a folder with {CARD} and {WEIGHTS}, or one of {known}")


def load_card(name: str | Path) -> Card:
    """The card of a model, without its weights."""
    folder = find_model(name)
    return parse_card((folder / CARD).read_bytes(), str(folder / CARD))


def load_model(name: str | Path, device: str | torch.device = "cpu") -> Model:
    """A model by the name of a shipped one or by its folder, ready to run; raises ModelError where it does not fit."""
    folder = find_model(name)
    card = load_card(folder)
    network = build(card.architecture, card.bands, len(card.classes))
    load_network(network, folder / WEIGHTS)
    network.card = card
    # Convolutions read and write pixels with all their channels together: on a CPU that halves their time and takes
    # less memory, as oneDNN then copies nothing.
    network.to(memory_format=torch.channels_last)
    return Model(network.eval().to(device), card, folder, model_digest(folder))


def model_digest(folder: Path) -> str:
    """sha256 of a model's weights and card: two models with the same digest say the same."""
    digest = hashlib.sha256()
    for name in (WEIGHTS, CARD):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def load_network(network: torch.nn.Module, path: Path) -> None:
    """Fills a network from a safetensors file, whatever float type it is stored in."""
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: a model is a folder with {CARD} and {WEIGHTS}") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    _fill(network, state, str(path))


def save_model(folder: Path, network: Segmenter, card: Card, dtype: torch.dtype = torch.float32) -> None:
    """Writes model.safetensors and model.json into `folder`, floating weights as `dtype`, each by a rename.

    A tensor with numbers that are too large for `dtype` keeps its own.
    """
    _save_state(folder / WEIGHTS, network, dtype)
    write_card(folder, card)


def save_encoder(folder: Path, encoder: VecaEncoder, card: EncoderCard, dtype: torch.dtype = torch.float32) -> None:
    """Writes encoder.safetensors and encoder.json into `folder`, as `save_model` does."""
    _save_state(folder / ENCODER_WEIGHTS, encoder, dtype)
    _write_json(folder / ENCODER_CARD, card)


def load_encoder(folder: Path) -> tuple[VecaEncoder, EncoderCard]:
    """An encoder that was saved without a head, in evaluation mode; raises ModelError where it does not fit."""
    try:
        card = EncoderCard.model_validate_json((folder / ENCODER_CARD).read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{folder} holds no encoder: expected {ENCODER_CARD} and {ENCODER_WEIGHTS}") from error
    except ValidationError as error:
        raise ModelError(f"{folder / ENCODER_CARD}: {first_problem(error)}") from error
    encoder = build_encoder(card.architecture)
    load_network(encoder, folder / ENCODER_WEIGHTS)
    return encoder.eval(), card


def _save_state(path: Path, network: torch.nn.Module, dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: _stored(value, dtype).contiguous().cpu() for name, value in network.state_dict().items()}
    write_tensors(path, state)


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats as `dtype`, where it holds all of them: statistics of raw pixels may be beyond float16's 65504."""
    smaller = value.to(dtype) if value.is_floating_point() else value
    return value if bool((smaller.isinf() & ~value.isinf()).any()) else smaller


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, by a rename; OSError where it cannot be written."""
    partial = path.with_name(f".{path.name}")
    try:
        save_file(tensors, partial)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        # What the system said is in the text alone.
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    partial.chmod(0o644)  # safetensors makes files that only their owner may read
    partial.replace(path)


def write_card(folder: Path, card: Card) -> None:
    """Writes model.json by a rename."""
    _write_json(folder / CARD, card)


def _write_json(path: Path, content: BaseModel) -> None:
    text = json.dumps(content.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    path.with_name(f".{path.name}").write_text(text, encoding="utf-8")
    path.with_name(f".{path.name}").replace(path)


def load_official_encoder(path: str | Path) -> VecaEncoder:
    """The encoder of a published VECA checkpoint, in evaluation mode.

    Reads `{"student": state, "config": {...}}` as torch.save wrote it, tensors and plain values only. Raises
    ModelError for a file that is something else, or whose weights do not fit its config.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about how a file was pickled, which nobody can change
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}") from error
    except Exception as error:  # what torch's decoder raises depends on the bytes
        # Its own words for an UnpicklingError tell how to run the code that it refused.
        why = "" if isinstance(error, pickle.UnpicklingError) else f" ({_first_line(error)})"
        raise ModelError(
            f"{path} is no torch checkpoint of tensors and plain values, or is damaged{why}; nothing in it was run"
        ) from error
    if not (isinstance(checkpoint, dict) and {"student", "config"} <= checkpoint.keys()):
        raise ModelError(f"{path} is no VECA checkpoint: expected a dict with 'student' and 'config'")
    try:
        encoder = VecaEncoder(_official_config(checkpoint["config"]))
        state = _from_official(checkpoint["student"])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelError(f"{path}: its config or weights are not those of a VECA checkpoint ({why})") from error
    _fill(encoder, state, str(path))
    return encoder.eval()


def _official_config(config: Mapping[str, Any]) -> VecaConfig:
    """Published names of the sizes -> VecaConfig; raises KeyError for a size that is missing."""
    return VecaConfig(
        dim=config["hidden_dim"],
        layers=config["num_layers"],
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        patch=config.get("patch_size", 16),
        in_channels=config.get("in_channels", 3),
        cores=config["num_query_tokens"],
        core_chunk=config.get("nested_chunk_size") or config["matryoshka_chunk_size"],
        budget_weights=tuple(config.get("nested_budget_weights") or (1, 1, 2, 2, 3, 3, 4, 4)),
        patch_norm=config.get("patch_embed_use_ln", False),
        output_dim=config.get("distill_output_dim"),
        rope_off=config.get("rope_p_zero_freqs", 0.125),
        rope_off_from=config.get("rope_zero_freqs_from", "low"),
    )


OFFICIAL_NAMES: Final = (
    (r"^(?:module\.|student\.)+", ""),
    (r"^patch_embed\.", "stem."),
    (r"\.norm_attn\.", ".norm_attention."),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.norm_ffn\.", ".norm_mlp."),
    (r"\.fc([12])\.", r".mlp.fc\1."),
    (r"^final_norm\.", "norm."),
    (r"^output_proj\.", "output."),
    (r"^pos_linears\.", "moves."),
    (r"^pos_alpha$", "move_rates"),
)
"""Published parameter names -> ours, by regular expression, in turn."""


def _from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames, joins q, k and v into one matrix, and joins the chunks of the core bank in their order."""
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in OFFICIAL_NAMES:
            key = re.sub(pattern, replacement, key)
        named[key] = value
    ours = {key: value for key, value in named.items() if not re.search(r"_chunks\.|\.attn\.", key)}
    for q in [key for key in named if ".attn.q_proj." in key]:
        parts = [named[q.replace("q_proj", f"{name}_proj")] for name in "qkv"]
        ours[q.replace(".attn.q_proj.", ".attention.qkv.")] = torch.cat(parts)
    for theirs, name in (("query_token_chunks", "bank.tokens"), ("qcoord_chunks", "bank.coordinates")):
        chunks = sorted((key for key in named if key.startswith(theirs)), key=lambda key: int(key.split(".")[1]))
        ours[name] = torch.cat([named[key][0] for key in chunks]) if chunks else torch.empty(0)
    return ours


def _fill(network: torch.nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Loads `state`, all of it and nothing else; raises ModelError saying what is missing or of other shape."""
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        problems = " ".join(line.strip() for line in str(error).splitlines()[1:])
        shown = problems if len(problems) <= 200 else f"{problems[:200]} ..."
        raise ModelError(f"{origin}: the weights do not fit their sizes: {shown}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
