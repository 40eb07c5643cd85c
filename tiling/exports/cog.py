"""The mask of a raster: a Cloud-Optimized GeoTIFF with CRS, colours, class names, and the labels' own overviews."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from tiling.exports.files import printable, replacing
from tiling.exports.tiled_tiff import TILE, write_pyramid
from tiling.labels import NODATA, Labels
from tiling.layers import STEPS

_CACHE: Final = 64 << 20
"""Bytes that GDAL may hold while it copies; by default it takes a share of the machine's memory."""


def write_cog(labels: Labels, path: Path, tags: Mapping[str, str], layer: str | None = None) -> Path:
    """Writes `path`: class values, 255 as nodata; `class_<value>` tags name the classes.

    Or a `layer` that lies beside the labels: a band a channel, with the scale that makes its bytes values 0..1.

    An image without a georeference gives a GeoTIFF without one. Raises OSError where the disk is full.
    """
    gdal = rasterio.Env(GDAL_CACHEMAX=_CACHE)
    with replacing(path) as temporary, gdal, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # an image without a place has none to give
        draft = temporary.with_name("draft.tif")
        colors = {} if layer else {"photometric": "palette", "colormap": _palette(labels)}
        write_pyramid(draft, labels, nested=False, level=1, layer=layer, **colors)
        try:
            _describe(draft, labels, tags, layer)
            rasterio.shutil.copy(
                draft,
                temporary,
                driver="COG",
                compress="DEFLATE",
                blocksize=TILE,
                bigtiff="IF_SAFER",
                overviews="FORCE_USE_EXISTING",
            )
            _check_complete(temporary, labels)
        except (CPLE_BaseError, RasterioIOError, tifffile.TiffFileError) as error:
            raise OSError(f"{path}: the {layer or 'mask'} could not be written ({error}); is the disk full?") from error
    return path


def _describe(path: Path, labels: Labels, tags: Mapping[str, str], layer: str | None) -> None:
    """Adds the place and the meaning of the values to a TIFF."""
    georef = labels.georef
    with rasterio.open(path, "r+") as raster:
        raster.nodata = NODATA
        if georef.crs is not None:
            raster.crs = CRS.from_user_input(georef.crs)
        if not georef.transform.is_identity:
            raster.transform = georef.transform
        texts = {f"class_{c.value}": c.name for c in labels.classes} if layer is None else {}
        texts |= dict(tags)
        for band, channel in enumerate(labels.layers[layer].channels if layer else (), start=1):
            raster.set_band_description(band, printable(channel))
        if layer:
            raster.scales = [1 / STEPS] * raster.count
        raster.update_tags(**{key: printable(text) for key, text in texts.items()})


def _check_complete(path: Path, labels: Labels) -> None:
    """Raises RasterioIOError for a file that ends too early: GDAL does not report what fails while it closes a file."""
    with rasterio.open(path) as raster:
        described = raster.nodata == NODATA and (raster.crs is None) == (labels.georef.crs is None)
    with tifffile.TiffFile(path) as tiff:
        levels = [page.shape[:2] for page in tiff.pages]
        end = max(o + n for page in tiff.pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
    if not described or levels != [array.shape for array in labels.levels] or end > path.stat().st_size:
        raise RasterioIOError("the file is cut off")


def _palette(labels: Labels) -> NDArray[np.uint16]:
    """(3, 256): class colours over TIFF's 16 bits; grey for values that mean nothing, black for no data."""
    palette = np.full((3, 256), 128, np.uint16)
    palette[:, NODATA] = 0
    for c in labels.classes:
        palette[:, c.value] = c.color
    return palette * np.uint16(257)
