"""What a TIFF's tags and metadata say: pixel size, bands, format; and which images cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from tifffile import PHOTOMETRIC, TIFF, TiffFile, TiffPage, TiffPageSeries

from tiling.errors import ImageError
from tiling.georef import METRES, Spacing, plausible
from tiling.readers.opened import NoDecoder
from tiling.readers.orientation import Orientation

GEOREFERENCE_TAGS = frozenset({33550, 33922, 34264, 34735, 42112, 42113, 50844})
"""ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GDAL metadata, GDAL nodata, RPCs."""

FORMATS = {
    "svs": "Aperio SVS",
    "ndpi": "Hamamatsu NDPI",
    "ome": "OME-TIFF",
    "philips": "Philips TIFF",
    "scn": "Leica SCN",
    "qpi": "PerkinElmer QPTIFF",
    "imagej": "ImageJ TIFF",
}

_OLD_JPEG = 6
_JPEG = {7, 33007, 34892}
_APERIO_YCBCR = 33003
_USABLE = {
    *(PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, PHOTOMETRIC.PALETTE),
}
_ASSOCIATED = re.compile(r"label|macro|thumbnail|overview|\bmap\b", re.IGNORECASE)


def format_name(tif: TiffFile) -> str:
    """'Aperio SVS', 'OME-TIFF' ..., or 'TIFF'."""
    return next((name for flag, name in FORMATS.items() if getattr(tif, f"is_{flag}")), "TIFF")


def label(code: int) -> str:
    """'jpeg' for the COMPRESSION or PHOTOMETRIC of that name; the number, where it has none."""
    return str(getattr(code, "name", code)).lower()


def is_slide(tif: TiffFile) -> bool:
    """Whether it is a microscope's format: one of FORMATS, or Ventana BIF."""
    return bool(tif.is_bif) or format_name(tif) != "TIFF"


def baseline(tif: TiffFile) -> TiffPageSeries:
    """The series that holds the specimen: never a label, macro or thumbnail; the largest of what is left."""
    if tif.is_bif:
        raise NoDecoder("Ventana BIF stores overlapping tiles, which are not stitched here; export it as OME-TIFF")
    if tif.is_scn and len(_scn_regions(tif)) > 1:
        raise NoDecoder("it holds several scanned regions, which are not put together here; export each as OME-TIFF")
    candidates = _specimens(tif)
    if not candidates:
        raise ImageError("it holds no image but a label, macro or thumbnail")
    found = max(candidates, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)
    parts = set(re.findall(r'\bFileName="([^"]+)"', tif.ome_metadata or "")) if tif.is_ome else set()
    if found.is_multifile or len(parts) > 1:
        raise ImageError("it is one part of an image spread over several files; save it as a single OME-TIFF")
    return found


def images_left_out(tif: TiffFile) -> int:
    """How many images of the specimen the file holds beside the one that is read."""
    return 0 if tif.is_scn else len(_specimens(tif)) - 1


def offset(tif: TiffFile, series: TiffPageSeries) -> tuple[float, float]:
    """(y, x) of the image's corner from that of the slide, in micrometres; (0, 0) where the file does not say."""
    for image in _scn_regions(tif) if tif.is_scn else []:
        pages = {dimension.get("ifd") for dimension in image.iter() if dimension.tag.endswith("}dimension")}
        view = next((part for part in image if part.tag.endswith("}view")), None)
        if str(series.keyframe.index) in pages and view is not None:
            return float(view.get("offsetY", 0)) / 1e3, float(view.get("offsetX", 0)) / 1e3
    return 0.0, 0.0


def _specimens(tif: TiffFile) -> list[TiffPageSeries]:
    return [series for series in tif.series if not _ASSOCIATED.search(series.name or "")]


