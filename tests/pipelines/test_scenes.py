"""Recipes and labelled images: paired, checked and split so that nothing leaks; anything odd is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from labelled import CLASSES, VALUES, recipe, write_data, write_recipe
from PIL import Image

from pipelines.config import DataRecipe, read_data, read_recipe
from pipelines.errors import RequestError
from pipelines.ground import alike
from pipelines.scenes import IGNORE, Scene, check_masks, class_lookup, find_scenes, split_scenes
from tiling import ImageError, Size
from tiling.georef import Georef
from tiling.readers.array import ArraySource


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def refused(path: Path, part: str = "") -> str:
    """The one line with which a recipe, or its data, is refused."""

    def use() -> None:
        read = read_recipe(path)
        scenes = find_scenes(read.data)
        check_masks(scenes, [c.value for c in read.classes], read.data.ignore)
        split_scenes(scenes, read.data)

    with pytest.raises(RequestError) as caught:
        use()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert part in message
    return message


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"schedule": {"stepz": 3}}, "schedule.stepz: Extra inputs"),
        ({"schedule": {"steps": 0}}, "schedule.steps: "),
        ({"schedule": {"steps": "many"}}, "schedule.steps: "),
        ({"name": "a/b"}, "name: "),
        ({"classes": CLASSES[:1]}, "training needs at least two classes"),
        ({"classes": [CLASSES[0], {**CLASSES[1], "value": 0}]}, "two classes share a value: "),
        ({"classes": [CLASSES[0], {**CLASSES[1], "name": "background"}]}, "two classes share a name: "),
        ({"classes": [CLASSES[0], {**CLASSES[1], "value": 255}]}, "classes.1.value: "),
        ({"classes": [CLASSES[0], {**CLASSES[1], "color": "blue"}]}, "a colour is written #RRGGBB, got 'blue'"),
        ({"augment": {"scale": [2, 1]}}, "scale is two positive numbers, small then large"),
        ({"store": "int8"}, "store: "),
        ({"data": {"images": "images", "masks": "masks", "ignore": [300]}}, "data.ignore.0: "),
        (
            {"data": {"images": "images", "masks": "masks", "ignore": [4]}},
            "the mask values [4] are classes and ignored",
        ),
        ({"data": {"images": "images", "masks": "masks", "group": "(case"}}, "data.group: "),
        ({"data": {"images": "images"}}, "data: give either masks or shapes"),
        ({"bands": {"names": ["x"], "mean": [0], "std": [0]}}, "deviations positive"),
        ({"window": 8}, "window: "),
    ],
)
def test_a_wrong_recipe_says_where(data: Path, changed: dict[str, Any], reason: str) -> None:
    path = write_recipe(data, **changed)
    assert refused(path, reason).startswith(str(path))


@pytest.mark.parametrize("text", [b"", b"- a\n- b\n", b"name: [", b"\xff\xfe\x00a", b"name: \x00", b"just words"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text)
    refused(tmp_path / "recipe.yaml", str(tmp_path / "recipe.yaml"))


def test_paths_in_a_recipe_are_relative_to_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    read = read_recipe(Path("data") / write_recipe(data, network={"pretrained": "other"}).name)
    assert (read.data.images, read.data.masks) == (data / "images", data / "masks")
    assert read.network.pretrained == data / "other"
    assert recipe(data, network={"pretrained": "imagenet"}).network.pretrained == "imagenet"


def test_images_and_masks_are_paired_by_name(data: Path) -> None:
    (data / "masks" / "case0_0.png").rename(data / "masks" / "case0_0.tif")
    Image.open(data / "masks" / "case0_0.tif").save(data / "masks" / "case0_0.bmp")
    (data / "masks" / "case0_0.tif").unlink()
    (data / "images" / ".hidden").touch()
    scenes = find_scenes(recipe(data).data)
    assert [scene.name for scene in scenes] == [f"case{i // 2}_{i % 2}" for i in range(6)]
    assert [scene.group for scene in scenes] == [f"case{i // 2}" for i in range(6)]


def test_targets_are_class_indices_and_ignore_where_nothing_is_known(data: Path) -> None:
    mask = np.array(Image.open(data / "masks" / "case0_0.png"))
    mask[:5] = 7
    mask[5:9] = 255
    Image.fromarray(mask).save(data / "masks" / "case0_0.png")
    picture = np.array(Image.open(data / "images" / "case0_0.png"))
    clear = np.full(picture.shape[:2], 255, np.uint8)
    clear[:, :11] = 0
    Image.fromarray(np.dstack([picture, clear])).save(data / "images" / "case0_0.png")
    scene = find_scenes(recipe(data).data)[0]
    targets = scene.targets(scene.image.levels[0].size.box, class_lookup(VALUES.tolist(), (7,)))
    expected = np.searchsorted(VALUES, mask).astype(np.uint8)
    expected[(mask == 7) | (mask == 255)] = IGNORE
    expected[:, :11] = IGNORE
    assert np.array_equal(targets, expected)


def spoil(data: Path, how: str) -> None:
    image, mask = data / "images" / "case1_0.png", data / "masks" / "case1_0.png"
    if how == "no mask":
        mask.unlink()
    elif how == "another size":
        Image.open(mask).crop((0, 0, 50, 50)).save(mask)
    elif how == "unknown value":
        values = np.array(Image.open(mask))
        values[3, 4] = 3
        Image.fromarray(values).save(mask)
    elif how == "colour mask":
        Image.open(mask).convert("RGB").save(mask)
    elif how == "deep mask":
        Image.fromarray(np.array(Image.open(mask)).astype(np.uint16)).save(mask)
    elif how == "no image":
        image.write_text("nothing", encoding="utf-8")
    elif how == "other name":
        image.rename(image.with_name("x.png"))
        mask.rename(mask.with_name("x.png"))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no mask", "case1_0.png has no mask: expected "),
        ("another size", "case1_0: the image is 80 x 96 px but its mask is 50 x 50 px; they must be the same size"),
        (
            "unknown value",
            "holds the values [3], which are no class and not ignored; the classes have the values [0, 4, 9]",
        ),
        ("colour mask", "holds 3 band(s) of uint8; a mask has one 8-bit band of class values"),
        ("deep mask", "holds 1 band(s) of uint16; a mask has one 8-bit band of class values"),
        ("other name", "the group pattern '(case[0-9])' does not match the image name 'x'"),
    ],
)
def test_data_that_does_not_fit_is_named(data: Path, how: str, reason: str) -> None:
    spoil(data, how)
    refused(write_recipe(data), reason)


@pytest.mark.parametrize(
    ("place", "fits"),
    [
        (Affine(2, 0, 600, 0, -2, 900), True),
        (Affine(2, 0, 600.01, 0, -2, 900), True),
        pytest.param(None, True, marks=pytest.mark.filterwarnings("ignore:Dataset has no geotransform")),
        (Affine(2, 0, 604, 0, -2, 900), False),
        (Affine(2, 0, 600, 0, 2, 880), False),
        (Affine(4, 0, 600, 0, -4, 900), False),
    ],
    ids=["same", "rounded", "nowhere", "shifted", "south-up", "coarser"],
)
def test_a_mask_lies_where_its_image_does(tmp_path: Path, place: Affine | None, fits: bool) -> None:
    for name, count, transform in (("images", 3, Affine(2, 0, 600, 0, -2, 900)), ("masks", 1, place)):
        (tmp_path / name).mkdir()
        with rasterio.open(
            tmp_path / name / "a.tif", "w", driver="GTiff", height=10, width=12, count=count, dtype="uint8",
            crs="EPSG:32633", transform=transform,
        ) as file:  # fmt: skip
            file.write(np.zeros((count, 10, 12), np.uint8))
    data = DataRecipe(images=tmp_path / "images", masks=tmp_path / "masks")
    if fits:
        assert len(find_scenes(data)) == 1
    else:
        with pytest.raises(RequestError, match="lies elsewhere on the ground"):
            find_scenes(data)


def test_a_mask_lies_where_its_image_does_whatever_the_crs_that_says_so() -> None:
    size, zone = Size(10, 12), Georef(Affine(2, 0, 500_000, 0, -2, 5_000_000), "crs", "EPSG:32633")
    named = Georef(zone.transform, "crs", pyproj.CRS("EPSG:32633").to_wkt())
    assert alike(named, zone, size), "one CRS in other words"
    assert not alike(Georef(zone.transform, "crs", "EPSG:32632"), zone, size), "the zone beside it"
    assert not alike(Georef(zone.transform, "crs", 'LOCAL_CS["plant"]'), zone, size)
    x, y = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:25833", always_xy=True).transform(500_000, 5_000_000)
    assert alike(Georef(Affine(2, 0, x, 0, -2, y), "crs", "EPSG:25833"), zone, size), "the same ground"


def test_a_group_pattern_that_names_nothing_is_said(data: Path) -> None:
    group = {"images": "images", "masks": "masks", "group": "(other)?case"}
    refused(write_recipe(data, data=group), "does not match the image name")


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_missing_folder_is_named(data: Path, folder: str) -> None:
    (data / folder).rename(data / "elsewhere")
    refused(write_recipe(data), f"there is no folder {data / folder}")


def test_an_empty_folder_is_named(data: Path) -> None:
    for path in (data / "images").iterdir():
        path.unlink()
    refused(write_recipe(data), "holds no image; put the images to learn from there")


def test_one_group_cannot_be_split(data: Path) -> None:
    one = {"images": "images", "masks": "masks", "group": "(case)"}
    refused(
        write_recipe(data, data=one),
        "1 group(s) of images leave nothing to validate on; two groups at least are needed",
    )
    both = {**one, "group": "(case[0-9])", "validate_on": ["case0", "case1", "case2"]}
    refused(write_recipe(data, data=both), "leave nothing to learn from")
    unknown = {**both, "validate_on": ["case7"]}
    refused(
        write_recipe(data, data=unknown), "no image belongs to the validation group ['case7']; the groups are ['case0'"
    )


def scene(name: str, group: str) -> Scene:
    pixels = ArraySource(np.zeros((1, 1), np.uint8))
    return Scene.whole(name, group, pixels, pixels)


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=40), st.data())
def test_no_group_is_both_learned_from_and_validated_on(groups: list[str], draw: st.DataObject) -> None:
    scenes = tuple(scene(str(i), group) for i, group in enumerate(groups))
    named = draw.draw(st.sets(st.sampled_from(groups)))
    recipe = DataRecipe(images=Path(), masks=Path(), validate_on=tuple(named))
    try:
        split = split_scenes(scenes, recipe)
    except RequestError:
        assert len(set(groups)) == 1 or named == set(groups)
        return
    learned, held = ({s.group for s in part} for part in (split.train, split.validation))
    assert not learned & held
    assert learned | held == set(groups)
    assert len(split.train) + len(split.validation) == len(scenes)
    if named:
        assert held == named
    else:
        assert len(held) == max(1, round(len(set(groups)) / 5))


def test_the_split_is_the_same_whatever_the_order() -> None:
    scenes = [scene(str(i), str(i)) for i in range(20)]
    recipe = DataRecipe(images=Path(), masks=Path())
    first = {s.group for s in split_scenes(tuple(scenes), recipe).validation}
    assert {s.group for s in split_scenes(tuple(scenes[::-1]), recipe).validation} == first


def test_masks_are_counted_by_class(data: Path) -> None:
    read = recipe(data)
    counts = check_masks(find_scenes(read.data), VALUES.tolist(), ())
    for row, path in zip(counts, sorted((data / "masks").iterdir()), strict=True):
        mask = np.array(Image.open(path))
        assert row.tolist() == [(mask == value).sum() for value in VALUES]


def test_a_folder_is_a_recipe_whose_classes_are_the_values_found(data: Path) -> None:
    read = read_data(data)
    assert [(c.value, c.name) for c in read.classes] == [(0, "class 0"), (4, "class 4"), (9, "class 9")]
    assert read.data.images == (data / "images").resolve()
    assert read.name == "data"
    check_masks(find_scenes(read.data), [c.value for c in read.classes], ())


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no images/ and masks/; give a YAML recipe"):
        read_data(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(RequestError, match=r"hold 1 class value\(s\); at least two are needed"):
        read_data(tmp_path)


def test_a_folder_whose_masks_are_no_8_bit_bands_is_refused(data: Path) -> None:
    path = data / "masks" / "case0_0.png"
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tif"), np.full((64, 96), np.nan, np.float32))
    with pytest.raises(RequestError, match=r"case0_0.tif holds float32 values; a mask has one 8-bit band"):
        read_data(data)


@pytest.mark.parametrize("change", ["seed=-1", "weight_decay=-5", "rate=.inf", "seed=4294967296"])
def test_numbers_that_mean_nothing_are_refused(data: Path, change: str) -> None:
    with pytest.raises(RequestError, match=rf"schedule.{change.split('=')[0]}") as caught:
        read_data(data, [f"schedule.{change}"])
    assert "\n" not in str(caught.value)


def test_a_mask_that_is_no_image_is_named(data: Path) -> None:
    spoil(data, "no image")
    with pytest.raises(ImageError, match=r"case1_0\.png"):
        find_scenes(recipe(data).data)


def test_fields_of_a_recipe_are_changed_from_outside(tmp_path: Path) -> None:
    path = write_recipe(write_data(tmp_path / "set"))
    changed = read_recipe(path, ["schedule.seed=7", "network.overrides.layers=3", "augment.scale=[0.5, 2]"])
    assert (changed.schedule.seed, changed.network.overrides["layers"], changed.augment.scale) == (7, 3, (0.5, 2.0))
    assert changed.network.overrides["dim"] == 48


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("schedule.seed", "cannot read the change"),
        ("=3", "cannot read the change"),
        ("name.x=3", "'name' holds a value"),
        ("schedule.seeds=1", r"schedule\.seeds: Extra inputs"),
        ("schedule.seed=[", "no value that YAML can read"),
    ],
)
def test_a_change_that_fits_no_recipe_is_said(tmp_path: Path, change: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        read_recipe(write_recipe(write_data(tmp_path / "set")), [change])


def test_few_images_are_a_part_of_more_images_and_held_back_ones_stay(data: Path) -> None:
    names = []
    for limit in (1, 2, 3, 4, None):
        read = recipe(data, data={"images": "images", "masks": "masks", "group": "(case[0-9])", "limit": limit}).data
        split = split_scenes(find_scenes(read), read)
        names.append({scene.name for scene in split.train})
        assert len(split.validation) == 2
    assert [len(some) for some in names] == [1, 2, 3, 4, 4]
    assert names[0] < names[1] < names[2] < names[3] == names[4]
