"""Georeferenced rasters through GDAL: GeoTIFF, COG, JPEG 2000, VRT, with their overviews and masks."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from tiling import storage, validity
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.readers import placed, raster_tags
from tiling.readers.opened import OpenedImage, all_but, level_scale, one_line, tiles_of
from tiling.readers.plain import PlainTiff
from tiling.readers.tiff import tiff_magic
from tiling.source import Kind, Level

SUFFIXES: Final = (".vrt", ".jp2", ".j2k")
DRIVERS: Final = (
    *("GTiff", "AAIGrid", "AIG", "BSB", "DTED", "EHdr", "ENVI", "ERS", "GPKG", "GRIB", "GSBG", "HDF5", "HFA", "ILWIS"),
    *("ISIS3", "KRO", "MBTiles", "MRF", "NITF", "PCIDSK", "PDS4", "RMF", "RRASTER", "RST", "SAGA", "SRTMHGT"),
    *("USGSDEM", "VICAR", "netCDF"),
)
"""GDAL's formats of files on a disk that are tried on what no other reader knows; none of them goes to the network."""

CACHE: Final = 64 << 20
"""Bytes that GDAL may keep of what it decoded, all rasters together; by default a twentieth of the machine's memory."""

_OPENING = threading.Lock()


class RasterSource(OpenedImage):
    """A raster read with rasterio: every band in the file's order, except alpha, which only says what is valid.

    A palette comes as its colours, so that class numbers are never taken for intensities.

    A pixel is valid where at least one band differs from its nodata value (GDAL's rule for a dataset), no band is NaN
    or infinite, alpha is above zero, the internal or sidecar mask allows it, and the file does not leave it out: all
    of these at once. Levels are the file's overviews. With ground control points or RPCs alone, the world is the pixel
    grid; with a transform but no CRS it is the transform's, in a unit that nobody knows. `warnings` says so.
    """

    kind: Kind = "raster"

    def __init__(self, path: str | os.PathLike[str], *, indexed: bool = False) -> None:
        super().__init__(path, indexed=indexed)
        self._idle: dict[int, list[DatasetReader]] = {}
        with one_line(f"{self.path}: cannot be read"), self._dataset(0) as dataset:
            self._describe(dataset)

    @classmethod
    def accepts(cls, path: str) -> bool:
        if tiff_magic(path):
            return placed.is_placed_tiff(path)
        return path.lower().endswith(SUFFIXES) or placed.is_placed_picture(path)

    @classmethod
    def rescues(cls, path: str) -> bool:
        # GDAL reads a TIFF's first page, which in a slide may be its label.
        if tiff_magic(path) and placed.is_slide_tiff(path):
            return False
        with suppress(Exception), _open(path, drivers=DRIVERS):
            return True
        return False

    @property
    def working_bytes(self) -> int:
        chunk = self.levels[0].chunk
        caches = CACHE if self._plain is None else 2 * CACHE  # GDAL's serves overviews and masks also then
        return int(caches + 2 * chunk.pixels * self._stored_bands * self.dtype.itemsize)

    def close(self) -> None:
        """Closes the handles that no thread is using. Reading again opens new ones."""
        for handles in self._idle.values():
            while handles:
                handles.pop().close()
        if self._plain is not None:
            self._plain.close()

    def _describe(self, dataset: DatasetReader) -> None:
        self._palette = None if self._indexed else raster_tags.palette(dataset)
        raster_tags.refuse_unusable(dataset, self._indexed or self._palette is not None)
        self._alpha = raster_tags.alpha_band(dataset)
        self._indexes = [i for i in dataset.indexes if i != self._alpha]
        if not self._indexes:
            raise ImageError("it holds an alpha channel and no band")
        self._nodata = tuple(dataset.nodatavals[i - 1] for i in self._indexes)
        flags = dataset.mask_flag_enums[self._indexes[0] - 1]
        self._own_masks = all(not dataset.mask_flag_enums[i - 1] for i in self._indexes)
        self._masked = self._own_masks or (MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags)
        self._stored_bands = dataset.count
        self.dtype = np.result_type(*(dataset.dtypes[i - 1] for i in self._indexes))
        self.bands = raster_tags.band_names(dataset, self._indexes)
        self._stored_dtype, self._mixed = self.dtype, len(set(dataset.dtypes)) > 1
        if self._palette is not None:
            self.dtype, self.bands = np.dtype(np.uint8), ("red", "green", "blue")
        self.levels = tuple(self._levels(dataset))
        self.georef, notes = raster_tags.georef(dataset)
        if dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
            notes.append("has printing colours (CMYK): they are turned into RGB without a colour profile")
        if self._palette is not None:
            notes.append("has palette colours: they are read as red, green and blue")
        if any(dataset.scales[i - 1] != 1 or dataset.offsets[i - 1] != 0 for i in self._indexes):
            notes.append("declares a scale and offset for its values: they are read raw, as stored")
        if dataset.subdatasets:
            notes.append(f"holds {len(dataset.subdatasets)} images: only the first is read")
        self._notes = tuple(f"{self.name}: {note}" for note in notes)
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        self._plain = None
        if dataset.driver == "GTiff" and not self._mixed and self._palette is None:
            self._plain = PlainTiff.of(self.path, self.levels[0].size, dataset.count, self._stored_dtype, CACHE)
        self._is_tiff, self._separate = dataset.driver == "GTiff", structure.get("INTERLEAVE") == "BAND"
        self.provenance = {
            "format": dataset.driver,
            "compression": structure.get("COMPRESSION", "none").lower(),
            "tile": str(self.levels[0].chunk),
            "interleave": structure.get("INTERLEAVE", "unknown").lower(),
        }
        if self._alpha is not None:
            self.provenance["alpha"] = f"band {self._alpha}"

    def _levels(self, dataset: DatasetReader) -> Iterator[Level]:
        full = last = Size(dataset.height, dataset.width)
        yield Level(full, Size(*dataset.block_shapes[0]), (1.0, 1.0))
        self._overviews = [-1]
        for overview in range(len(dataset.overviews(self._indexes[0]))):
            with _open(self.path, overview) as reduced:
                size = Size(reduced.height, reduced.width)
                if size.pixels >= last.pixels:
                    continue
                self._overviews.append(overview)
                yield Level(size, Size(*reduced.block_shapes[0]), level_scale(full, size))
                last = size

    @contextmanager
    def _dataset(self, level: int) -> Iterator[DatasetReader]:
        """A handle that no other thread uses meanwhile: GDAL datasets are not thread-safe."""
        handles = self._idle.setdefault(level, [])
        try:
            dataset = handles.pop()
        except IndexError:
            dataset = _open(self.path, self._overviews[level] if level else -1)
        try:
            yield dataset
        except BaseException:
            dataset.close()
            raise
        handles.append(dataset)

    def _keep(self, places: list[int]) -> None:
        if self._palette is not None:
            self._kept = places
            return
        self._indexes = [self._indexes[place] for place in places]
        self._nodata = tuple(self._nodata[place] for place in places)

    def _read(self, box: Box, level: int) -> NDArray[Any]:
        pixels = self._stored(box, level)
        return pixels if self._palette is None else self._palette[pixels[..., 0], :3]

    def _stored(self, box: Box, level: int) -> NDArray[Any]:
        """(H, W, bands) as the file holds them."""
        return self._bands(box, level, self._indexes)

    def _bands(self, box: Box, level: int, indexes: Sequence[int]) -> NDArray[Any]:
        """(H, W, bands) of GDAL's bands, counted from 1."""
        if self._plain is not None and level == 0:
            pixels = self._plain.read(box, [i - 1 for i in indexes])
            if pixels is not None:
                return pixels
        with self._dataset(level) as dataset, _bounded_cache(self.path):
            if self._mixed:  # rasterio reads bands of several number types one by one only
                bands = [dataset.read(band, window=_window(box)) for band in indexes]
                return np.stack(bands, axis=-1).astype(self._stored_dtype)
            pixels = dataset.read(indexes, window=_window(box), out_dtype=self._stored_dtype)
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))

    def blank(self, box: Box, level: int = 0) -> bool:
        """Whether the file leaves out every tile that `box` touches."""
        return not any(present for _, present in self._tiles(box, level))

    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        valid = self._present(box, level)
        if self.dtype.kind == "f" or None not in self._nodata or self._palette is not None:
            pixels = self._stored(box, level)
            data = validity.differs_from_nodata(pixels, self._nodata)
            valid = validity.combine(valid, data, validity.finite(pixels))
            if self._palette is not None:
                valid &= validity.opaque(self._palette[pixels[..., 0], 3])
        if self._alpha is not None:
            valid &= validity.opaque(self._bands(box, level, [self._alpha])[..., 0])
        if self._masked:
            valid &= self._mask(box, level)
        return valid

    def _present(self, box: Box, level: int) -> NDArray[np.bool_]:
        """(H, W): False where the file leaves the tile out, as sparse GeoTIFFs do; GDAL gives zeros there."""
        return all_but(box, (tile for tile, there in self._tiles(box, level) if not there))

    def _tiles(self, box: Box, level: int) -> list[tuple[Box, bool]]:
        """The tiles that a box touches, and whether the file holds them, of any band; asks GDAL's index, no pixels."""
        if not self._is_tiff:
            return [(box, True)]
        overview = {"ovr": self._overviews[level]} if level else {}
        chunk = self.levels[level].chunk
        bands = self._indexes if self._separate else self._indexes[:1]
        found = []
        with self._dataset(0) as dataset:
            for tile in tiles_of(self.levels[level], box):
                name = f"BLOCK_OFFSET_{tile.x // chunk.width}_{tile.y // chunk.height}"
                there = any(dataset.get_tag_item(name, "TIFF", bidx=band, **overview) for band in bands)
                found.append((tile, there))
        return found

    def _mask(self, box: Box, level: int) -> NDArray[np.bool_]:
        # Asked of level 0 at reduced size: GDAL then uses the mask's own overviews where it has some. The overview
        # itself would call everything valid where a mask was added after the overviews were built.
        y, x = self.levels[level].scale
        window = Window(box.x * x, box.y * y, box.width * x, box.height * y)
        with self._dataset(0) as dataset, _bounded_cache(self.path):
            # One for all bands, or one a band, of which a VRT may say so: data where any of them has some.
            bands = self._indexes if self._own_masks else self._indexes[:1]
            masks = dataset.read_masks(bands, window=window, out_shape=(len(bands), box.height, box.width))
        return np.asarray((masks > 0).any(axis=0))


