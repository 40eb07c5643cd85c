"""What can be made from finished labels. To add an export, write a function of type `Export` and give it a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tiling.exports.areas import ClassArea, areas, write_areas
from tiling.exports.confidence import write_probability, write_uncertainty
from tiling.exports.image_zarr import write_image
from tiling.exports.mask import write_mask
from tiling.exports.preview import write_preview
from tiling.exports.region_files import REGION_EXPORTS, REGION_FILES
from tiling.exports.regions import MeasuredRegion, RegionWishes, find_regions
from tiling.labels import Labels
from tiling.view import View

Export = Callable[[Labels, Path, View | None, Mapping[str, str]], list[Path]]
"""(labels, folder, the image that was segmented if at hand, tags for the files' metadata) -> the files written.

A file appears whole under its name, or not at all. Memory does not grow with the labels.
"""

EXPORTS: Final[dict[str, Export]] = {
    "mask": write_mask,
    "areas": write_areas,
    "preview": write_preview,
    **REGION_EXPORTS,
    "probability": write_probability,
    "uncertainty": write_uncertainty,
    "image": write_image,
}

FILES: Final = (
    "mask.tif",
    "areas.csv",
    "preview.png",
    *REGION_FILES,
    "probability.tif",
    "uncertainty.tif",
    "image.zarr",
)
"""Every file, or folder, that an export may leave: what must go when the labels behind it do."""

__all__ = [
    "EXPORTS",
    "FILES",
    "REGION_EXPORTS",
    "ClassArea",
    "Export",
    "MeasuredRegion",
    "RegionWishes",
    "areas",
    "find_regions",
]
