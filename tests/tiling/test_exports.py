"""Masks and tables say what the labels say, to readers that are not ours."""

from __future__ import annotations

import csv
import math
import signal
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import ome_types
import openslide
import pyproj
import pytest
import rasterio
import rasterio.shutil
import tifffile
from affine import Affine
from label_images import CLASSES, content, publish, random_labels
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo import cog_validate

from tiling.exports import EXPORTS, areas
from tiling.exports.files import replacing
from tiling.exports.ome_tiff import ome_xml
from tiling.geometry import Box
from tiling.georef import Georef, Spacing
from tiling.labels import NODATA, Labels

VALUES = random_labels(1301, 1103, smooth=23)
TAGS = {"model": "nuclei v1 – é", "veca": "0.1.0"}
UTM = Georef(Affine(0.5, 0, 400000.25, 0, -0.5, 5000000.75), "crs", pyproj.CRS.from_epsg(32633).to_wkt())
PLACES = {
    "UTM": UTM,
    "degrees": Georef(Affine(1e-5, 0, 12.1, 0, -1e-5, 48.2), "crs", "EPSG:4326"),
    "south up": Georef(Affine(0.5, 0, -180, 0, 0.5, -90), "crs", "EPSG:4326"),
    "rotated": Georef(Affine(0.4, 0.3, 4e5, 0.3, -0.4, 5e6), "crs", "EPSG:32633"),
    "at the origin": Georef(Affine(1, 0, 0, 0, -1, 0), "crs", "EPSG:32633"),
    "not flipped": Georef(Affine(1, 0, 0, 0, 1, 0), "crs", "EPSG:32633"),
    "transform without CRS": Georef(Affine(2, 0, 10, 0, -2, 20)),
    "nowhere": Georef.pixels(),
}
NAMESPACE = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}

