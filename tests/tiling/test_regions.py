"""Regions are the mask in another form: GDAL, GEOS and pandas read them, and drawing them gives the mask back."""

from __future__ import annotations

import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_images import CLASSES, SLIDE, publish, random_labels
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.measure import label as components
from skimage.measure import regionprops_table

from tiling.errors import ImageError
from tiling.exports import EXPORTS, areas
from tiling.exports.joining import Joiner, Region
from tiling.exports.outlines import outlines
from tiling.exports.region_files import REGION_EXPORTS
from tiling.exports.regions import Amount, RegionWishes, find_regions
from tiling.geometry import Size
from tiling.georef import Georef, Spacing
from tiling.grid import blocks
from tiling.labels import NODATA, Labels

Mask = NDArray[np.uint8]
UTM = Georef(Affine(0.5, 0, 400000.25, 0, -0.5, 5000000.75), "crs", pyproj.CRS.from_epsg(32633).to_wkt())
MASKS = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([0, 1, 7, NODATA])
)
PLACES = {
    "UTM": UTM,
    "degrees": Georef(Affine(1e-3, 0, 12.1, 0, -1e-3, 68.2), "crs", "EPSG:4326"),
    "south up": Georef(Affine(0.5, 0, 400000, 0, 0.5, 5000000), "crs", "EPSG:32633"),
    "rotated": Georef(Affine(0.4, 0.3, 4e5, 0.3, -0.4, 5e6), "crs", "EPSG:32633"),
    "polar": Georef(Affine(3000, 0, -2e6, 0, -3000, 1e6), "crs", "EPSG:3413"),
}


def joined(mask: Mask, side: int, tolerance: float = 0.0) -> list[Region]:
    """The regions of a mask that is looked at in blocks."""
    joiner = Joiner(Size(*mask.shape), io.BytesIO(), exact=not tolerance)
    found: list[Region] = []
    for box in blocks(Size(*mask.shape), side):
        found += joiner.add(box, outlines(mask[box.slices], box, tolerance))
    return [*found, *joiner.finish()]


def polygon(region: Region) -> shapely.Polygon:
    return shapely.Polygon(region.shell, list(region.holes))


def drawn(found: list[tuple[Any, int]], shape: tuple[int, int], place: Affine | None = None) -> Mask:
    """Polygons burnt into a mask by GDAL; no data where there is none."""
    if not found:
        return np.full(shape, NODATA, np.uint8)
    place = place or Affine.identity()
    result: Mask = rasterio.features.rasterize(found, shape, fill=NODATA, transform=place, dtype=np.uint8)
    return result


def whole(mask: Mask) -> list[tuple[str, int]]:
    """What GDAL makes of the mask in one piece."""
    found = rasterio.features.shapes(mask, mask=mask != NODATA, connectivity=4)
    return sorted((shapely.normalize(shapely.geometry.shape(shape)).wkt, int(value)) for shape, value in found)


@settings(max_examples=200)
@given(MASKS, st.integers(1, 8))
@example(np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]], np.uint8), 2)
@example(np.ones((9, 9), np.uint8), 2)
def test_regions_of_blocks_are_those_of_the_whole_mask(mask: Mask, side: int) -> None:
    found = joined(mask, side)
    polygons = [polygon(region) for region in found]
    assert shapely.is_valid(polygons).all()
    assert sorted((shapely.normalize(p).wkt, r.value) for p, r in zip(polygons, found, strict=True)) == whole(mask)
    np.testing.assert_array_equal(drawn([(p, r.value) for p, r in zip(polygons, found, strict=True)], mask.shape), mask)


