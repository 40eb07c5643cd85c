"""Shapes in place of masks, masks at another spacing, spatial blocks, and what would leak."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import tifffile
from affine import Affine
from labelled import CLASSES, write_data
from PIL import Image
from rasterio.features import rasterize
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box, mapping

from pipelines.config import DataRecipe
from pipelines.crops import Crops, read_padded
from pipelines.errors import RequestError
from pipelines.ground import first_overlap
from pipelines.scenes import (
    IGNORE,
    Scene,
    Split,
    check_leaks,
    class_lookup,
    find_scenes,
    held_back,
    held_before,
    split_scenes,
)
from pipelines.truth import MaskTruth, ShapeTruth
from tiling import Box, Spacing, View, open_image
from tiling.georef import Georef
from tiling.readers.array import ArraySource
from veca_core.card import ClassInfo, PixelSize

NAMED = tuple(ClassInfo.model_validate(c) for c in CLASSES)
SQUARE = Polygon([(10, 20), (50, 20), (50, 60), (10, 60)], [[(20, 30), (30, 30), (30, 40), (20, 40)]])
"""x 10..50, y 20..60 with a hole, in level-0 pixels."""


def qupath(path: Path, shapes: list[tuple[Any, Any]]) -> None:
    features = [
        {"type": "Feature", "geometry": mapping(shape), "properties": {"objectType": "annotation", **said}}
        for shape, said in shapes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """images/s.tif of 0.5 um pixels, 100 x 80, and shapes/s.geojson as QuPath writes it."""
    for name in ("images", "shapes"):
        (tmp_path / name).mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (100, 80, 3)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "images" / "s.ome.tif", pixels, photometric="rgb", tile=(64, 64),
        metadata={"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"},
    )  # fmt: skip
    (tmp_path / "images" / "s.ome.tif").rename(tmp_path / "images" / "s.tif")
    named = {"classification": {"name": "nucleus", "color": [1, 2, 3]}}
    qupath(tmp_path / "shapes" / "s.geojson", [(SQUARE, named), (SQUARE.buffer(30), {})])
    return tmp_path


def shaped(folder: Path, **changed: Any) -> DataRecipe:
    return DataRecipe.model_validate(
        {"images": folder / "images", "shapes": folder / "shapes", "elsewhere": 0, **changed}
    )


def test_a_slides_shapes_are_drawn_in_its_pixels_whatever_box_is_asked_for(slide: Path) -> None:
    (scene,) = find_scenes(shaped(slide), classes=NAMED)
    whole = scene.truth.values(scene.area)
    expected = np.zeros((100, 80), np.uint8)
    expected[20:60, 10:50] = 4
    expected[30:40, 20:30] = 0
    assert np.array_equal(whole, expected)
    for part in (Box(0, 0, 1, 1), Box(25, 15, 30, 10), Box(59, 0, 41, 80)):
        assert np.array_equal(scene.truth.values(part), expected[part.slices])


def test_what_a_shape_covers_twice_is_covered_and_what_has_no_width_is_not_drawn(slide: Path) -> None:
    named = {"classification": {"name": "nucleus"}}
    twice = MultiPolygon([box(10, 10, 30, 30), box(20, 20, 40, 40)])
    outside = Polygon([(50, 50), (60, 50), (60, 60), (50, 60)], [[(55, 52), (70, 52), (70, 58), (55, 58)]])
    spiked = Polygon([(50, 10), (60, 10), (60, 20), (70, 40), (60, 20), (50, 20)])
    qupath(slide / "shapes" / "s.geojson", [(twice, named), (outside, named), (spiked, named)])
    (scene,) = find_scenes(shaped(slide), classes=NAMED)
    expected = np.zeros((100, 80), np.uint8)
    expected[10:30, 10:30] = expected[20:40, 20:40] = expected[50:60, 50:60] = expected[10:20, 50:60] = 4
    expected[52:58, 55:60] = 0
    assert np.array_equal(scene.truth.values(scene.area), expected)


@pytest.mark.parametrize("shape", [Point(20, 20), LineString([(5, 5), (60, 60)])])
def test_points_and_lines_with_a_class_are_refused_and_others_say_nothing(slide: Path, shape: Any) -> None:
    named = {"classification": {"name": "nucleus"}}
    qupath(slide / "shapes" / "s.geojson", [(SQUARE, named), (shape, {})])
    (scene,) = find_scenes(shaped(slide), classes=NAMED)
    assert (scene.truth.values(scene.area) == 4).sum() == SQUARE.area
    qupath(slide / "shapes" / "s.geojson", [(SQUARE, named), (shape, named)])
    with pytest.raises(RequestError, match="1 points or lines with a class"):
        find_scenes(shaped(slide), classes=NAMED)


def test_a_class_within_a_class_is_named_as_qupath_shows_it(slide: Path) -> None:
    qupath(slide / "shapes" / "s.geojson", [(SQUARE, {"classification": {"names": ["nucleus", "Positive"]}})])
    with pytest.raises(RequestError, match="'nucleus: Positive'"):
        find_scenes(shaped(slide), classes=NAMED)
    within = (*NAMED, ClassInfo(value=7, name="nucleus: Positive", color="#000000"))
    (scene,) = find_scenes(shaped(slide), classes=within)
    assert (scene.truth.values(scene.area) == 7).sum() == SQUARE.area


def test_a_later_shape_covers_those_before_it_and_bounds_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = np.array([box(x, 0, x + 10, 10) for x in range(50)], dtype=object)
    truth = ShapeTruth("a", shapes, np.arange(1, 51, dtype=np.uint8), 0)
    monkeypatch.delattr("shapely.bounds")
    row = np.minimum(np.arange(60) + 1, 50)
    row[59] = 0
    for part in (Box(0, 0, 12, 60), Box(3, 20, 4, 5), Box(9, 55, 3, 5)):
        expected = np.where((np.arange(12) < 10)[:, None], row, 0)[part.slices]
        assert np.array_equal(pickle.loads(pickle.dumps(truth)).values(part), expected)


def test_shapes_and_masks_follow_the_view_to_another_spacing(slide: Path) -> None:
    (scene,) = find_scenes(shaped(slide), classes=NAMED, spacing=PixelSize(value=1.0, unit="um"))
    assert (scene.area.height, scene.area.width) == (50, 40)
    expected = np.zeros((50, 40), np.uint8)
    expected[10:30, 5:25] = 4
    expected[15:20, 10:15] = 0
    assert np.array_equal(scene.truth.values(scene.area), expected)
    view = View.open(open_image(slide / "images" / "s.tif"), Spacing(1.0, 1.0, "um"))
    full = np.zeros((100, 80), np.uint8)
    full[20:60, 10:50] = 4
    full[30:40, 20:30] = 0
    mask = MaskTruth(ArraySource(full), view)
    assert np.array_equal(mask.values(view.size.box), expected)
    assert np.array_equal(mask.values(Box(7, 3, 20, 30)), expected[7:27, 3:33])


def test_crops_of_a_resampled_slide_show_image_and_shapes_at_the_models_spacing(slide: Path) -> None:
    (scene,) = find_scenes(shaped(slide), classes=NAMED, spacing=PixelSize(value=1.0, unit="um"))
    lookup = class_lookup([0, 4, 9], ())
    image, mask = read_padded(scene, lookup, (0.0, 0.0, 0.0), -10, -10, 70)
    assert np.array_equal(image[10:60, 10:50], scene.view.read(scene.area))
    assert (mask[:10] == IGNORE).all()
    assert (mask[10:60, 10:50] == lookup[scene.truth.values(scene.area)]).all()


@pytest.mark.parametrize("ending", [".gpkg", ".geojson"])
def test_a_layer_in_another_crs_is_brought_to_its_raster(tmp_path: Path, ending: str) -> None:
    (tmp_path / "images").mkdir()
    transform = write_raster(tmp_path / "images" / "r.tif", 500_000)
    shape = Polygon([(500_005, 5_000_045), (500_030, 5_000_045), (500_030, 5_000_020), (500_005, 5_000_020)])
    layer = geopandas.GeoDataFrame({"kind": ["rare"], "geometry": [shape]}, crs="EPSG:32633").to_crs("EPSG:4326")
    layer.to_file(tmp_path / f"layer{ending}")
    data = {"shapes": tmp_path / f"layer{ending}", "attribute": "kind"}
    (scene,) = find_scenes(shaped(tmp_path, **data), classes=NAMED)
    expected = rasterize([(shape, 9)], (100, 100), transform=transform, dtype="uint8")
    assert (scene.truth.values(scene.area) == expected).mean() > 0.995
    with pytest.raises(RequestError, match=r"has no attribute 'sort'; name the one"):
        find_scenes(shaped(tmp_path, **{**data, "attribute": "sort"}), classes=NAMED)


def test_of_several_layers_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_raster(tmp_path / "images" / "r.tif", 500_000)
    place = tmp_path / "layer.gpkg"
    for name, left in (("roads", 500_005), ("parks", 500_030)):
        shape = box(left, 5_000_020, left + 10, 5_000_045)
        frame = geopandas.GeoDataFrame({"class": ["rare"], "geometry": [shape]}, crs="EPSG:32633")
        frame.to_file(place, layer=name)
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), place, layer="layer_styles")
    with pytest.raises(RequestError, match=r"has 2 layers of shapes; name one as data.layer: roads, parks"):
        find_scenes(shaped(tmp_path, shapes=place), classes=NAMED)
    with pytest.raises(RequestError, match=r"has no layer 'lakes'; name one as data.layer: roads, parks"):
        find_scenes(shaped(tmp_path, shapes=place, layer="lakes"), classes=NAMED)
    for name, column in (("roads", 20), ("parks", 70)):
        (scene,) = find_scenes(shaped(tmp_path, shapes=place, layer=name), classes=NAMED)
        assert np.flatnonzero((scene.truth.values(scene.area) == 9).any(axis=0)).mean() == pytest.approx(column, abs=1)


def test_of_what_qupath_ignores_nothing_is_known(tmp_path: Path) -> None:
    write_data(tmp_path, 1)
    (tmp_path / "shapes").mkdir()
    shapes = ((box(0, 0, 40, 40), "rare"), (box(10, 10, 20, 20), "Ignore*"), (None, "rare"))
    features = [
        {"geometry": mapping(shape) if shape else None, "properties": {"classification": {"name": name}}}
        for shape, name in shapes
    ]
    (tmp_path / "shapes" / "case0_0.geojson").write_text(json.dumps({"features": features}))
    (scene,) = find_scenes(shaped(tmp_path), classes=NAMED)
    values = scene.truth.values(scene.area)
    assert (values[10:20, 10:20] == IGNORE).all()
    assert (values == 9).sum() == 1600 - 100
    named = [*NAMED, ClassInfo(value=3, name="Ignore*", color="#000000")]
    (scene,) = find_scenes(shaped(tmp_path), classes=named)
    assert (scene.truth.values(scene.area)[10:20, 10:20] == 3).all()


def test_qupaths_shapes_have_no_layers(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "shapes").mkdir()
    for path in (tmp_path / "images").iterdir():
        (tmp_path / "shapes" / f"{path.stem}.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(RequestError, match=r"has no layers, as QuPath writes it; leave data.layer out"):
        find_scenes(shaped(tmp_path, layer="roads"), classes=NAMED)


def write_raster(path: Path, left: float, crs: str = "EPSG:32633", side: float = 0.5) -> Affine:
    """100 x 100 pixels of `side` from x `left` and y 5,000,050 down."""
    transform = Affine(side, 0, left, 0, -side, 5_000_050)
    with rasterio.open(
        path, "w", driver="GTiff", width=100, height=100, count=3, dtype="uint8", crs=crs, transform=transform
    ) as file:
        file.write(np.random.default_rng(int(left)).integers(0, 255, (3, 100, 100), np.uint8))
    return transform


def write_layer(path: Path, shapes: list[Any], crs: str = "EPSG:32633") -> Path:
    """Shapes of the class 'rare', brought into WGS 84."""
    layer = geopandas.GeoDataFrame({"class": ["rare"] * len(shapes), "geometry": shapes}, crs=crs)
    layer.to_crs("EPSG:4326").to_file(path)
    return path


def test_a_layer_for_all_rasters_may_miss_some_of_them_but_not_all(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, left in (("a", 500_000), ("b", 500_050), ("c", 800_000)):
        write_raster(tmp_path / "images" / f"{name}.tif", left)
    shapes = [box(500_005, 5_000_020, 500_030, 5_000_045), box(500_040, 5_000_020, 500_045, 5_000_045)]
    data = shaped(tmp_path, shapes=write_layer(tmp_path / "layer.gpkg", shapes))
    scenes = find_scenes(data, classes=NAMED)
    assert [set(np.unique(scene.truth.values(scene.area))) for scene in scenes] == [{0, 9}, {0}, {0}]
    assert [len(scene.truth.shapes) for scene in scenes if isinstance(scene.truth, ShapeTruth)] == [2, 0, 0]
    (tmp_path / "images" / "a.tif").unlink()
    with pytest.raises(RequestError, match=r"no shape of .* that has a class touches any of the 2 image\(s\)"):
        find_scenes(data, classes=NAMED)
    (tmp_path / "shapes").mkdir()
    for name in "bc":
        write_layer(tmp_path / "shapes" / f"{name}.gpkg", shapes)
    with pytest.raises(RequestError, match=r"no shape of .*b\.gpkg touches .*b\.tif"):
        find_scenes(shaped(tmp_path), classes=NAMED)


def test_a_shape_where_the_projection_does_not_hold_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with rasterio.open(
        tmp_path / "images" / "mercator.tif", "w", driver="GTiff", width=100, height=100, count=1, dtype="uint8",
        crs="EPSG:3857", transform=Affine(400_000, 0, -20_000_000, 0, -400_000, 20_000_000),
    ) as file:  # fmt: skip
        file.write(np.ones((1, 100, 100), np.uint8))
    shapes = [box(10, 10, 40, 40), box(0, -90, 40, -89.9)]
    geopandas.GeoDataFrame({"class": ["rare"] * 2, "geometry": shapes}, crs="EPSG:4326").to_file(
        tmp_path / "layer.gpkg"
    )
    (scene,) = find_scenes(shaped(tmp_path, shapes=tmp_path / "layer.gpkg"), classes=NAMED)
    assert (scene.truth.values(scene.area) == 9).any()


def test_a_raster_beyond_what_the_crs_of_a_layer_covers_finds_all_its_shapes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    whole_world = Affine(3.6, 0, -180, 0, -1.8, 90)
    with rasterio.open(
        tmp_path / "images" / "world.tif", "w", driver="GTiff", width=100, height=100, count=1, dtype="uint8",
        crs="EPSG:4326", transform=whole_world,
    ) as file:  # fmt: skip
        file.write(np.ones((1, 100, 100), np.uint8))
    shape = box(100_000, 5_000_000, 400_000, 5_500_000)
    geopandas.GeoDataFrame({"class": ["rare"], "geometry": [shape]}, crs="EPSG:32633").to_file(tmp_path / "layer.gpkg")
    (scene,) = find_scenes(shaped(tmp_path, shapes=tmp_path / "layer.gpkg"), classes=NAMED)
    assert (scene.truth.values(scene.area) == 9).any()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no GeoJSON of shapes"),
        ("{}", "is no GeoJSON of shapes"),
        ('{"features": [{"geometry": {"type": "Blob"}}]}', "is no GeoJSON of shapes"),
        ("far", r"no shape of .* touches .*; are they of another image"),
        ("foreign", r"holds the classes \['tumour'\], but the recipe names \['background'"),
    ],
)
def test_shapes_that_do_not_fit_are_named(slide: Path, content: str, reason: str) -> None:
    path = slide / "shapes" / "s.geojson"
    if content == "far":
        qupath(path, [(Polygon([(900, 900), (950, 900), (950, 950)]), {"classification": {"name": "rare"}})])
    elif content == "foreign":
        qupath(path, [(SQUARE, {"classification": {"name": "tumour"}})])
    else:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match=reason) as caught:
        find_scenes(shaped(slide), classes=NAMED)
    assert "\n" not in str(caught.value)


def test_an_image_without_shapes_is_named(slide: Path) -> None:
    (slide / "shapes" / "s.geojson").rename(slide / "shapes" / "t.geojson")
    with pytest.raises(RequestError, match="has no shapes: expected"):
        find_scenes(shaped(slide), classes=NAMED)


# Spatial blocks, and what would leak.


def test_one_large_image_is_split_by_blocks_and_no_crop_reaches_into_another(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    y, x = np.mgrid[:300, :360]
    block = (y // 100 * 4 + x // 100).astype(np.uint8)
    Image.fromarray(np.stack([block * 10] * 3, axis=-1)).save(tmp_path / "images" / "one.png")
    Image.fromarray(np.minimum(block, 1)).save(tmp_path / "masks" / "one.png")
    data = DataRecipe(images=tmp_path / "images", masks=tmp_path / "masks", blocks=100)
    scenes = find_scenes(data)
    assert len(scenes) == 12
    assert sum(scene.area.pixels for scene in scenes) == 300 * 360
    split = split_scenes(scenes, data)
    assert len(split.validation) == 2
    for one in split.train:
        for top, left in ((one.area.y - 40, one.area.x - 40), (one.area.bottom - 5, one.area.x)):
            image, _ = read_padded(one, class_lookup([0, 1], ()), (0, 0, 0), top, left, 60)
            assert len(np.unique(image)) == 1


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(130, 96, [64, 66], [64, 32]), (40, 95, [40], [95]), (64, 200, [64], [64, 64, 72])],
)
def test_squares_at_the_edges_are_no_strips(
    tmp_path: Path, height: int, width: int, rows: list[int], columns: list[int]
) -> None:
    for name, shape in (("images", (height, width, 3)), ("masks", (height, width))):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / name / "a.png")
    scenes = find_scenes(DataRecipe(images=tmp_path / "images", masks=tmp_path / "masks", blocks=64))
    seen = np.zeros((height, width), int)
    for scene in scenes:
        seen[scene.area.slices] += 1
    assert (seen == 1).all()
    assert [(s.area.height, s.area.width) for s in scenes] == [(h, w) for h in rows for w in columns]


def test_blocks_of_images_of_one_group_stay_together(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    recipe = DataRecipe(images=data / "images", masks=data / "masks", blocks=64)
    grouped = recipe.model_copy(update={"group": "(case[0-9])"})
    apart, together = (find_scenes(made) for made in (recipe, grouped))
    assert [scene.name for scene in apart] == [scene.name for scene in together]
    assert [scene.group for scene in apart] == [scene.name for scene in apart]
    assert [scene.group for scene in together] == [scene.name.partition("_")[0] for scene in together]
    assert {scene.group for scene in split_scenes(together, grouped).train} == {"case0", "case1"}
    alone = recipe.model_copy(update={"group": "(case)"})
    with pytest.raises(RequestError, match=r"two groups at least are needed, and without data\.group each"):
        split_scenes(find_scenes(alone), alone)


def test_of_many_groups_held_back_every_one_counts() -> None:
    pixels = ArraySource(np.zeros((1, 1), np.uint8))
    scenes = [Scene.whole(f"{i:02}", f"{i:02}", pixels, pixels) for i in range(30)]
    assert held_back(scenes[:20]) == f"held back: {', '.join(f'{i:02}' for i in range(20))}"
    told = [held_back(scenes[:25]), held_back([*scenes[:24], scenes[29]]), held_back(scenes[24::-1])]
    assert told[0] != told[1]
    assert told[0] == told[2]
    assert told[0].startswith("held back: 00, 01, ")
    assert " and 5 more (" in told[0]


@pytest.mark.parametrize(
    ("before", "held", "told"),
    [
        ("held back: 0, 1", "held back: 0, 1", ""),
        ("held back: 0, 1", "held back: 1", ""),
        ("held back: 0, 1", "held back: 1, 2", "0, 1"),
        ("held back: 0, elsewhere", "held back: 2", "0"),
        ("held back: elsewhere", "held back: 2", ""),
        ("", "held back: 2", ""),
        ("held back: 0, in squares of 64 px", "held back: 0, in squares of 128 px", "0"),
    ],
)
def test_what_a_model_may_have_learned_from_is_known_by_the_groups_it_kept(before: str, held: str, told: str) -> None:
    pixels = ArraySource(np.zeros((1, 1), np.uint8))
    assert held_before(before, held, [Scene.whole(name, name, pixels, pixels) for name in "012"]) == told


def test_the_same_file_under_two_names_does_not_slip_through(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for folder in ("images", "masks"):
        (data / folder / "case2_0.png").write_bytes((data / folder / "case0_0.png").read_bytes())
    recipe = DataRecipe(images=data / "images", masks=data / "masks", group="(case[0-9])", validate_on=("case2",))
    with pytest.raises(RequestError, match=r"case2_0.png is held back and .*case0_0.png is learned from"):
        split_scenes(find_scenes(recipe), recipe)


def test_a_copy_in_another_format_does_not_slip_through_and_blank_images_are_no_copies(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    pixels = np.array(Image.open(data / "images" / "case0_0.png"))
    (data / "images" / "case2_0.png").unlink()
    copy = data / "images" / "case2_0.tif"
    recipe = DataRecipe(images=data / "images", masks=data / "masks", group="(case[0-9])", validate_on=("case2",))
    (data / "masks" / "case2_0.png").write_bytes((data / "masks" / "case0_0.png").read_bytes())
    tifffile.imwrite(copy, pixels)
    with pytest.raises(RequestError, match=r"case2_0.tif is held back and .*case0_0.png is learned from"):
        split_scenes(find_scenes(recipe), recipe)
    pixels[0, 0] ^= 1
    tifffile.imwrite(copy, pixels)
    split_scenes(find_scenes(recipe), recipe)
    tifffile.imwrite(copy, np.full_like(pixels, 255))
    Image.fromarray(np.full_like(pixels, 255)).save(data / "images" / "case0_0.png")
    split_scenes(find_scenes(recipe), recipe)


def test_a_copy_with_pixels_that_are_no_numbers_does_not_slip_through(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((40, 40, 1), np.float32)
    pixels[:3] = np.nan
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels[..., 0], compression=None if name == "a" else "deflate")
    mask = ArraySource(np.zeros((40, 40), np.uint8))
    a, b = (Scene.whole(name, name, open_image(tmp_path / f"{name}.tif"), mask) for name in "ab")
    with pytest.raises(RequestError, match="they are the same image"):
        check_leaks(Split((a,), (b,)))


def test_of_very_many_squares_those_that_overlap_are_found() -> None:
    grid = [
        (Georef(Affine(1, 0, 10.0 * x, 0, -1, 10.0 * y), "crs", "EPSG:32633"), Box(0, 0, 10, 10))
        for y in range(60)
        for x in range(60)
    ]
    assert first_overlap(grid[::2], grid[1::2]) is None
    shifted = (Georef(Affine(1, 0, 305.0, 0, -1, 300.0), "crs", "EPSG:32633"), Box(0, 0, 10, 10))
    found = first_overlap([*grid[::2], shifted], grid[1::2])
    assert found is not None
    assert found[0] == 1800


@pytest.mark.parametrize(
    ("crs", "left", "leaks"),
    [
        ("EPSG:32633", 263_579, True),
        ("EPSG:32633", 263_580, False),
        ("EPSG:32633", 263_610, False),
        ("EPSG:32632", 736_430, True),
        ("EPSG:32632", 736_500, False),
    ],
)
def test_rasters_that_overlap_on_the_ground_are_not_split(tmp_path: Path, crs: str, left: float, leaks: bool) -> None:
    """One raster of 50 m at 12 degrees east, where zones 32 and 33 meet, and one beside it."""
    scenes = []
    for name, zone, west in (("a", "EPSG:32633", 263_530.0), ("b", crs, left)):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", width=100, height=100, count=1, dtype="uint8", crs=zone,
            transform=Affine(0.5, 0, west, 0, -0.5, 4_987_350),
        ) as file:  # fmt: skip
            file.write(np.full((1, 100, 100), len(scenes), np.uint8))
        image = open_image(tmp_path / f"{name}.tif")
        scenes.append(Scene.whole(name, name, image, image))
    recipe = DataRecipe(images=tmp_path, masks=tmp_path, validate_on=("b",))
    if leaks:
        with pytest.raises(RequestError, match="b is held back and a is learned from, but they overlap"):
            split_scenes(tuple(scenes), recipe)
    else:
        check_leaks(split_scenes(tuple(scenes), recipe))


def test_border_sampling_centres_crops_where_classes_meet() -> None:
    from pipelines.augment import Augment
    from pipelines.config import AugmentRecipe

    classes = np.zeros((200, 200), np.uint8)
    classes[:, 100:] = 1
    one = Scene.whole("a", "a", ArraySource(np.zeros((200, 200, 3), np.uint8)), ArraySource(classes))
    still = Augment(AugmentRecipe(zoom=0, rotate=0, color=0, blur=0), 32)
    far = []
    for border in (0.0, 1.0):
        crops = Crops((one,), class_lookup([0, 1], ()), (0, 0, 0), still, 1.0, 0, border)
        rng = np.random.default_rng(0)
        far.append(np.mean([abs(crops._draw_centre(rng)[2] - 99.5) for _ in range(100)]))
    assert far[0] > 30
    assert far[1] < 5