def _scn_regions(tif: TiffFile) -> list[ElementTree.Element]:
    """The <image>s of a Leica SCN that show a part of the slide; the macro shows all of it."""
    regions = []
    for collection in ElementTree.fromstring(tif.pages.first.description):
        whole = collection.get("sizeX"), collection.get("sizeY")
        for image in collection:
            views = [(part.get("sizeX"), part.get("sizeY")) for part in image if part.tag.endswith("}view")]
            if image.tag.endswith("}image") and views != [whole]:
                regions.append(image)
    return regions


def pyramid(series: TiffPageSeries) -> list[TiffPageSeries]:
    """The series' levels from fine to coarse, without pages that show something else (other shape, dtype or axes)."""
    top = series.keyframe
    levels = [series]
    for level in series.levels[1:]:
        page = level.keyframe
        ratio = top.imagelength / page.imagelength
        same_view = abs(top.imagewidth / ratio - page.imagewidth) <= max(2, 0.02 * page.imagewidth)
        if same_view and ratio > 1 and (level.dtype, level.axes) == (series.dtype, series.axes):
            levels.append(level)
    return sorted(levels, key=lambda level: -level.keyframe.imagelength)


def refuse_unusable(page: TiffPage) -> None:
    """Raises ImageError for pixels that are not intensities, and NoDecoder for what tifffile does not decode."""
    photometric, compression = page.photometric, page.compression
    said = f"its colours are {label(photometric)} (compression {label(compression)}); save it as RGB"
    if photometric == PHOTOMETRIC.SEPARATED or (photometric == PHOTOMETRIC.YCBCR and compression not in _JPEG):
        raise NoDecoder(said)
    if photometric not in _USABLE:
        raise ImageError(said)
    if compression not in TIFF.DECOMPRESSORS or compression == _OLD_JPEG:
        raise NoDecoder(f"its compression, {label(compression)}, is not known here; save it with deflate, LZW or JPEG")
    if photometric == PHOTOMETRIC.PALETTE and (page.colormap is None or page.samplesperpixel != 1):
        raise ImageError("its colours are a palette's, and it has none; save it as RGB")
    if page.dtype is None or page.dtype.kind not in "uif":
        found = "complex numbers" if page.dtype is not None and page.dtype.kind == "c" else f"{page.bitspersample}-bit"
        raise ImageError(f"its samples are {found}; expected integers or floats of 8 to 64 bits")
    if photometric == PHOTOMETRIC.MINISWHITE and page.dtype.kind != "u":
        raise ImageError(f"its {page.dtype} samples run from white to black; invert them and save again")


def is_aperio_ycbcr(page: TiffPage) -> bool:
    """Aperio's first JPEG 2000 flavour holds YCbCr under the name of RGB."""
    return bool(page.compression == _APERIO_YCBCR and page.samplesperpixel == 3)


def palette(page: TiffPage) -> NDArray[np.uint8] | None:
    """(colours, 3): red, green and blue of each value, of 255; None where the samples are the colours themselves."""
    if page.photometric != PHOTOMETRIC.PALETTE:
        return None
    colours = np.asarray(page.colormap).reshape(3, -1).T
    # TIFF's run to 65535; some programs write them as if they ran to 255.
    return np.ascontiguousarray(colours // 257 if colours.max() > 255 else colours, dtype=np.uint8)


def orientation(page: TiffPage) -> Orientation:
    """How the page must be turned to be upright."""
    return Orientation.of_tag(page.tags.valueof("Orientation", 1))


def alpha_sample(page: TiffPage) -> int | None:
    """Index of the alpha sample, if the file declares one."""
    extra = page.extrasamples
    first = page.samplesperpixel - len(extra)
    return next((first + i for i, kind in enumerate(extra) if kind in (1, 2)), None)


def band_names(tif: TiffFile, series: TiffPageSeries, count: int) -> tuple[str, ...]:
    """Colour names, the file's channel names, or 'band 1' ..."""
    colour = series.keyframe.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, PHOTOMETRIC.PALETTE)
    names = ["red", "green", "blue"] if colour and count >= 3 else _channel_names(tif, series)
    named = [names[i] if i < len(names) and names[i] else f"band {i + 1}" for i in range(count)]
    return tuple(named if len(set(named)) == count else [f"band {i + 1}" for i in range(count)])