FROM_LABELS = {name: export for name, export in EXPORTS.items() if name not in ("probability", "uncertainty", "image")}
"""Exports that need nothing but labels; the others need arrays beside them, or the image itself."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return publish(tmp_path_factory.mktemp("slide"), VALUES)


@pytest.fixture(scope="module")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return raster(tmp_path_factory.mktemp("raster"))


def raster(folder: Path, georef: Georef = UTM, values: np.ndarray = VALUES) -> Labels:
    return publish(folder, values, georef=georef, kind="raster", name="tile 1")


def mask(labels: Labels, folder: Path) -> Path:
    (path,) = EXPORTS["mask"](labels, folder, None, TAGS)
    assert path == folder / "mask.tif"
    return path


def table(labels: Labels, folder: Path) -> list[list[str]]:
    (path,) = EXPORTS["areas"](labels, folder, None, TAGS)
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("place", PLACES)
def test_the_mask_of_a_raster_is_a_cloud_optimized_geotiff(tmp_path: Path, place: str) -> None:
    georef = PLACES[place]
    labels = raster(tmp_path, georef)
    path = mask(labels, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        valid, errors, complaints = cog_validate(path, strict=True)
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), VALUES)
            assert (file.nodata, file.dtypes, file.compression.name) == (NODATA, ("uint8",), "deflate")
            assert file.transform.almost_equals(georef.transform, 1e-12)
            assert file.crs == (rasterio.CRS.from_user_input(georef.crs) if georef.crs else None)
            assert {c.value: file.colormap(1)[c.value][:3] for c in CLASSES} == {c.value: c.color for c in CLASSES}
            tags = file.tags()
            assert {key: tags[key] for key in TAGS} == TAGS
            assert {c.value: tags[f"class_{c.value}"] for c in CLASSES} == {c.value: c.name for c in CLASSES}
            assert file.overviews(1) == [2, 4]
        for index, level in enumerate(labels.levels[1:]):
            with rasterio.open(path, overview_level=index) as overview:
                np.testing.assert_array_equal(overview.read(1), level[:])
    assert (valid, errors, complaints) == (True, [], [])
    assert {p.name for p in tmp_path.iterdir()} == {"labels.zarr", "mask.tif"}


def test_the_mask_of_a_slide_is_an_ome_tiff_with_the_labels_own_pyramid(tmp_path: Path, slides: Labels) -> None:
    labels = slides
    with tifffile.TiffFile(mask(labels, tmp_path)) as file:
        assert file.is_ome
        assert [level.shape for level in file.series[0].levels] == [level.shape for level in labels.levels]
        for theirs, ours in zip(file.series[0].levels, labels.levels, strict=True):
            assert theirs.pages[0].is_tiled
            assert theirs.pages[0].photometric == tifffile.PHOTOMETRIC.MINISBLACK
            np.testing.assert_array_equal(theirs.asarray(), ours[:])
        ome = ElementTree.fromstring(file.ome_metadata or "")
    pixels = ome.find("ome:Image/ome:Pixels", NAMESPACE)
    assert pixels is not None
    assert (pixels.get("SizeY"), pixels.get("SizeX"), pixels.get("Type")) == ("1301", "1103", "uint8")
    assert (pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeX")) == ("0.5", "0.25")
    notes = {m.get("K"): m.text for m in ome.findall(".//ome:M", NAMESPACE)}
    assert notes == TAGS | {
        "0": "background (#000000)",
        "1": "tumör <1> (#dc2828)",
        "7": "stroma (#2828dc)",
        "9": "necrosis (#5a5a5a)",
        "255": "no data",
    }


def test_the_mask_of_a_slide_that_was_scanned_in_part_says_where_it_lies(tmp_path: Path) -> None:
    labels = publish(tmp_path, VALUES, georef=Georef.micrometres(Spacing(0.5, 0.25, "um")).shifted(1000, 600))
    with tifffile.TiffFile(mask(labels, tmp_path)) as file:
        ome = ome_types.from_xml(file.ome_metadata or "", validate=True)
    (plane,) = ome.images[0].pixels.planes
    assert (plane.position_x, plane.position_y) == (150, 500)
    assert plane.position_x_unit == plane.position_y_unit == ome_types.model.UnitsLength.MICROMETER


def test_the_xml_of_a_mask_and_its_layers_obeys_the_ome_schema(tmp_path: Path) -> None:
    for kind, georef in (("slide", Georef.micrometres(Spacing(0.5, 0.25, "um"))), ("array", Georef.pixels())):
        labels = publish(tmp_path / kind, VALUES[:40, :30], georef=georef, kind=kind, name="a & <b>\n\x07 ä")
        document = ome_types.from_xml(ome_xml(labels, TAGS).decode(), validate=True)
        assert document.images[0].pixels.size_x == 30
        assert len(document.structured_annotations.map_annotations) == 2


def test_openslide_reads_the_mask_of_a_slide_and_its_pixel_size(tmp_path: Path, slides: Labels) -> None:
    with openslide.OpenSlide(mask(slides, tmp_path)) as slide:
        assert slide.dimensions == (1103, 1301)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5, rel=1e-6)
        region = np.asarray(slide.read_region((500, 700), 0, (603, 601)))
    np.testing.assert_array_equal(region[..., 0], VALUES[700:, 500:])


def test_a_slide_of_unknown_spacing_states_none(tmp_path: Path) -> None:
    path = mask(publish(tmp_path, VALUES, georef=Georef.pixels()), tmp_path)
    with openslide.OpenSlide(path) as slide, tifffile.TiffFile(path) as file:
        assert "openslide.mpp-x" not in slide.properties
        assert "PhysicalSizeX" not in (file.ome_metadata or "")


def test_a_picture_whose_spacing_a_user_stated_keeps_it(tmp_path: Path) -> None:
    labels = publish(tmp_path, VALUES, kind="array", georef=Georef.micrometres(Spacing.square(0.1234567, "um")))
    with tifffile.TiffFile(mask(labels, tmp_path)) as file:
        assert 'PhysicalSizeX="0.1234567"' in (file.ome_metadata or "")


@pytest.mark.parametrize("name", FROM_LABELS)
@pytest.mark.parametrize("kind", ["slide", "raster"])
def test_an_export_made_twice_has_the_same_bytes(
    tmp_path: Path, slides: Labels, rasters: Labels, name: str, kind: str
) -> None:
    labels = slides if kind == "slide" else rasters
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        EXPORTS[name](labels, tmp_path / folder, None, TAGS)
    EXPORTS[name](labels, tmp_path / "two", None, TAGS)  # over the first
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(content(tmp_path / "one")) == (2 if name == "regions" else 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9001), (9001, 1), (600, 513)])
@pytest.mark.parametrize("kind", ["slide", "raster"])
def test_labels_of_any_shape_are_exported(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    """The last size holds no data at all."""
    values = random_labels(*size) if size != (600, 513) else np.full(size, NODATA, np.uint8)
    place = {} if kind == "slide" else {"kind": kind, "georef": UTM}
    labels = publish(tmp_path, values, block=8192, chunk=512, **place)
    for name, export in FROM_LABELS.items():
        assert all(path.is_file() for path in export(labels, tmp_path, None, TAGS)), name
    path = tmp_path / "mask.tif"
    with rasterio.open(path) if kind == "raster" else tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(file.read(1) if kind == "raster" else file.asarray(), values)


@pytest.mark.parametrize("kind", ["slide", "raster"])
def test_no_export_reads_large_labels_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    values = np.full((3000, 3001), 1, np.uint8)
    place = {} if kind == "slide" else {"kind": kind, "georef": UTM}
    labels = publish(tmp_path, values, block=2048, chunk=512, **place)
    pieces: list[int] = []
    read = Labels.read

    def spy(self: Labels, box: Box, level: int = 0) -> np.ndarray:
        pieces.append(box.pixels)
        return read(self, box, level)

    monkeypatch.setattr(Labels, "read", spy)
    for export in FROM_LABELS.values():
        export(labels, tmp_path, None, {})
    assert sum(pieces) >= 3 * values.size
    assert max(pieces) <= 2**22


def test_areas_of_a_slide_are_counted_in_micrometres(tmp_path: Path, slides: Labels) -> None:
    rows = table(slides, tmp_path)
    counts = {c.value: int((c.value == VALUES).sum()) for c in CLASSES}
    valid = sum(counts.values())
    assert rows[0] == ["class", "value", "pixels", "um2", "mm2", "share"]
    for c, row in zip(CLASSES, rows[1:], strict=False):
        assert row[:3] == [c.name, str(c.value), str(counts[c.value])]
        assert float(row[3]) == pytest.approx(counts[c.value] * 0.125)
        assert float(row[4]) == pytest.approx(counts[c.value] * 0.125e-6, abs=1e-9)
        assert float(row[5]) == pytest.approx(counts[c.value] / valid, abs=1e-9)
    assert rows[4][2:] == ["0", "0.0000", "0.000000000", "0.000000000"]
    assert rows[5] == ["total", "", str(valid), f"{valid / 8:.4f}", f"{valid / 8e6:.9f}", "1.000000000"]
    assert rows[6] == ["no data", "255", str(VALUES.size - valid), "", "", ""]
    assert len(rows) == 7


def zone(south: float, north: float, degrees: float) -> float:
    """Area in m2 between two parallels of WGS 84 over `degrees` of longitude (Snyder 1987, equation 3-12)."""
    e = math.sqrt(pyproj.Geod(ellps="WGS84").es)

    def q(latitude: float) -> float:
        s = math.sin(math.radians(latitude))
        return (1 - e * e) * (s / (1 - (e * s) ** 2) - math.log((1 - e * s) / (1 + e * s)) / (2 * e))

    return 6378137.0**2 * math.radians(degrees) / 2 * (q(north) - q(south))


def test_areas_in_degrees_follow_the_latitude(tmp_path: Path) -> None:
    values = np.zeros((1200, 300), np.uint8)
    values[:400], values[1100:] = 1, NODATA
    labels = raster(tmp_path, Georef(Affine(0.05, 0, 10, 0, -0.05, 60), "crs", "EPSG:4326"), values)
    north, south = zone(40, 60, 15), zone(5, 40, 15)
    measured = {area.value: area for area in areas(labels)}
    assert measured[1].area == pytest.approx(north, rel=1e-5)
    assert measured[0].area == pytest.approx(south, rel=1e-5)
    assert measured[1].share == pytest.approx(north / (north + south), rel=1e-5)
    assert table(labels, tmp_path)[0] == ["class", "value", "pixels", "m2", "ha", "share"]


def test_areas_of_a_raster_in_metres(tmp_path: Path) -> None:
    equal_area = Georef(Affine(30, 0, 1e6, 0, -30, 5e6), "crs", "EPSG:6933")
    measured = {area.value: area for area in areas(raster(tmp_path, equal_area))}
    assert measured[1].area == pytest.approx(900 * (VALUES == 1).sum(), rel=1e-4)
    assert measured[1].unit == "m2"
    shares = [area.share for area in measured.values() if area.share is not None]
    assert sum(shares) == pytest.approx(1, abs=1e-12)


def test_areas_without_spacing_are_pixels_and_shares(tmp_path: Path) -> None:
    rows = table(raster(tmp_path, Georef.pixels()), tmp_path)
    assert rows[0] == ["class", "value", "pixels", "share"]
    assert sum(float(row[3]) for row in rows[1:5]) == pytest.approx(1)
    assert rows[-1] == ["no data", "255", str((VALUES == NODATA).sum()), ""]


def test_areas_without_data_have_no_share(tmp_path: Path) -> None:
    labels = publish(tmp_path, np.full((7, 5), NODATA, np.uint8))
    assert [(area.pixels, area.area, area.share) for area in areas(labels)] == [(0, 0.0, None)] * len(CLASSES)
    assert table(labels, tmp_path)[-2:] == [
        ["total", "", "0", "0.0000", "0.000000000", ""],
        ["no data", "255", "35", "", "", ""],
    ]


def test_an_export_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError), replacing(path) as temporary:  # noqa: PT012 - all of it is one export
        temporary.write_bytes(b"half of the new one")
        temporary.with_name("draft.tif").write_bytes(b"a by-product")
        temporary.parent.mkdir()
    assert content(tmp_path) == {"mask.tif": b"old"}
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        temporary.with_name("draft.tif").write_bytes(b"a by-product")
    assert content(tmp_path) == {"mask.tif": b"new"}


def test_what_a_killed_export_left_does_not_disturb_the_next(tmp_path: Path, slides: Labels) -> None:
    left = tmp_path / ".mask.tif.partial" / "draft.tif"
    left.parent.mkdir()
    left.write_bytes(b"half")
    mask(slides, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"mask.tif"}


@pytest.mark.parametrize("missing", [1, 40, 5_000, 60_000])
def test_a_disk_that_fills_up_while_gdal_writes_is_reported(
    tmp_path: Path, rasters: Labels, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files, which Windows lacks")
    size = mask(rasters, tmp_path).stat().st_size
    old = content(tmp_path)
    copy = rasterio.shutil.copy

    def copy_to_a_full_disk(*names: Path, **options: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, limits[1]))
        try:
            copy(*names, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr("rasterio.shutil.copy", copy_to_a_full_disk)
    try:
        with pytest.raises(OSError, match=r"mask\.tif: the mask could not be written .* is the disk full"):
            mask(rasters, tmp_path)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert content(tmp_path) == old


@pytest.mark.parametrize("kind", ["slide", "raster"])
def test_names_and_tags_of_any_kind_are_written(tmp_path: Path, kind: str) -> None:
    """As a file name of an old disk may be: bytes that are no text, line breaks, what XML cannot hold."""
    place = {} if kind == "slide" else {"kind": kind, "georef": UTM}
    labels = publish(tmp_path, VALUES, name="a\udce9b\n<c>\x00&", **place)
    assert Labels.open(labels.path).name == "a\udce9b\n<c>\x00&"
    for name, export in FROM_LABELS.items():
        assert export(labels, tmp_path, None, {"input": "a\udce9b\n<c>\x00&"}), name
    with tifffile.TiffFile(tmp_path / "mask.tif") as file:
        assert not file.is_ome or ElementTree.fromstring(file.ome_metadata or "") is not None


def test_labels_without_classes_are_exported(tmp_path: Path) -> None:
    labels = publish(tmp_path, np.full((300, 200), NODATA, np.uint8), classes=())
    for name, export in FROM_LABELS.items():
        assert export(labels, tmp_path, None, {}), name
    assert table(labels, tmp_path)[1:] == [["total", "", "0", ""], ["no data", "255", "60000", ""]]
