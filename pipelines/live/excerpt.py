"""Files of a part of a mask: some of its classes, in what was drawn, corrections among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np

from pipelines.display.masks import polygon_mask
from pipelines.errors import RequestError
from pipelines.live.corrections import Corrections
from tiling import NODATA, Box
from tiling.canvas import Canvas
from tiling.disk import remove
from tiling.exports.areas import write_areas
from tiling.exports.region_files import REGION_FILES, write_files
from tiling.labels import Labels

FORMATS: Final = {
    "GeoJSON": "regions.geojson", "GeoPackage": "regions.gpkg", "CSV": "regions.csv", "Areas": "areas.csv",
}  # fmt: skip
"""What people call it -> the file."""
BLOCK: Final = 2048


def write_excerpt(
    labels: Labels,
    corrections: Corrections | None,
    corners: Sequence[tuple[float, float]] | None,
    values: Collection[int],
    names: Sequence[str],
    folder: Path,
) -> list[Path]:
    """These files of the pixels that have one of these class values, in a polygon of (y, x) corners or anywhere.

    Corners are pixels of the mask. What is left out is no data, so everything stays in its place; memory does not grow
    with the mask. Raises RequestError where nothing is left, or where corrections are of another mask.
    """
    if corrections is not None:
        corrections.check(labels)
    kept = np.full(256, NODATA, np.uint8)
    kept[list(values)] = list(values)
    canvas = Canvas.like(folder / "excerpt.zarr.partial", labels, block=BLOCK, chunk=512, fingerprint="excerpt")
    found = False
    with closing(canvas):
        for box in canvas.blocks:
            piece = _piece(labels, corrections, corners, box)
            piece = kept[piece]
            found |= bool((piece != NODATA).any())
            canvas.write(box, piece)
        if not found:
            raise RequestError("there is nothing of these classes here to export")
        excerpt = canvas.publish(folder / "excerpt.zarr")
    try:
        regions = [name for name in names if name in REGION_FILES]
        files = write_files(excerpt, folder, {}, None, regions) if regions else []
        return [*files, *(write_areas(excerpt, folder, None, {}) if "areas.csv" in names else [])]
    finally:
        remove(folder / "excerpt.zarr")


def _piece(
    labels: Labels, corrections: Corrections | None, corners: Sequence[tuple[float, float]] | None, box: Box
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """(h, w) class values of a block, no data outside of the polygon."""
    if corners is not None:
        ys, xs = [y for y, _ in corners], [x for _, x in corners]
        if min(ys) >= box.bottom or max(ys) <= box.y or min(xs) >= box.right or max(xs) <= box.x:
            return np.full((box.height, box.width), NODATA, np.uint8)
    values = labels.read(box)
    values = values if corrections is None else corrections.burn(values, box)
    return values if corners is None else np.where(polygon_mask(corners, box), values, np.uint8(NODATA))
