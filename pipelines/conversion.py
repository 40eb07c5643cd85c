"""Exports that are made later, from a finished result alone: no model is needed, and torch is not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.bundle import Bundle, write_run
from pipelines.errors import RequestError
from pipelines.progress import Report, quiet
from tiling.exports import EXPORTS, REGION_EXPORTS, RegionWishes
from tiling.exports.regions import Amount


def convert(
    folder: Path, exports: Sequence[str], wishes: RegionWishes | None = None, *, report: Report = quiet
) -> Bundle:
    """Makes exports of the result in `folder`, replacing those of the same name; returns it with its files recorded.

    Wishes are about regions. Raises RequestError for an export that does not exist, and ImageError for what this result
    cannot give; what was there then stays.
    """
    unknown = [name for name in exports if name not in EXPORTS]
    if unknown:
        raise RequestError(f"there is no export {unknown[0]!r}; the exports are {', '.join(EXPORTS)}")
    if wishes and wishes != RegionWishes() and not set(exports) & set(REGION_EXPORTS):
        raise RequestError(f"the wishes are about regions, but none are asked for; add {' or '.join(REGION_EXPORTS)}")
    bundle = Bundle.open(folder)
    labels, tags = bundle.labels(), bundle.tags
    image = bundle.image() if {"preview", "image"} & set(exports) else None
    if "preview" in exports and image is None:
        report(f"{bundle.run.image.path} is gone or has changed: the preview shows the mask alone")
    run = bundle.run
    for name in dict.fromkeys(exports):
        if name in REGION_EXPORTS:
            made = REGION_EXPORTS[name](labels, folder, image, tags, wishes)
        else:
            made = EXPORTS[name](labels, folder, image, tags)
        report(f"{folder}: {', '.join(path.name for path in made)}")
        partial = [other for other in run.partial if other != name]
        if name in REGION_EXPORTS and wishes and wishes.lossy:
            partial.append(name)
        found = {
            "outputs": tuple(dict.fromkeys([*run.outputs, *(path.name for path in made)])),
            "exports": tuple(dict.fromkeys([*run.exports, name])),
            "partial": tuple(partial),
        }
        run = run.model_copy(update=found)
        write_run(folder, run)
    if image is not None:
        image.source.close()
    return Bundle(folder, run)


def parse_wishes(
    simplify: str | None, min_area: str | None, classes: str | None, objects: str, origin: str
) -> RegionWishes:
    """From words of the command line; raises RequestError for one that means nothing."""
    if objects not in ("annotation", "detection"):
        raise RequestError(f"QuPath's objects are annotation or detection, got {objects!r}")
    if origin not in ("slide", "bounds"):
        raise RequestError(f"pixels are counted from slide or bounds, got {origin!r}")
    try:
        return RegionWishes(
            tolerance=Amount.length(simplify) if simplify else Amount(),
            least=Amount.area(min_area) if min_area else Amount(),
            only=tuple(name.strip() for name in classes.split(",")) if classes else None,
            objects="detection" if objects == "detection" else "annotation",
            origin="bounds" if origin == "bounds" else "slide",
        )
    except ValueError as error:
        raise RequestError(str(error)) from error