@pytest.mark.parametrize("side", [11, 64, 101, 512])
def test_large_shapes_are_joined_over_many_blocks(side: int) -> None:
    """A spiral, rings in rings, and noise, which touch themselves and each other in every way."""
    y, x = np.mgrid[-150:150, -160:141]
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    noise = gaussian_filter(np.random.default_rng(3).random(radius.shape), 2) > 0.5
    for mask in (np.sin(radius / 4 + angle) > 0, (radius // 7) % 2 == 1, noise):
        values = np.where(mask, np.uint8(1), np.uint8(7))
        values[radius > 145] = NODATA
        found = joined(values, side)
        polygons = [polygon(region) for region in found]
        assert sorted((shapely.normalize(p).wkt, r.value) for p, r in zip(polygons, found, strict=True)) == whole(
            values
        )


@settings(max_examples=100)
@given(MASKS, st.integers(2, 8), st.floats(0.5, 4))
def test_simplified_regions_are_valid_and_leave_no_gaps(mask: Mask, side: int, tolerance: float) -> None:
    filled = np.where(mask == NODATA, np.uint8(9), mask)
    found = joined(filled, side, tolerance)
    polygons = np.array([polygon(region) for region in found])
    assert len(found) == len(whole(filled)), "no region is lost"
    assert shapely.is_valid(polygons).all()
    # Nothing overlaps and nothing is left open.
    assert shapely.area(polygons).sum() == mask.size
    assert shapely.equals(shapely.union_all(polygons), shapely.box(0, 0, *mask.shape[::-1]))


def test_a_tolerance_leaves_out_corners_and_moves_no_border_farther() -> None:
    y, x = np.mgrid[:300, :300]
    mask = np.where(np.hypot(y - 150, x - 140) < 100, np.uint8(1), np.uint8(0))
    exact, simple = ([polygon(r) for r in joined(mask, 128, t) if r.value == 1] for t in (0.0, 1.5))
    assert shapely.get_num_coordinates(simple[0]) < shapely.get_num_coordinates(exact[0]) / 3
    assert shapely.hausdorff_distance(simple[0].exterior, exact[0].exterior) < 3
    assert simple[0].area == pytest.approx(exact[0].area, rel=0.01)


VALUES = random_labels(901, 703, smooth=13)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiling.exports.regions.SIDE", 128)


def raster(folder: Path, georef: Georef = UTM, values: Mask = VALUES) -> Labels:
    return publish(folder, values, georef=georef, kind="raster", name="tile 1")


def features(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text(encoding="ascii"))
    assert document["type"] == "FeatureCollection"
    return list(document["features"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_qupath_is_given_classes_colours_and_pixels_of_the_slide(tmp_path: Path) -> None:
    """As QuPath documents it: feature id a UUID, objectType, classification with name and colour, measurements."""
    labels = publish(tmp_path, VALUES, scale=(2.0, 2.0))
    paths = EXPORTS["regions"](labels, tmp_path, None, {"VECA_MODEL": "nuclei"})
    assert [path.name for path in paths] == ["regions.geojson", "regions.csv"]
    found = features(tmp_path / "regions.geojson")
    names = {c.name: c for c in CLASSES}
    for feature in found:
        about = feature["properties"]
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        assert about["objectType"] == "annotation"
        assert tuple(about["classification"]["color"]) == names[about["classification"]["name"]].color
        assert set(about["measurements"]) == {"Area µm^2", "Perimeter µm"}
    shapes = [(f["geometry"], names[f["properties"]["classification"]["name"]].value) for f in found]
    np.testing.assert_array_equal(drawn(shapes, VALUES.shape, Affine.scale(2)), VALUES)
    # GDAL reads it too.
    assert pyogrio.read_info(tmp_path / "regions.geojson")["features"] == len(found) == len(whole(VALUES))


def test_detections_a_class_a_least_area_and_a_tolerance_can_be_asked_for(tmp_path: Path) -> None:
    labels = publish(tmp_path, VALUES)
    wishes = RegionWishes(Amount.length("2px"), Amount.area("50um2"), ("stroma",), "detection")
    REGION_EXPORTS["geojson"](labels, tmp_path, None, {}, wishes)
    found = features(tmp_path / "regions.geojson")
    assert {f["properties"]["objectType"] for f in found} == {"detection"}
    assert {f["properties"]["classification"]["name"] for f in found} == {"stroma"}
    sizes = [shapely.geometry.shape(f["geometry"]).area * 0.125 for f in found]
    assert min(sizes) >= 50
    assert max(sizes) == pytest.approx(max(f["properties"]["measurements"]["Area µm^2"] for f in found))


def test_a_bounded_slide_keeps_its_offset_unless_asked_otherwise(tmp_path: Path) -> None:
    """Its reader crops to the bounds, 1000 rows and 600 columns from the slide's corner; the mask's are 2 x 2."""
    georef = SLIDE.shifted(1000, 600).scaled(2, 2)
    labels = publish(tmp_path, VALUES, georef=georef, scale=(2.0, 2.0))
    starts = {}
    for origin in ("slide", "bounds"):
        REGION_EXPORTS["geojson"](labels, tmp_path, None, {}, RegionWishes(origin=origin))  # type: ignore[arg-type]
        shapes = [shapely.geometry.shape(f["geometry"]) for f in features(tmp_path / "regions.geojson")]
        starts[origin] = shapely.total_bounds(shapes).tolist()
    inside = np.argwhere(VALUES != NODATA)
    (top, left), (bottom, right) = inside.min(0) * 2, (inside.max(0) + 1) * 2
    assert starts["bounds"] == [left, top, right, bottom]
    assert starts["slide"] == [left + 600, top + 1000, right + 600, bottom + 1000]


@pytest.mark.parametrize("place", PLACES)
def test_maps_are_given_regions_in_the_rasters_own_crs(tmp_path: Path, place: str) -> None:
    labels = raster(tmp_path, PLACES[place])
    for name, file in {"geopackage": "regions.gpkg", "geoparquet": "regions.parquet"}.items():
        assert EXPORTS[name](labels, tmp_path, None, {"VECA_MODEL": "x"}) == [tmp_path / file]
        frame = (geopandas.read_parquet if name == "geoparquet" else geopandas.read_file)(tmp_path / file)
        assert frame.crs == pyproj.CRS.from_user_input(labels.georef.crs)
        assert frame.geometry.is_valid.all()
        assert frame.geometry.exterior.is_ccw.all()
        shapes = list(zip(frame.geometry, frame["value"], strict=True))
        np.testing.assert_array_equal(drawn(shapes, VALUES.shape, labels.georef.transform), VALUES)
        assert frame["id"].is_unique
        assert set(frame["class"]) == {"background", "tumör <1>", "stroma"}


@pytest.mark.parametrize("place", PLACES)
def test_areas_and_perimeters_are_those_on_the_ellipsoid(tmp_path: Path, place: str) -> None:
    labels = raster(tmp_path, PLACES[place])
    EXPORTS["geoparquet"](labels, tmp_path, None, {})
    frame = (
        geopandas.read_parquet(tmp_path / "regions.parquet").sort_values("pixels").iloc[[0, 1, len(VALUES) // 4, -1]]
    )
    crs = pyproj.CRS.from_user_input(labels.georef.crs)
    there = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    for row in frame.itertuples():
        fine = shapely.segmentize(row.geometry, 5 * abs(labels.georef.transform.a))
        area, length = crs.get_geod().geometry_area_perimeter(
            shapely.transform(fine, there.transform, interleaved=False)
        )
        assert row.area_m2 == pytest.approx(abs(area), rel=1e-5, abs=0.05)  # Geod: to 0.1 m2 a corner
        assert row.area_ha == pytest.approx(row.area_m2 / 1e4)
        assert row.perimeter_m == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("georef", [SLIDE, *PLACES.values()], ids=["slide", *PLACES])
def test_the_regions_areas_sum_to_those_of_the_classes(tmp_path: Path, georef: Georef) -> None:
    labels = raster(tmp_path, georef)
    sums = {c.value: [0.0, 0.0] for c in CLASSES}
    for region in find_regions(labels, tmp_path):
        sums[region.label.value][0] += region.pixels
        sums[region.label.value][1] += region.area or 0
    for row in areas(labels):
        assert sums[row.value][0] == row.pixels == (row.value == VALUES).sum()
        assert sums[row.value][1] == pytest.approx(row.area, rel=1e-9)


def test_the_table_has_a_row_a_region_measured_as_scikit_image_does(tmp_path: Path) -> None:
    labels = publish(tmp_path, VALUES, scale=(1.0, 1.0), georef=Georef.micrometres(Spacing.square(0.5, "um")))
    EXPORTS["regions"](labels, tmp_path, None, {})
    table = rows(tmp_path / "regions.csv")
    assert [row["id"] for row in table] == [f["id"] for f in features(tmp_path / "regions.geojson")]
    numbered = components(VALUES.astype(np.int32), connectivity=1, background=NODATA)
    theirs = regionprops_table(numbered, properties=("area", "centroid"))
    expected = sorted(zip(theirs["area"], theirs["centroid-0"] + 0.5, theirs["centroid-1"] + 0.5, strict=True))
    ours = sorted((float(r["pixels"]), float(r["row"]), float(r["column"])) for r in table)
    np.testing.assert_allclose(ours, expected, atol=0.006)
    for row in table:
        assert float(row["um2"]) == pytest.approx(float(row["pixels"]) * 0.25)
        assert float(row["x"]) == pytest.approx(float(row["column"]) * 0.5, abs=0.01)
    square = next(r for r in table if r["pixels"] == "169")
    assert float(square["perimeter_um"]) == pytest.approx(4 * 13 * 0.5)


@pytest.mark.parametrize("name", ["geojson", "geopackage", "geoparquet"])
@pytest.mark.parametrize("values", [np.full((40, 30), NODATA, np.uint8), np.zeros((1, 1), np.uint8)])
def test_a_mask_of_nothing_or_of_one_pixel_is_exported(tmp_path: Path, name: str, values: Mask) -> None:
    (path,) = EXPORTS[name](raster(tmp_path, UTM, values), tmp_path, None, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        frame = geopandas.read_parquet(path) if name == "geoparquet" else geopandas.read_file(path)
    assert len(frame) == (0 if values[0, 0] == NODATA else 1)


def test_regions_hold_only_the_row_of_blocks_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region is given out when the row below it is known, not at the end."""
    labels = publish(tmp_path, random_labels(1024, 512, smooth=9))
    lowest = 0
    read = Labels.read

    def spy(self: Labels, box: Any, level: int = 0) -> Mask:
        nonlocal lowest
        lowest = max(lowest, box.bottom)
        return read(self, box, level)

    monkeypatch.setattr(Labels, "read", spy)
    late = [lowest - region.region.shell[:, 1].max() for region in find_regions(labels, tmp_path)]
    assert len(late) > 1000
    assert max(late) <= 4 * 128


def test_wishes_that_cannot_be_fulfilled_are_one_line(tmp_path: Path) -> None:
    labels = publish(tmp_path, VALUES[:20, :20], georef=Georef.pixels())
    for wishes, words in {
        RegionWishes(only=("tumour",)): "there is no class 'tumour'; the classes are background",
        RegionWishes(least=Amount.area("1ha")): "nothing is known about the size of a pixel",
        RegionWishes(tolerance=Amount.length("1um")): "nothing is known about the size of a pixel",
    }.items():
        with pytest.raises(ImageError, match=words):
            REGION_EXPORTS["geojson"](labels, tmp_path, None, {}, wishes)
    assert {p.name for p in tmp_path.iterdir()} == {"labels.zarr"}
    for text in ("", "5", "px", "-1px", "1 parsec", "1e3px", "1um"):
        with pytest.raises(ValueError, match="cannot read"):
            Amount.area(text)
