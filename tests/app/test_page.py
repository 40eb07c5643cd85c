"""What a user sees and can do around the viewer."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import CLASSES, write_bundle
from drawn_slides import tissue, write_svs
from numpy.typing import NDArray
from pages import OpenPage, chosen, words
from PIL import Image

from app import choose, panels
from app.desk import the_desk
from pipelines.bundle import Bundle


@pytest.mark.usefixtures("image")
def test_an_image_without_results_is_shown_and_can_be_segmented(folder: Path, open_page: OpenPage) -> None:
    page = open_page(folder)
    assert not page.exception
    assert chosen(page, "Image").options == ["images/case 1.png"]
    assert "nuclei" in chosen(page, "Model").options
    assert "Draw a rectangle or a polygon" in words(page)


@pytest.mark.usefixtures("bundle")
def test_areas_and_story_of_the_chosen_mask_are_told(folder: Path, open_page: OpenPage) -> None:
    page = open_page(folder)
    assert not page.exception
    text = words(page).replace("\u00a0", " ")
    for fact in ("tumör *x* <b>|$y$ | 10.8 % | 250", "aerial-landcover", "512 px, overlapping by 64 px",
                 "1.4 GiB predicted, 1.2 GiB measured", "1 min 23 s", "60 × 40 px"):  # fmt: skip
        assert fact in text, fact


@pytest.mark.usefixtures("bundle")
def test_two_results_can_be_compared_in_three_ways_and_the_address_says_how(
    image: Path, values: NDArray[np.uint8], folder: Path, open_page: OpenPage
) -> None:
    write_bundle(folder / "results" / "case 2", image, values)
    page = open_page(folder)
    assert "compare" not in [radio.key for radio in page.radio]
    chosen(page, "Compare with").set_value(_ids()[1]).run()
    page.radio(key="compare").set_value("Difference").run()
    assert not page.exception
    assert page.query_params["with"] == _ids()[1]
    assert page.query_params["compare"] == "Difference"
    again = open_page(folder, **{name: page.query_params[name] for name in ("image", "with", "compare")})
    assert again.radio(key="compare").value == "Difference"
    assert chosen(again, "Compare with").value == _ids()[1]


@pytest.mark.usefixtures("bundle")
def test_masks_of_other_classes_have_no_difference(
    image: Path, values: NDArray[np.uint8], folder: Path, open_page: OpenPage
) -> None:
    others = [replace(one, name=f"other {one.name}") for one in CLASSES]
    write_bundle(folder / "results" / "case 2", image, values, others)
    page = open_page(folder)
    chosen(page, "Compare with").set_value(_ids()[1]).run()
    assert page.radio(key="compare").options == ["Swipe", "Side by side"]
    assert "Their classes are not the same" in words(page)


@pytest.mark.usefixtures("image")
def test_an_address_that_names_nothing_opens_the_first_image(folder: Path, open_page: OpenPage) -> None:
    page = open_page(folder, image="../../etc/passwd", mask="x", compare="y", view="1,2")
    assert not page.exception
    assert chosen(page, "Image").value == next(iter(the_desk().catalog.look().images))


def test_warnings_are_lines_of_their_own(
    results: Path, image: Path, values: NDArray[np.uint8], folder: Path, open_page: OpenPage
) -> None:
    write_bundle(results / "case 1", image, values, warnings=("no pixel size", "odd bands"))
    assert [warning.value for warning in open_page(folder).warning] == ["no pixel size", "odd bands"]


def test_an_empty_folder_says_so(tmp_path: Path, open_page: OpenPage) -> None:
    page = open_page(tmp_path)
    assert not page.exception
    assert "There is no slide" in words(page)


def test_a_damaged_result_is_listed_with_its_reason_and_the_others_work(
    bundle: Bundle, folder: Path, open_page: OpenPage
) -> None:
    broken = bundle.folder.parent / "a broken one"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    page = open_page(folder)
    assert not page.exception
    assert chosen(page, "Mask").options == ["–", "results"]  # short for results/case 1, of case 1.png
    assert "a broken one" in words(page)
    assert "Invalid JSON" in words(page)


def test_labels_that_are_gone_are_said_and_the_rest_is_shown(bundle: Bundle, folder: Path, open_page: OpenPage) -> None:
    shutil.rmtree(bundle.folder / "labels.zarr")
    page = open_page(folder)
    assert not page.exception
    assert "there is no label image here" in page.error[0].value
    assert "Memory allowed" in words(page)


def test_damaged_areas_are_said(bundle: Bundle, folder: Path, open_page: OpenPage) -> None:
    (bundle.folder / "areas.csv").write_text("class,value\nstroma\n")
    page = open_page(folder)
    assert not page.exception
    assert any("areas.csv is damaged" in error.value.replace("\\", "") for error in page.error)


@pytest.mark.parametrize("what", ["gone", "changed", "elsewhere"])
def test_without_its_image_the_mask_is_shown_alone(
    what: str, bundle: Bundle, image: Path, folder: Path, open_page: OpenPage
) -> None:
    if what == "gone":
        image.unlink()
    elif what == "changed":
        Image.new("RGB", (60, 40)).save(image)
    page = open_page(bundle.folder.parent if what == "elsewhere" else folder)
    alone = next(entry for entry in the_desk().catalog.look().images.values() if entry.alone)
    chosen(page, "Image").set_value(alone.id).run()
    assert not page.exception
    assert "here is the mask alone" in words(page)
    assert f"veca view {bundle.folder.parent} {image.parent}" in words(page) or what != "elsewhere"
    mask = the_desk().mask(next(iter(the_desk().catalog.look().layers)))
    assert mask is not None
    assert mask.place.step_y == 1


@pytest.mark.usefixtures("image")
def test_an_image_that_cannot_be_read_is_said(folder: Path, open_page: OpenPage) -> None:
    (folder / "images" / "aa.svs").write_bytes(b"II*\0 but no slide")
    page = open_page(folder)
    assert not page.exception
    assert "cannot be shown" in page.error[0].value


def test_many_images_can_be_filtered(image: Path, folder: Path, open_page: OpenPage) -> None:
    for number in range(choose.MANY + 1):
        shutil.copy(image, folder / f"slide {number:02}.png")
    page = open_page(folder)
    page.text_input(key="filter").set_value("SLIDE 1").run()
    assert chosen(page, "Image").options == ["slide 10.png", "slide 11.png", "slide 12.png"]
    page.text_input(key="filter").set_value("nothing has this").run()
    assert len(chosen(page, "Image").options) == choose.MANY + 2


def test_files_are_offered_and_large_ones_are_told(bundle: Bundle, folder: Path, open_page: OpenPage) -> None:
    with (bundle.folder / "mask.tif").open("wb") as file:
        file.truncate(panels.DOWNLOAD + 1)
    (bundle.folder / "stranger.tif").touch()
    page = open_page(folder)
    offered = [button.proto.label.split(",")[0] for button in page.get("download_button")]
    assert offered == ["areas.csv", "preview.png"]
    assert "mask.tif is large" in words(page)
    assert str(bundle.folder) in [code.value for code in page.code]


def test_a_folder_is_run_watched_and_stopped_from_the_page(folder: Path, open_page: OpenPage) -> None:
    write_svs(folder / "good.svs", tissue(300, 260))
    (folder / "zz bad.svs").write_bytes((folder / "good.svs").read_bytes()[:3000])
    write_svs(folder / "long.svs", tissue(4000, 4000))  # takes longer than to be stopped
    page = open_page(folder)
    named = {entry.path.name: key for key, entry in the_desk().catalog.look().images.items()}
    images = [named["good.svs"], named["zz bad.svs"]]
    page.multiselect(key="batch images").set_value(images).run()
    assert page.button(key="batch start").disabled is False
    page.text_input(key="batch folder").set_value("../out").run()
    assert page.button(key="batch start").disabled
    page.text_input(key="batch folder").set_value("out").run()
    page.button(key="batch start").click().run()
    assert any(button.key == "batch stop" for button in page.button)
    batch = the_desk().batch
    assert batch is not None
    deadline = time.monotonic() + 180
    while batch.status is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert batch.status == 1, list(batch.lines)
    page.run()
    assert "Some images failed; the others are done." in words(page)
    assert "zz bad.svs" in words(page)
    page.button(key="batch close").click().run()
    assert [layer.kind for layer in the_desk().catalog.look().layers.values()] == ["result"]
    # The second run is stopped, and says so.
    page.multiselect(key="batch images").set_value([named["long.svs"]]).run()
    page.text_input(key="batch folder").set_value("again").run()
    page.button(key="batch start").click().run()
    page.button(key="batch stop").click().run()
    again = the_desk().batch
    assert again is not None and again is not batch  # noqa: PT018
    while again.status is None and time.monotonic() < deadline:
        time.sleep(0.1)
    page.run()
    assert "Stopped." in words(page)


def _ids() -> list[str]:
    return list(the_desk().catalog.look(fresh=0).layers)


def test_what_is_deleted_while_it_is_shown_is_gone_with_the_next_look(
    bundle: Bundle, image: Path, values: NDArray[np.uint8], folder: Path, open_page: OpenPage
) -> None:
    other = write_bundle(folder / "results" / "case 2", image, values)
    page = open_page(folder)
    first = chosen(page, "Mask").value
    desk = the_desk()
    shown = desk.catalog.layer(first)
    assert shown is not None
    shutil.rmtree(shown.folder)
    desk.catalog.look(fresh=-1)
    page.run()
    assert not page.exception
    left = {bundle.folder, other.folder} - {shown.folder}
    assert {layer.folder for layer in desk.catalog.look().layers.values()} == left
    assert chosen(page, "Mask").value != first
    image.unlink()
    desk.catalog.look(fresh=-1)
    page.run()
    assert not page.exception
    assert "here is the mask alone" in words(page)


def test_corrections_are_begun_once_and_listed_with_their_mask(
    bundle: Bundle, folder: Path, open_page: OpenPage
) -> None:
    page = open_page(folder)
    (layer,) = the_desk().catalog.look().layers
    page.button(key=f"correct {layer}").click().run()
    assert not page.exception
    made = bundle.folder.with_name("case 1.corrected")
    assert (made / "strokes.jsonl").read_bytes() == b""
    assert str(made) in [code.value for code in page.code]
    assert "corrected" in str(chosen(page, "Mask").options)
    chosen(page, "Mask").set_value(layer).run()
    assert next(b for b in page.button if b.key == f"correct {layer}").label == "Go on correcting"
    shutil.rmtree(bundle.folder)
    the_desk().catalog.look(fresh=-1)
    page.run()
    assert not page.exception
    assert "its strokes are kept" in words(page)


def test_a_mask_at_the_top_of_what_is_shown_cannot_be_corrected_beside_it(bundle: Bundle, open_page: OpenPage) -> None:
    page = open_page(bundle.folder)
    (layer,) = the_desk().catalog.look().layers
    page.button(key=f"correct {layer}").click().run()
    assert "show the folder above it" in page.error[0].value.replace("\\", "")
    assert not bundle.folder.with_name("case 1.corrected").exists()
