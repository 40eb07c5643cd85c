"""mask.tif, in the form that the image's field expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tiling.exports.cog import write_cog
from tiling.exports.ome_tiff import write_ome_tiff
from tiling.labels import Labels
from tiling.view import View


def write_mask(labels: Labels, folder: Path, _image: View | None, tags: Mapping[str, str]) -> list[Path]:
    """An OME-TIFF for slides and whatever is measured in micrometres; a Cloud-Optimized GeoTIFF for all else."""
    write = write_ome_tiff if is_microscopic(labels) else write_cog
    return [write(labels, folder / "mask.tif", tags)]


def is_microscopic(labels: Labels) -> bool:
    """Whether people will open the result beside slides rather than on a map."""
    return labels.kind == "slide" or labels.georef.unit == "um"
