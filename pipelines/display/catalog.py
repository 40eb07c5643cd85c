"""What lies in the folders that a viewer may show: images, results and drawn regions, each under an opaque name."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pipelines.bundle import LABELS, RUN, image_fingerprint
from pipelines.errors import USER_ERRORS
from pipelines.images import is_image_name
from pipelines.live.board import CONFIDENCE
from pipelines.live.corrections import RECORD as CORRECTIONS
from pipelines.live.corrections import STROKES, CorrectionsRecord
from pipelines.live.record import RECORD, LiveRecord
from pipelines.view import Result, list_results

FRESH: Final = 2.0
"""Seconds for which a look at the folders is taken as it was."""


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image that may be shown."""

    id: str
    name: str
    """Its place in the folder that it was found in."""
    path: Path
    """Resolved."""
    alone: bool = False
    """Whether it stands for a mask whose image is not here: `path` is then the label image's."""


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """A mask that can be laid over an image: a finished result, a region segmented in the viewer, or one corrected."""

    id: str
    name: str
    image: str | None
    """Of the image that it lies on."""
    image_path: str
    folder: Path
    kind: Literal["result", "region", "corrected"]
    model: str
    cores: int
    alone: bool = False
    """Whether its image is not in the folders, or has changed since: `image` then stands for the mask alone."""
    mask: Path | None = None
    """Of corrections, the folder of the mask that they correct."""

    @property
    def labels(self) -> Path:
        return (self.mask or self.folder) / LABELS

    @property
    def written(self) -> bool:
        """Whether its files tell what it is now: those of corrections may be older than the last stroke."""
        if self.mask is None:
            return True
        areas, strokes = self.folder / "areas.csv", self.folder / STROKES
        return areas.is_file() and strokes.is_file() and areas.stat().st_mtime_ns >= strokes.stat().st_mtime_ns

    @property
    def confidence(self) -> Path | None:
        """The file with the probabilities of its classes, where it has one."""
        path = self.folder / CONFIDENCE
        return path if path.is_file() else None


@dataclass(frozen=True, slots=True)
class Contents:
    """All that was found at one time."""

    images: dict[str, ImageEntry]
    layers: dict[str, LayerEntry]
    damaged: tuple[Result, ...]
    """Results that cannot be shown, with the reason."""

    def layers_of(self, image: str) -> list[LayerEntry]:
        """The masks of an image: finished results, then regions, by name."""
        return [layer for layer in self.layers.values() if layer.image == image]