def files_of(path: str) -> list[str]:
    """What GDAL reads for a raster on a disk: a header beside it, what a VRT refers to and what a VRT among that does.

    Nothing for a file that GDAL does not read.
    """
    found: dict[str, None] = {}
    left = [path]
    while left:
        name = left.pop()
        known = None if name.lower().endswith(SUFFIXES) else DRIVERS
        with suppress(RasterioIOError), _open(name, drivers=known) as dataset:
            files = [file for file in dataset.files if os.path.isfile(file)]  # noqa: PTH113 - as GDAL names them
            left += [file for file in files if file.lower().endswith(".vrt") and file not in found]
            found |= dict.fromkeys(files)
    return list(found)


def _open(path: str, overview: int = -1, drivers: Sequence[str] | None = None) -> DatasetReader:
    options: dict[str, Any] = {"overview_level": overview} if overview >= 0 else {}
    # Filters are global: one thread at a time changes them. What the warning says is in `warnings` of the source.
    name = storage.gdal_path(path)
    with _OPENING, rasterio.Env(**storage.gdal_options(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # rasterio.open takes the name of one driver only.
        dataset: DatasetReader = (
            DatasetReader(name, driver=list(drivers)) if drivers else rasterio.open(name, **options)
        )
        return dataset


def _bounded_cache(path: str) -> rasterio.Env:
    # Around each read, since the bound ends with its Env. In bytes: rasterio does not take megabytes as GDAL does.
    return rasterio.Env(GDAL_CACHEMAX=CACHE, **storage.gdal_options(path))


def _window(box: Box) -> Window:
    return Window(box.x, box.y, box.width, box.height)