def spacing(tif: TiffFile, series: TiffPageSeries) -> tuple[Spacing | None, str | None]:
    """The size of a level-0 pixel and None; or None and, where the file says something unusable, why."""
    micrometres = next((found for found in _stated(tif, series) if found is not None), None)
    return (None, None) if micrometres is None else plausible(*micrometres)


def _stated(tif: TiffFile, series: TiffPageSeries) -> Iterator[tuple[float, float] | None]:
    """(y, x) in micrometres from each place that may say so, the most specific first."""
    page = series.keyframe
    if tif.is_svs:
        match = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", page.description)
        yield _pair(match[1], match[1]) if match else None
    if tif.is_ome:
        yield _ome_spacing(tif, series)
    if tif.is_philips:
        match = re.search(r'DICOM_PIXEL_SPACING"[^>]*>\s*"([0-9.eE+-]+)"\s+"([0-9.eE+-]+)"', tif.philips_metadata or "")
        yield _pair(match[1], match[2], unit=1e3) if match else None
    if tif.is_imagej:
        unit = str((tif.imagej_metadata or {}).get("unit", "")).replace("micron", "um").replace("\\u00B5", "µ")
        yield _resolution(page, METRES[unit] * 1e6) if unit in METRES else None
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    yield _resolution(page, unit_um) if unit_um and not tif.is_imagej else None


def _resolution(page: TiffPage, unit_um: float) -> tuple[float, float] | None:
    """From XResolution and YResolution, in pixels per unit of `unit_um` micrometres."""
    y, x = (page.tags.valueof(tag, (0, 1)) for tag in ("YResolution", "XResolution"))
    if min(*y, *x) <= 0:
        return None
    return unit_um * y[1] / y[0], unit_um * x[1] / x[0]


def _ome_spacing(tif: TiffFile, series: TiffPageSeries) -> tuple[float, float] | None:
    pixels = _ome_pixels(tif, series)
    if pixels is None:
        return None
    sides = []
    for axis in "YX":
        unit = METRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").replace("μ", "µ"))
        value = pixels.get(f"PhysicalSize{axis}")
        if unit is None or value is None:
            return None
        sides.append(float(value) * unit * 1e6)
    return (sides[0], sides[1]) if min(sides) > 0 else None


def _ome_pixels(tif: TiffFile, series: TiffPageSeries) -> ElementTree.Element | None:
    """The <Pixels> element of the series: the one in its place, or the first of its size."""
    page = series.keyframe
    found = [p for p in ElementTree.fromstring(tif.ome_metadata or "<OME/>").iter() if p.tag.endswith("}Pixels")]
    place = [s is series for s in tif.series].index(True)
    for pixels in found[place : place + 1] + found:
        if (pixels.get("SizeY"), pixels.get("SizeX")) == (str(page.imagelength), str(page.imagewidth)):
            return pixels
    return None


def _channel_names(tif: TiffFile, series: TiffPageSeries) -> list[str]:
    if tif.is_qpi:
        return [_qpi_name(page.aspage().description) for page in series if page is not None]
    pixels = _ome_pixels(tif, series) if tif.is_ome else None
    if pixels is None:
        return []
    return [channel.get("Name", "") for channel in pixels if channel.tag.endswith("}Channel")]


def _qpi_name(description: str) -> str:
    """The marker or the dye that a QPTIFF page shows, '' where it says none; nothing else of what it says."""
    found = re.search(r"<Biomarker>([^<]+)</Biomarker>", description) or re.search(r"<Name>([^<]+)</Name>", description)
    return found[1].strip() if found else ""


def _pair(y: str, x: str, unit: float = 1.0) -> tuple[float, float] | None:
    """Two numbers in text, in micrometres; None unless both are positive."""
    try:
        sides = float(y) * unit, float(x) * unit
    except ValueError:
        return None
    return sides if min(sides) > 0 else None
