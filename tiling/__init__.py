"""Pixels, places and files: images opened, windows laid over them, and results written. Knows no torch."""

from tiling import storage
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef, Spacing
from tiling.grid import Grid, blocks
from tiling.labels import NODATA, LabelClass
from tiling.readers import open_image
from tiling.source import Level, Source
from tiling.stitch import Stitcher, taper
from tiling.view import View

__all__ = [
    "NODATA",
    "Box",
    "Georef",
    "Grid",
    "ImageError",
    "LabelClass",
    "Level",
    "Size",
    "Source",
    "Spacing",
    "Stitcher",
    "View",
    "blocks",
    "open_image",
    "storage",
    "taper",
]
