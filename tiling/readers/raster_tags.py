"""What a raster says of itself, as GDAL gives it: its place, its bands, its palette; and which cannot be used."""

from __future__ import annotations

import numpy as np
import pyproj
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from tiling.errors import ImageError
from tiling.georef import Georef

COLOURS = {"red", "green", "blue", "nir", "pan", "coastal", "rededge", "swir", "mwir", "lwir", "tir"}
"""Names of bands that mean a part of the spectrum, in lower case."""


def refuse_unusable(dataset: DatasetReader, palette_is_read: bool) -> None:
    if dataset.count == 0:
        inside = [name.rsplit(":", 1)[-1].lstrip("/") for name in dataset.subdatasets]
        if not inside:
            raise ImageError("it holds no image")
        raise ImageError(
            f"it holds {len(inside)} images ({', '.join(inside[:8])}); save the one that is meant, "
            f"e.g. gdal_translate {dataset.subdatasets[0]} OUT.tif"
        )
    if ColorInterp.palette in dataset.colorinterp and not palette_is_read:
        raise ImageError(
            "palette colours are class numbers, not intensities; "
            "expand them to RGB, e.g. gdal_translate -expand rgb IN OUT"
        )
    space = dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE")
    if space == "CIELAB":
        raise ImageError("its colours are Lab, which programs turn into different ones; save it as RGB")
    complex_types = sorted({t for t in dataset.dtypes if t.startswith("complex")})
    if complex_types:
        raise ImageError(f"its values are {complex_types[0]}; complex radar data must be turned into amplitudes first")


def palette(dataset: DatasetReader) -> NDArray[np.uint8] | None:
    """(values, 4): red, green, blue and alpha of each value of a raster of one band with a palette; else None."""
    if dataset.count != 1 or ColorInterp.palette not in dataset.colorinterp:
        return None
    if dataset.dtypes[0] not in ("uint8", "uint16"):
        return None
    colours = np.zeros((np.iinfo(dataset.dtypes[0]).max + 1, 4), np.uint8)
    for value, colour in dataset.colormap(1).items():
        if value < len(colours):
            colours[value] = colour
    return colours


def alpha_band(dataset: DatasetReader) -> int | None:
    """The number of the band that is alpha. GDAL marks the fourth of four bands of bytes so unasked: not one whose
    description names a colour.
    """
    for i, colour in enumerate(dataset.colorinterp, 1):
        if colour == ColorInterp.alpha and _described(dataset, i).lower() not in COLOURS:
            return i
    return None


def band_names(dataset: DatasetReader, indexes: list[int]) -> tuple[str, ...]:
    """The colour that the band's description names, else the one that the file gives it, else the description, else
    'band N'.
    """
    names: list[str] = []
    for i in indexes:
        colour, description = dataset.colorinterp[i - 1].name.lower(), _described(dataset, i)
        name = colour if colour in COLOURS and description.lower() not in COLOURS else description
        names.append(name if name and name not in names else f"band {i}")
    return tuple(names)


def _described(dataset: DatasetReader, band: int) -> str:
    return (dataset.descriptions[band - 1] or "").strip()


def georef(dataset: DatasetReader) -> tuple[Georef, list[str]]:
    """The place, and what a user should know about it."""
    placed = not dataset.transform.is_identity
    if not placed:
        gcps, _ = dataset.gcps
        how = "ground control points" if gcps else "RPCs" if dataset.rpcs is not None else None
        if how:
            return Georef.pixels(), [f"is placed by {how} only: used in pixels; warp it first (gdalwarp) to get a map"]
        return Georef.pixels(), ["has a CRS but no transform: used in pixels"] if dataset.crs else []
    if not dataset.crs and dataset.transform.is_degenerate:
        return Georef.pixels(), ["has no CRS and a transform that maps an area to a line: used in pixels"]
    if not dataset.crs:
        note = "has a transform but no CRS: it is kept, in unknown units; assign one (gdal_edit.py -a_srs EPSG:...)"
        return Georef(dataset.transform), [note]
    wkt = dataset.crs.to_wkt()
    try:
        pyproj.CRS.from_user_input(wkt)
    except pyproj.exceptions.CRSError:
        return Georef.pixels(), ["has a CRS that PROJ does not understand: used in pixels"]
    return Georef(dataset.transform, "crs", wkt), []