class Catalog:
    """The folders that may be shown. Only what is found in them has a name, so nothing else can be asked for."""

    def __init__(self, roots: Sequence[Path], key: bytes) -> None:
        self.roots = tuple(dict.fromkeys(root.resolve() for root in roots))
        self._key = key
        self._lock = threading.Lock()
        self._seen = Contents({}, {}, ())
        self._at = -FRESH

    def look(self, fresh: float = FRESH) -> Contents:
        """What is there now, or was at most `fresh` seconds ago."""
        with self._lock:
            if time.monotonic() - self._at > fresh:
                self._seen = self._scan()
                self._at = time.monotonic()
            return self._seen

    def image(self, name: str) -> ImageEntry | None:
        """The image of an opaque name; None where there is none, or it has gone."""
        return self._seen.images.get(name) or self.look().images.get(name)

    def layer(self, name: str) -> LayerEntry | None:
        """The mask of an opaque name; None where there is none."""
        return self._seen.layers.get(name) or self.look().layers.get(name)

    def name(self, kind: str, path: Path) -> str:
        """The opaque name of a path: the same after a restart, and not to be guessed without the key."""
        digest = hmac.new(self._key, f"{kind}\0{path}".encode(errors="backslashreplace"), hashlib.sha256)
        return digest.hexdigest()[:32]

    def holds(self, path: Path) -> bool:
        """Whether a path, links followed, lies in one of the folders."""
        return any(path.resolve().is_relative_to(root) for root in self.roots)

    def _scan(self) -> Contents:
        images: dict[str, ImageEntry] = {}
        layers: dict[str, LayerEntry] = {}
        damaged: list[Result] = []
        corrections: list[tuple[Path, Path, CorrectionsRecord]] = []
        for root in self.roots:
            for path in _find_images(root):
                place = path.resolve()
                if self.holds(place):
                    entry = ImageEntry(self.name("image", place), path.relative_to(root).as_posix(), place)
                    images.setdefault(entry.id, entry)
        for root in self.roots:
            for result in list_results(root):
                if result.bundle is None:
                    damaged.append(result)
                    continue
                run, folder = result.bundle.run, result.bundle.folder
                image = self._image_of(images, run.image.path, run.image.fingerprint)
                layer = LayerEntry(
                    self.name("layer", folder), result.name, image, run.image.path, folder, "result", run.model.name,
                    run.plan.cores,
                )  # fmt: skip
                layers.setdefault(layer.id, layer)
            for folder, record in self._find_records(root):
                if isinstance(record, CorrectionsRecord):
                    corrections.append((root, folder, record))
                    continue
                image = self._image_of(images, record.image, record.fingerprint)
                layer = LayerEntry(
                    self.name("layer", folder), record.title, image, record.image, folder, "region", record.model,
                    record.cores,
                )  # fmt: skip
                layers.setdefault(layer.id, layer)
        masks = {layer.folder: layer for layer in layers.values()}
        for root, folder, record in corrections:
            base = masks.get(folder.parent / record.mask)
            if base is None:
                reason = f"it corrects {record.mask}, which is not there any more; its strokes are kept"
                damaged.append(Result(folder.relative_to(root).as_posix(), None, reason))
                continue
            name = self.name("layer", folder)
            layers[name] = replace(
                base, id=name, name=f"{base.name}, corrected", folder=folder, kind="corrected", mask=base.folder
            )
        for layer in [layer for layer in layers.values() if layer.image is None]:
            name = self.name("alone", layer.folder)
            images[name] = ImageEntry(name, f"{layer.name} (mask alone)", layer.labels, alone=True)
            layers[layer.id] = replace(layer, image=name, alone=True)
        return Contents(images, layers, tuple(damaged))

    def _image_of(self, images: dict[str, ImageEntry], path: str, fingerprint: str) -> str | None:
        name = self.name("image", Path(path))
        return name if name in images and image_fingerprint(path) == fingerprint else None

    def _find_records(self, root: Path) -> Iterator[tuple[Path, LiveRecord | CorrectionsRecord]]:
        """Regions and corrections below a root, by name; damaged ones are left out."""
        for place, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and ".zarr" not in name)
            here = Path(place)
            for name, beside, read in _RECORDS:
                if name in files and self.holds(here / name) and self.holds(here / beside):
                    try:
                        yield here.resolve(), read(here)
                    except USER_ERRORS:
                        continue


_RECORDS: Final = ((RECORD, LABELS, LiveRecord.read), (CORRECTIONS, STROKES, CorrectionsRecord.read))
"""Files that tell of masks made here, what must lie beside them, and how they are read."""


def _find_images(root: Path) -> Iterator[Path]:
    """By name. Not in hidden folders, results or regions, whose files are masks and previews."""
    for place, folders, files in os.walk(root):
        here = Path(place)
        if RUN in files or RECORD in files or CORRECTIONS in files:
            folders[:] = []
            continue
        zarrs = sorted(name for name in folders if name.lower().endswith(".zarr"))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in zarrs)
        for name in sorted([*files, *zarrs]):
            if is_image_name(here / name) and (name in files or not (here / name).with_suffix(".partial").exists()):
                yield here / name


def read_key(place: Path) -> bytes:
    """The secret that opaque names are made with, made on first use; only its owner may read the file.

    Where none can be kept it lasts as long as the process, and links to views do not outlive that.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = place.read_bytes()
            return key if len(key) == 32 else secrets.token_bytes(32)
        key = secrets.token_bytes(32)
        with os.fdopen(handle, "wb") as file:
            file.write(key)
        return key
    except OSError:
        return secrets.token_bytes(32)
