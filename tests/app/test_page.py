"""What a user sees and can do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from bundles import CLASSES, write_bundle
from numpy.typing import NDArray
from pages import OpenPage, Picture, small, switch, words
from PIL import Image

from app import panels
from pipelines.bundle import Bundle, image_fingerprint, write_run
from pipelines.view import PAPER

TUMOUR, STROMA = CLASSES[1], CLASSES[2]


def test_opacity_zero_shows_the_image(bundle: Bundle, image: Path, open_page: OpenPage, picture: Picture) -> None:
    page = open_page(bundle.folder.parent)
    page.slider(key="opacity").set_value(0).run()
    assert not page.exception
    shown = small(picture(page), (40, 60))
    assert np.array_equal(shown, np.asarray(Image.open(image)))


def test_opacity_one_shows_the_colours_of_the_mask(
    bundle: Bundle, image: Path, values: NDArray[np.uint8], open_page: OpenPage, picture: Picture
) -> None:
    page = open_page(bundle.folder.parent)
    page.slider(key="opacity").set_value(100)
    switch(page, "background").check()
    page.run()
    shown = small(picture(page), values.shape)
    for c in CLASSES:
        assert (shown[values == c.value] == c.color).all(), c.name
    no_data = values == 255
    assert np.array_equal(shown[no_data], np.asarray(Image.open(image))[no_data])


def test_a_class_switched_off_loses_its_colour_and_no_other_does(
    bundle: Bundle, image: Path, values: NDArray[np.uint8], open_page: OpenPage, picture: Picture
) -> None:
    page = open_page(bundle.folder.parent)
    page.slider(key="opacity").set_value(100)
    switch(page, "stroma").uncheck()
    page.run()
    shown = small(picture(page), values.shape)
    tumour = values == TUMOUR.value
    assert (shown[tumour] == TUMOUR.color).all()
    assert np.array_equal(shown[~tumour], np.asarray(Image.open(image))[~tumour])


def test_the_mask_can_be_hidden(bundle: Bundle, image: Path, open_page: OpenPage, picture: Picture) -> None:
    page = open_page(bundle.folder.parent)
    page.toggle(key="mask").set_value(False).run()
    assert np.array_equal(small(picture(page), (40, 60)), np.asarray(Image.open(image)))


def test_background_is_not_tinted_at_first(bundle: Bundle, open_page: OpenPage) -> None:
    page = open_page(bundle.folder.parent)
    assert [box.value for box in page.checkbox] == [False, True, True]


def test_names_from_files_are_shown_as_they_are_written(bundle: Bundle, open_page: OpenPage) -> None:
    page = open_page(bundle.folder.parent)
    escaped = r"tumör \*x\* \<b\>\|\$y\$"
    assert escaped in switch(page, TUMOUR.name).label
    assert escaped in words(page)
    assert not any(element.allow_html for element in page.markdown)


def test_areas_are_in_readable_units_and_their_numbers_are_on_the_right(
    results: Path, tmp_path: Path, values: NDArray[np.uint8], open_page: OpenPage
) -> None:
    path = tmp_path / "field.tif"
    place = Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(path, "w", "GTiff", 60, 40, 3, "EPSG:32632", place, "uint8") as file:
        file.write(np.zeros((3, 40, 60), np.uint8))
    write_bundle(results / "field", path, values)
    table = open_page(results).markdown[1].value.splitlines()
    assert table[0] == "| Class | Share | Area (ha) | Pixels |"
    assert table[1] == "|:--|--:|--:|--:|"
    cells = [cell.strip() for cell in table[4].split("|")[1:-1]]
    assert cells[0] == "stroma"
    assert cells[1] == f"{300 / 2320:.1%}".replace("%", "\u00a0%")
    assert float(cells[2]) == pytest.approx(3.0, rel=2e-3)  # 300 pixels of 10 m, on the ellipsoid
    assert cells[3] == "300"


def test_the_story_tells_plan_memory_and_time(bundle: Bundle, open_page: OpenPage) -> None:
    text = words(open_page(bundle.folder.parent)).replace("\\", "").replace("\u00a0", " ")
    for fact in (
        "aerial-landcover",
        "512 px, overlapping by 64 px",
        "6.0 GiB",
        "1.4 GiB predicted, 1.2 GiB measured",
        "1 min 23 s",
        "read at level 0",
    ):
        assert fact in text, fact


def test_warnings_are_lines_of_their_own(
    results: Path, image: Path, values: NDArray[np.uint8], open_page: OpenPage
) -> None:
    write_bundle(results / "case 1", image, values, warnings=("no pixel size", "odd bands"))
    assert [warning.value for warning in open_page(results).warning] == ["no pixel size", "odd bands"]


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path, open_page: OpenPage) -> None:
    folder = tmp_path / "my results"
    folder.mkdir()
    page = open_page(folder)
    assert not page.exception
    assert page.code[0].value == f'veca segment IMAGE --model aerial-landcover --out "{folder}"'


def test_a_damaged_result_is_listed_with_its_reason_and_the_others_work(
    bundle: Bundle, open_page: OpenPage, picture: Picture
) -> None:
    broken = bundle.folder.parent / "a broken one"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    page = open_page(bundle.folder.parent)
    assert page.selectbox(key="result").value == "case 1"
    assert page.selectbox(key="result").options == ["a broken one (damaged)", "case 1"]
    assert picture(page).size
    page.selectbox(key="result").set_value("a broken one").run()
    assert not page.exception
    assert "Invalid JSON" in page.error[0].value


def test_a_mask_that_cannot_be_read_is_said_and_the_rest_is_shown(bundle: Bundle, open_page: OpenPage) -> None:
    for shard in (bundle.folder / "labels.zarr" / "0" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(b"not a shard")
    page = open_page(bundle.folder.parent)
    assert not page.exception
    assert "is damaged" in page.error[0].value.replace("\\", "")
    assert "Memory allowed" in words(page)


def test_labels_that_are_gone_are_said(bundle: Bundle, open_page: OpenPage) -> None:
    shutil.rmtree(bundle.folder / "labels.zarr")
    page = open_page(bundle.folder.parent)
    assert not page.exception
    assert "there is no label image here" in page.error[0].value


def test_damaged_areas_do_not_hide_the_picture(bundle: Bundle, open_page: OpenPage, picture: Picture) -> None:
    (bundle.folder / "areas.csv").write_text("class,value\nstroma\n")
    page = open_page(bundle.folder.parent)
    assert not page.exception
    assert "areas.csv is damaged" in page.error[0].value.replace("\\", "")
    assert picture(page).size


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_without_its_image_the_mask_is_shown_alone(
    what: str, bundle: Bundle, image: Path, values: NDArray[np.uint8], open_page: OpenPage, picture: Picture
) -> None:
    if what == "gone":
        image.unlink()
    else:
        Image.new("RGB", (60, 40)).save(image)
    page = open_page(bundle.folder.parent)
    assert not page.exception
    assert "is gone or has changed" in page.info[0].value
    shown = small(picture(page), values.shape)
    assert (shown[values == STROMA.value] == STROMA.color).all()
    assert (shown[values == 255] == PAPER).all()


def test_an_image_that_is_taken_away_while_one_looks_is_noticed(
    bundle: Bundle, image: Path, open_page: OpenPage
) -> None:
    page = open_page(bundle.folder.parent)
    assert not page.info
    image.unlink()
    assert page.run().info


def test_each_result_shows_its_own_picture(
    bundle: Bundle, image: Path, values: NDArray[np.uint8], open_page: OpenPage, picture: Picture
) -> None:
    results = bundle.folder.parent
    write_bundle(results / "case 2", image, np.full_like(values, STROMA.value))
    page = open_page(results)
    page.slider(key="opacity").set_value(100).run()
    first = picture(page)
    page.selectbox(key="result").set_value("case 2").run()
    assert not np.array_equal(picture(page), first)
    assert (picture(page) == STROMA.color).all()


def test_a_result_that_arrives_is_listed_and_the_chosen_one_stays(
    bundle: Bundle, image: Path, values: NDArray[np.uint8], open_page: OpenPage
) -> None:
    results = bundle.folder.parent
    write_bundle(results / "case 2", image, values)
    page = open_page(results)
    page.selectbox(key="result").set_value("case 2").run()
    write_bundle(results / "case 0", image, values)
    page.run()
    assert page.selectbox(key="result").options == ["case 0", "case 1", "case 2"]
    assert page.selectbox(key="result").value == "case 2"


def test_many_results_can_be_filtered(bundle: Bundle, open_page: OpenPage) -> None:
    results = bundle.folder.parent
    for number in range(panels.MANY + 1):
        shutil.copytree(bundle.folder, results / f"slide {number:02}")
    page = open_page(results)
    page.text_input(key="filter").set_value("SLIDE 1").run()
    assert page.selectbox(key="result").options == ["slide 10", "slide 11", "slide 12"]
    page.text_input(key="filter").set_value("nothing has this").run()
    assert len(page.selectbox(key="result").options) == panels.MANY + 2


def test_files_are_offered_and_large_ones_are_named_by_their_path(bundle: Bundle, open_page: OpenPage) -> None:
    with (bundle.folder / "mask.tif").open("wb") as file:
        file.truncate(panels.DOWNLOAD + 1)
    (bundle.folder / "stale.tif").touch()  # of an earlier run: never offered
    write_run(bundle.folder, bundle.run.model_copy(update={"outputs": (*bundle.run.outputs, "mask.tif")}))
    page = open_page(bundle.folder.parent)
    offered = [button.proto.label.split(",")[0] for button in page.get("download_button")]
    assert offered == ["areas.csv", "preview.png"]
    assert str(bundle.folder / "mask.tif") in [code.value for code in page.code]


def test_a_large_picture_says_how_far_it_is_reduced(
    results: Path, tmp_path: Path, open_page: OpenPage, picture: Picture
) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(np.zeros((300, 4320, 3), np.uint8)).save(path)
    write_bundle(results / "wide", path, np.full((300, 4320), 1, np.uint8), exports=())
    page = open_page(results)
    assert not page.exception
    assert picture(page).shape == (100, 1440, 3)
    assert "reduced 3.0 times" in words(page)


def test_an_image_that_cannot_be_decoded_leaves_the_mask(
    bundle: Bundle, image: Path, open_page: OpenPage, picture: Picture
) -> None:
    image.write_bytes(image.read_bytes()[:2000])
    record = bundle.run.image.model_copy(update={"fingerprint": image_fingerprint(str(image))})
    write_run(bundle.folder, bundle.run.model_copy(update={"image": record}))
    page = open_page(bundle.folder.parent)
    assert not page.exception
    assert "the mask alone" in page.info[0].value
    assert picture(page).size
