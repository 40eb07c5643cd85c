"""What a stopped training goes on from, and its log: written by a rename, so that a full disk harms neither."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import RequestError
from pipelines.scenes import Scene
from tiling.lock import Busy, locked
from veca_core.card import Bands


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Makes a run's folder and holds it meanwhile; RequestError while another training does."""
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(out / "training"))
        except Busy as error:
            raise RequestError(f"another training is at work in {out}; wait for it, or give another --out") from error
        yield


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves what `read_checkpoint` gives back; OSError where the system does not let it, and the one before stays."""
    partial = path.with_name(f".{path.name}")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        # torch's writer fails once more while it closes, and hides the system's reason behind that.
        reason = error.__context__
        if isinstance(error, RuntimeError) and isinstance(reason, OSError):
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise
    partial.replace(path)


def read_checkpoint(path: Path, device: torch.device, recipe: str, images: str) -> dict[str, Any]:
    """A checkpoint of this recipe (as JSON) and these `images`, as `images_of` tells them; RequestError where it is
    damaged or belongs to others."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        found = state["recipe"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} cannot be read; remove it to start anew") from error
    if found != recipe:
        raise RequestError(f"{path.parent} holds a run of another recipe; give another --out, or remove that folder")
    if state.get("images", images) != images:
        raise RequestError(
            f"{path.parent} holds a run on other images than there are now, and may have learned from what would be "
            "held back; give another --out, or remove that folder"
        )
    return state


def images_of(bands: Bands, *scenes: Sequence[Scene]) -> str:
    """What tells whether a run has the images that it had: the names in each list of scenes, and the bands."""
    return json.dumps([bands.model_dump(), *(sorted(scene.name for scene in part) for part in scenes)])


def write_row(path: Path, columns: Sequence[str], row: Sequence[Any]) -> None:
    """Adds a line to a log whose first column is the step, in place of any that a stopped run left from there on."""
    rows: list[Sequence[Any]] = [columns]
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows += [line for line in list(csv.reader(file))[1:] if int(line[0]) < int(row[0])]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([*rows, row])
    partial = path.with_name(f".{path.name}")
    partial.write_text(text.getvalue(), encoding="utf-8", newline="")
    partial.replace(path)
