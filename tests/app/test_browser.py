"""The viewer in a real browser, on the real sample slide: what a pathologist does in the first five minutes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import rasterio
import tifffile
from bundles import write_bundle
from numpy.typing import NDArray
from oidc import providing
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Playwright, expect, sync_playwright
from pyproj import Transformer
from servers import Server, serving

from app.launch import free_port
from pipelines.samples import samples
from tiling import LabelClass

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip
SIZE: Final = {"width": 1440, "height": 900}
PATIENCE: Final = 90_000
"""Milliseconds that a busy machine may take for anything."""
CLASSES: Final = (LabelClass(0, "background", (217, 217, 217)), LabelClass(1, "nucleus", (0, 168, 107)))
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")


@dataclass
class Viewer:
    """A page with the viewer, and what it asked the server for."""

    page: Page
    shots: Path
    asked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def root(self) -> Locator:
        return self.page.locator(".veca")

    @property
    def pane(self) -> dict[str, float]:
        box = self.page.locator(".veca .pane").first.bounding_box()
        assert box is not None
        return dict(box)

    def ask(self, program: str) -> Any:
        """What a function of the workspace gives."""
        return self.root.evaluate(f"e => {{ const v = e.veca; return {program}; }}")

    def until(self, program: str, seconds: float = 60) -> float:
        """Waits until an expression holds; gives how long that took."""
        started = time.monotonic()
        while not self.ask(program):
            assert time.monotonic() - started < seconds, f"{program} did not come true; {self.problems}"
            time.sleep(0.02)
        return time.monotonic() - started

    def settled(self) -> None:
        """Waits until image and masks are there, as they are wanted."""
        self.until(
            "v.pane.viewer.world.getItemAt(0)?.getFullyLoaded() && !v.pane.viewer.isAnimating() && "
            "[...v.layers.masks.values()].every(m => !m.loading.size && !m.waiting.length && m.tiles.size)"
        )

    def settled_image(self) -> None:
        """Waits until the image alone is there."""
        self.until("v.pane.viewer.world.getItemAt(0)?.getFullyLoaded() && !v.pane.viewer.isAnimating()")
        time.sleep(0.3)

    def pixels(self) -> NDArray[np.int64]:
        """(h, w, 3) of the pane as it is seen."""
        png = self.page.screenshot(clip=self.pane)  # type: ignore[arg-type]
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def at(self, y: float, x: float) -> NDArray[np.int64]:
        """(3,) what is seen at a level-0 place of the image, which is not turned."""
        left, top = self.ask(
            f"(() => {{ const [a, , , d, e, f] = v.pane.transform; return [a * {x} + e, d * {y} + f]; }})()"
        )
        seen: NDArray[np.int64] = self.pixels()[round(top), round(left)]
        return seen

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=self.shots / f"{name}.png")

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_test_id("stSelectbox").filter(has_text=label).first.locator("input").click()
        self.page.get_by_role("option", name=option).first.click()

    def key(self, key: str) -> None:
        self.root.focus()
        self.page.keyboard.press(key)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Between two places of the pane, in pixels from its middle."""
        box, mouse = self.pane, self.page.mouse
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse.move(middle[0] + start[0], middle[1] + start[1])
        mouse.down()
        mouse.move(middle[0] + (start[0] + end[0]) / 2, middle[1] + (start[1] + end[1]) / 2)
        mouse.move(middle[0] + end[0], middle[1] + end[1], steps=4)
        mouse.up()


Open = Callable[[str], Viewer]


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures of this run are kept: VECA_SHOTS, or the test's own folder."""
    place = Path(os.environ.get("VECA_SHOTS") or tmp_path_factory.mktemp("shots"))
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample slide and scene, and two results of the slide that differ in a known rectangle."""
    place = tmp_path_factory.mktemp("viewer")
    images = samples(place / "samples")
    slide = next(path for path in images if path.suffix == ".svs")
    stripes = np.zeros((2967, 2220), np.uint8)
    stripes[400:800, 300:1900] = 1
    other = stripes.copy()
    other[1200:1600, 300:1900] = 1
    other[400:600, 300:1100] = 0
    cells = np.zeros((3, 600, 800), np.uint16)
    cells[0, 100:300, 100:300], cells[1, 200:400, 200:400], cells[2, 450:550, 500:700] = 900, 4000, 20000
    tifffile.imwrite(place / "samples" / "cells.ome.tif", cells, photometric="minisblack", metadata={"axes": "CYX",
                     "Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}, tile=(256, 256))  # fmt: skip
    write_bundle(place / "results" / "first", slide, stripes, CLASSES, exports=("areas", "regions"))
    write_bundle(place / "results" / "second", slide, other, CLASSES, exports=("areas",))
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving([folder], folder, home=folder.parent) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield _launch(playwright)


def _launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))


@pytest.fixture
def view(server: Server, browser: Browser, shots: Path) -> Iterator[Open]:
    """Opens the viewer at an address; fails where the page complains."""
    opened: list[Viewer] = []

    def run(query: str = "") -> Viewer:
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE)
        viewer = Viewer(page, shots)
        opened.append(viewer)
        page.on("request", lambda request: viewer.asked.append(request.url))
        page.on("pageerror", lambda error: viewer.problems.append(str(error)))
        page.on("console", lambda m: viewer.problems.append(m.text) if m.type == "error" else None)
        page.goto(server.url + query)
        page.wait_for_selector(".veca .pane canvas")
        viewer.settled()
        return viewer

    yield run
    for viewer in opened:
        viewer.page.close()
        assert not viewer.problems
        foreign = [url for url in viewer.asked if not url.startswith((server.url, "data:", "blob:", "ws"))]
        assert not foreign, "the page asks nobody else"


def test_the_slide_opens_whole_and_zooms_to_its_own_pixels(view: Open, folder: Path) -> None:
    viewer = view("")
    viewer.shoot("1-open")
    whole = viewer.pixels()
    assert whole.std() > 20  # a picture, and no empty pane
    viewer.ask("v.goTo({y: 1500, x: 1100, zoom: 1})")
    viewer.key("m")
    viewer.settled()
    viewer.shoot("2-zoomed")
    height, width = viewer.pixels().shape[:2]
    shown = viewer.pixels()[height // 2 - 60 : height // 2 + 60, width // 2 - 60 : width // 2 + 60]
    with tifffile.TiffFile(folder / "samples" / "CMU-1-Small-Region.svs") as tif:
        true = tif.pages[0].asarray().astype(int)
    # The middle may lie a pixel further.
    best = min(
        np.abs(shown - true[1440 + dy : 1560 + dy, 1040 + dx : 1160 + dx]).mean()
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    )
    assert best < 0.5, "one pixel of the image lies on one of the screen, in its colours"


def test_classes_colours_and_opacity_ask_the_server_for_nothing(view: Open) -> None:
    viewer = view("")
    before = viewer.pixels()
    asked = len(viewer.asked)
    started = time.monotonic()
    viewer.page.get_by_role("checkbox", name="nucleus").uncheck()
    without = viewer.pixels()
    took = time.monotonic() - started
    assert np.abs(before - without).max() > 40
    assert took < 5  # how fast it is, the benchmark says
    viewer.page.get_by_role("checkbox", name="nucleus").check()
    assert (np.abs(viewer.pixels() - before).max(axis=2) > 2).mean() < 0.001
    viewer.page.get_by_label("Colour of nucleus").evaluate(
        "e => { e.value = '#ff0000'; e.dispatchEvent(new Event('input')); }"
    )
    red = viewer.pixels()
    viewer.key("]")
    assert np.abs(viewer.pixels() - red).max() > 5
    plain = viewer.pixels()
    viewer.page.locator("summary", has_text="Brightness").click()
    for name, value in (("Brightness", 0.3), ("Contrast", 2), ("Gamma", 2)):
        before_it = viewer.pixels()
        viewer.page.get_by_label(name, exact=True).evaluate(
            f"e => {{ e.value = {value}; e.dispatchEvent(new Event('input')); }}"
        )
        assert np.abs(viewer.pixels() - before_it).mean() > 2, name
    viewer.page.get_by_role("button", name="As the image is").click()
    assert np.abs(viewer.pixels() - plain).max() < 3
    with viewer.page.expect_download() as saved:
        viewer.key("s")
    picture = np.asarray(Image.open(saved.value.path()).convert("RGB")).astype(int)
    assert picture.shape == plain.shape
    assert np.abs(picture[200:600, 200:500] - plain[200:600, 200:500]).mean() < 3  # as it is on the screen
    viewer.key("o")
    viewer.shoot("3-outlines")
    tiles = [url for url in viewer.asked[asked:] if "/veca/mask/" in url or "/veca/image/" in url]
    assert tiles == []


def test_a_mask_lies_on_its_place_at_every_zoom_and_turned(view: Open) -> None:
    viewer = view("")
    viewer.page.get_by_label("Opacity").evaluate("e => { e.value = 1; e.dispatchEvent(new Event('input')); }")
    for zoom, turn in ((0.13, 0), (0.3, 0), (1.0, 0), (4.0, 0), (0.3, 90), (0.3, 180), (0.4, 30)):
        viewer.ask(f"v.goTo({{y: 800, x: 1100, zoom: {zoom}, turn: {turn}}})")
        viewer.settled()
        time.sleep(0.1)
        shown = viewer.pixels()
        # Just above the lower edge of the band there is the class's colour, just below there is none.
        for dy, colour in ((-6 / zoom, True), (6 / zoom, False)):
            place = viewer.ask(
                f"(() => {{ const [a, b, c, d, e, f] = v.pane.transform; const [x, y] = [1100, {800 + dy}];"
                " return [a * x + c * y + e, b * x + d * y + f]; })()"
            )
            pixel = shown[round(place[1]), round(place[0])]
            assert bool(np.abs(pixel - (0, 168, 107)).max() < 3) is colour, (zoom, turn, dy, pixel)


def test_a_drawn_rectangle_is_measured_and_segmented_live(view: Open, folder: Path) -> None:
    viewer = view("")
    viewer.ask("v.goTo({y: 700, x: 900, zoom: 0.8})")
    viewer.settled()
    viewer.key("d")
    viewer.drag((-160, -100), (160, 100))
    expect(viewer.page.get_by_text("Drawn region")).to_be_visible()
    corners = np.array(viewer.ask("v.draw.corners"))
    assert np.abs(corners[0] - (700 - 125, 900 - 200)).max() < 3
    assert np.abs(corners[2] - (700 + 125, 900 + 200)).max() < 3
    band = viewer.page.locator(".measured td", has_text="nucleus").locator("xpath=../td[2]")
    inside = (800 - corners[0][0]) / (corners[2][0] - corners[0][0])
    assert float((band.text_content() or "").split()[0]) == pytest.approx(100 * inside, abs=0.6)
    segment = viewer.page.get_by_role("button", name="Segment", exact=True)
    expect(segment).to_be_enabled(timeout=90_000)
    expect(viewer.page.get_by_text("plan: 64 cores, window 512 px")).to_be_visible()
    segment.click()
    viewer.until(
        "[...v.layers.masks.values()].some(m => m.layer.running && [...m.tiles.values()]"
        ".some(t => t.values.some(x => x !== 255)))", 90,
    )  # fmt: skip
    viewer.shoot("4-live")
    viewer.until("!v.live.task && v.layers.first && !v.layers.first.layer.running", 120)
    viewer.settled()
    viewer.shoot("5-segmented")
    (kept,) = (folder / "regions").glob("*/live.json")
    assert {"labels.zarr", "mask.tif", "areas.csv", "regions.geojson"} <= {p.name for p in kept.parent.iterdir()}
    assert viewer.ask("v.layers.first.layer.confident")
    viewer.page.mouse.move(viewer.pane["x"] + viewer.pane["width"] / 2, viewer.pane["y"] + viewer.pane["height"] / 2)
    expect(viewer.page.locator(".cursor")).to_contain_text("confidence")
    # A larger one is cancelled: what is finished is kept, and says that it is not all.
    viewer.ask("v.draw.done([[100, 100], [100, 1900], [2800, 1900], [2800, 100]])")
    expect(segment).to_be_enabled(timeout=90_000)
    segment.click()
    viewer.until("v.live.task && v.live.since > 0", 90)
    viewer.page.get_by_role("button", name="Cancel").click()
    viewer.until("!v.live.task && v.layers.first && !v.layers.first.layer.running", 120)
    records = [json.loads(path.read_text()) for path in (folder / "regions").glob("*/live.json")]
    assert sorted(record["finished"] for record in records) == [False, True]


def test_two_results_are_compared(view: Open) -> None:
    viewer = view("")
    viewer.choose("Mask", "results/first")
    viewer.choose("Compare with", "results/second")
    viewer.until("v.pane.mode === 'swipe' && v.layers.second?.tiles.size")
    viewer.settled()
    shares = viewer.page.locator(".row.class", has_text="nucleus").locator(".amount").all_text_contents()
    assert shares == ["9.7 %", "17.0 %"]  # of both
    viewer.shoot("6-swipe")
    viewer.page.get_by_text("Side by side", exact=True).click()
    viewer.until("v.twin?.viewer.world.getItemAt(0)?.getFullyLoaded()")
    viewer.ask("v.goTo({y: 1000, x: 1000, zoom: 0.4})")
    viewer.drag((0, 0), (90, -60))
    viewer.until("!v.pane.viewer.isAnimating()")
    centres = viewer.ask("[v.pane, v.twin].map(p => p.viewer.viewport.getCenter(true)).map(c => [c.x, c.y])")
    assert np.allclose(centres[0], centres[1], atol=1e-6)
    viewer.shoot("7-side-by-side")
    viewer.page.get_by_text("Difference", exact=True).click()
    viewer.until("!v.twin && v.pane.mode === 'difference'")
    viewer.key("0")
    viewer.page.get_by_label("Opacity").evaluate("e => { e.value = 1; e.dispatchEvent(new Event('input')); }")
    viewer.settled()
    time.sleep(0.6)
    viewer.settled()
    shown = viewer.pixels()
    viewer.shoot("8-difference")
    for (y, x), colour in {(1400, 1000): (90, 200, 50), (500, 700): (230, 50, 70), (700, 700): None}.items():
        place = viewer.ask(
            f"(() => {{ const [a, b, c, d, e, f] = v.pane.transform; return [a * {x} + e, d * {y} + f]; }})()"
        )
        pixel = shown[round(place[1]), round(place[0])]
        if colour is not None:
            assert np.abs(pixel - colour).max() < 3, (y, x, pixel)


def test_what_the_cores_look_at_is_laid_over_the_image(view: Open) -> None:
    viewer = view("")
    viewer.page.get_by_text("Where the cores look").click()
    viewer.page.get_by_role("button", name="Look here").click()
    viewer.until("v.pane.heatmap", 90)
    covers = viewer.ask("v.pane.heatmap.covers")
    assert covers[2:] == [512, 512]
    viewer.ask(f"v.goTo({{y: {covers[0] + 256}, x: {covers[1] + 256}, zoom: 1}})")
    viewer.settled()
    viewer.shoot("9-attention")
    first = viewer.pixels()
    for label, key in (("Core", "ArrowRight"), ("Layer", "ArrowLeft")):  # the first core, the last layer are shown
        viewer.ask("(v.last = v.pane.heatmap, 1)")
        slider = viewer.page.get_by_test_id("stSlider").filter(has_text=re.compile(f"^{label}"))
        slider.get_by_role("slider").press(key)
        viewer.until("v.pane.heatmap && v.pane.heatmap !== v.last && !v.asked")  # it is here, and drawn
    assert viewer.ask("v.heatKey.split('/').slice(1)") == ["4", "1"]
    assert np.abs(viewer.pixels() - first).max() > 20  # another core of another layer looks elsewhere


def test_channels_of_a_fluorescence_image_are_chosen_and_coloured(view: Open) -> None:
    viewer = view("")
    viewer.page.locator(".thumb", has_text="cells.ome.tif").click()
    viewer.until("v.data.image.name.endsWith('cells.ome.tif') && v.pane.viewer.world.getItemAt(0)?.getFullyLoaded()")
    viewer.settled_image()
    blue = viewer.at(150, 150)
    assert blue[2] > 100
    assert blue[0] < 40
    expect(viewer.page.get_by_text("No model is here for a slide with 3 bands of uint16.")).to_be_visible()
    viewer.page.locator("summary", has_text="Channels").click()
    viewer.shoot("17-fluorescence")
    viewer.page.get_by_role("checkbox", name="DAPI").uncheck()
    viewer.until("v.data.look && v.pane.viewer.world.getItemAt(0)?.getFullyLoaded()")
    viewer.settled_image()
    assert viewer.at(150, 150).max() < 40
    assert viewer.at(350, 350)[1] > 100


def test_one_goes_to_places_in_pixels_the_crs_and_degrees(view: Open, folder: Path) -> None:
    viewer = view("")
    viewer.page.locator(".thumb", has_text="OSBS_029.tif").click()
    viewer.until("v.data.image.name.endsWith('OSBS_029.tif') && v.pane.viewer.world.getItemAt(0)?.getFullyLoaded()")
    with rasterio.open(folder / "samples" / "OSBS_029.tif") as dataset:
        x, y = dataset.transform @ (300.5, 120.5)
        lon, lat = Transformer.from_crs(dataset.crs, 4326, always_xy=True).transform(x, y)
    for way, text in (("pixels", "120.5, 300.5"), ("EPSG:32617", f"{x}, {y}"), ("lat, lon", f"{lat:.9f} {lon:.9f}")):
        viewer.ask("v.goTo({y: 10, x: 10, zoom: 2})")
        viewer.key("g")
        viewer.page.get_by_label("Kind of coordinates").select_option(way)
        viewer.page.locator(".message input").fill(text)
        viewer.page.keyboard.press("Enter")
        viewer.until("Math.abs(v.place().y - 120.5) < 0.3 && Math.abs(v.place().x - 300.5) < 0.3", 10)
    viewer.key("g")
    viewer.page.get_by_label("Kind of coordinates").select_option("pixels")
    viewer.page.locator(".message input").fill("91, 5000")
    viewer.page.keyboard.press("Enter")
    expect(viewer.page.locator(".message")).to_contain_text("outside of the image")


def test_a_row_of_the_table_of_regions_goes_there(view: Open) -> None:
    viewer = view("")
    viewer.choose("Mask", "results/first")
    viewer.page.locator("summary", has_text="Regions").click()
    viewer.page.locator(".rows td").first.click()
    viewer.until("Math.abs(v.place().y - 600) < 5 && !v.pane.viewer.isAnimating()")
    viewer.shoot("14-regions")
    place = viewer.ask("v.place()")
    assert abs(place["y"] - 600) < 5
    assert abs(place["x"] - 1100) < 5


def test_a_raster_reads_out_its_coordinates(view: Open) -> None:
    viewer = view("")
    viewer.page.locator(".thumb", has_text="OSBS_029.tif").click()
    viewer.until("v.data.image.name.endsWith('OSBS_029.tif') && v.pane.viewer.world.getItemAt(0)?.getFullyLoaded()")
    viewer.page.mouse.move(viewer.pane["x"] + viewer.pane["width"] / 2, viewer.pane["y"] + viewer.pane["height"] / 2)
    expect(viewer.page.locator(".cursor")).to_contain_text("EPSG:32617")
    expect(viewer.page.locator(".cursor")).to_contain_text("lon -81.9")
    viewer.shoot("11-raster")


def test_the_viewer_is_dark_where_the_browser_is(server: Server, browser: Browser, shots: Path) -> None:
    page = browser.new_page(viewport=SIZE, color_scheme="dark")  # type: ignore[arg-type]
    viewer = Viewer(page, shots)
    page.goto(server.url)
    page.wait_for_selector(".veca .pane canvas")
    viewer.settled()
    viewer.shoot("12-dark")
    background = viewer.root.evaluate("e => getComputedStyle(e).backgroundColor")
    assert max(int(part) for part in background[4:-1].split(",")[:3]) < 80
    page.close()


def test_after_a_restart_an_open_page_goes_on_and_a_link_opens_the_same_view(
    folder: Path, shots: Path, browser: Browser
) -> None:
    page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
    viewer = Viewer(page, shots)
    with serving([folder], folder, home=folder.parent) as first:
        page.goto(first.url)
        page.wait_for_selector(".veca .pane canvas")
        viewer.settled()
        viewer.choose("Mask", "results/second")
        viewer.until("v.layers.first?.layer.name === 'results/second'")
        viewer.ask("v.goTo({y: 1234, x: 777, zoom: 1.5, turn: 90}, false)")
        viewer.until("!v.pane.viewer.isAnimating()")
        viewer.settled()
        link = viewer.ask("String(v.address())")
    viewer.ask("v.goTo({y: 1100, x: 900, zoom: 2})")  # tiles that nobody can give
    time.sleep(0.5)
    with serving([folder], folder, home=folder.parent, port=first.port):
        second = Viewer(browser.new_page(viewport=SIZE), shots)  # type: ignore[arg-type]
        second.page.goto(link)
        second.page.wait_for_selector(".veca .pane canvas")
        second.settled()
        assert second.ask("v.place()") == pytest.approx({"y": 1234, "x": 777, "zoom": 1.5, "turn": 90}, abs=0.01)
        assert second.ask("v.layers.first.layer.name") == "results/second"
        second.shoot("10-restart")
        second.page.close()
        page.bring_to_front()
        viewer.settled()
        assert viewer.ask("v.place()") == pytest.approx({"y": 1100, "x": 900, "zoom": 2, "turn": 0}, abs=0.5)
        assert viewer.ask("v.layers.first.layer.name") == "results/second"
        # The page answers again: what is chosen now is shown.
        viewer.choose("Mask", "results/first")
        viewer.until("v.layers.first?.layer.name === 'results/first'")
        page.close()


def test_a_region_that_the_server_lost_is_told_and_no_longer_asked_for(view: Open) -> None:
    viewer = view("")
    viewer.ask("v.live.update({layer: {running: true, id: '0'.repeat(32)}})")
    expect(viewer.page.locator(".status")).to_contain_text("was not finished")
    viewer.until("!v.live.task")
    viewer.problems.clear()  # the browser's own word for the status 404


def test_classes_are_painted_erased_taken_back_and_written_beside_the_result(view: Open, folder: Path) -> None:
    before = {path: path.read_bytes() for path in (folder / "results" / "second").rglob("*") if path.is_file()}
    viewer = view("")
    viewer.choose("Mask", "results/second")
    viewer.until("v.layers.first?.layer.name === 'results/second'")
    viewer.page.get_by_text("Correct", exact=True).first.click()
    viewer.page.get_by_role("button", name="Correct this mask").click()
    viewer.until("v.layers.first?.layer.name === 'results/second, corrected'")
    viewer.ask("v.goTo({y: 1000, x: 1000, zoom: 1})")
    viewer.page.get_by_label("Opacity").evaluate("e => { e.value = 1; e.dispatchEvent(new Event('input')); }")
    viewer.settled()
    other = view("?" + viewer.page.url.partition("?")[2])  # the same in another tab
    viewer.page.bring_to_front()
    viewer.key("b")
    viewer.drag((-150, -60), (150, 60))
    viewer.until("v.correct.count === 1 && !v.correct.queue.length")
    viewer.settled()
    viewer.shoot("13-painted")
    assert np.abs(viewer.at(1000, 1000) - (0, 168, 107)).max() < 3
    viewer.key("e")
    viewer.drag((-20, 0), (20, 0))
    viewer.until("v.correct.count === 2 && !v.correct.queue.length")
    viewer.settled()
    assert np.abs(viewer.at(1000, 1000) - (0, 168, 107)).max() > 20
    viewer.key("z")
    viewer.until("v.correct.count === 1 && !v.correct.queue.length")
    viewer.settled()
    assert np.abs(viewer.at(1000, 1000) - (0, 168, 107)).max() < 3
    # The other tab shows it with its next question to the page.
    other.ask("v.draw.done([[980, 980], [980, 1020], [1020, 1020], [1020, 980]])")
    other.until("v.correct.count === 1 && [...v.layers.first.tiles.values()].length && !v.layers.first.loading.size")
    assert other.ask("v.layers.first.valueAt(1000, 1000).value") == 1
    # The table of what is drawn counts it.
    viewer.ask("v.draw.done([[980, 980], [980, 1020], [1020, 1020], [1020, 980]])")
    expect(viewer.page.locator(".measured td", has_text="nucleus").locator("xpath=../td[3]")).not_to_be_empty()
    viewer.page.get_by_role("button", name="Write the files").click()
    expect(viewer.page.get_by_text("Files and areas are those of the last stroke")).to_be_visible(timeout=90_000)
    made = folder / "results" / "second.corrected"
    assert {"labels.zarr", "mask.tif", "areas.csv", "regions.geojson", "corrections.geojson"} <= {
        path.name for path in made.iterdir()
    }
    mask = tifffile.imread(made / "mask.tif")
    assert mask[1000, 1000] == 1
    assert {path: path.read_bytes() for path in before} == before
    assert len(list((folder / "results" / "second").rglob("*"))) >= len(before)


@pytest.fixture
def map_service() -> Iterator[tuple[str, list[str]]]:
    """A map service of one blue tile; what it was asked for."""
    picture = io.BytesIO()
    Image.new("RGB", (256, 256), (40, 90, 200)).save(picture, "PNG")
    asked: list[str] = []

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(picture.getvalue())

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}/{{z}}/{{x}}/{{y}}.png", asked
        service.shutdown()


def test_a_raster_and_its_mask_lie_on_the_map(
    folder: Path, browser: Browser, shots: Path, map_service: tuple[str, list[str]]
) -> None:
    url, asked = map_service
    scene = folder / "samples" / "OSBS_029.tif"
    values = np.zeros((400, 400), np.uint8)
    values[100:200, 100:300] = 1
    place = folder.parent / "mapped"
    place.mkdir()
    shutil.copy(scene, place / "scene.tif")
    write_bundle(place / "results" / "scene", place / "scene.tif", values, CLASSES, exports=("areas", "mask"))
    options = ("--base-map", url, "--base-map-credit", "Blue maps")
    with serving([place], place, home=folder.parent, options=options) as server:
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        viewer = Viewer(page, shots)
        page.goto(server.url + "?map=1")
        page.wait_for_selector(".veca .pane canvas")
        viewer.until("v.scaleNow > 0.5", 60)  # it opens on the raster
        viewer.ask("v.zoomBy(0.4)")
        viewer.until("!v.pane.viewer.isAnimating() && v.pane.viewer.world.getItemAt(1)?.getFullyLoaded()")
        page.get_by_label("Opacity").evaluate("e => { e.value = 1; e.dispatchEvent(new Event('input')); }")
        viewer.settled()
        expect(page.locator(".credit")).to_have_text("Blue maps")
        grid = viewer.ask("[v.data.image.base.zoom, v.data.image.base.x, v.data.image.base.y]")
        with rasterio.open(scene) as dataset:
            inside, beside = dataset.xy(150, 200), dataset.xy(-40, 200)
            below = dataset.xy(350, 350)

        def on_map(at: tuple[float, float]) -> tuple[float, float]:
            """(y, x) in pixels of the finest level of the map."""
            x, y = Transformer.from_crs(dataset.crs, 3857, always_xy=True).transform(*at)
            pixels = 256 * 2 ** grid[0] / (2 * 20037508.342789244)
            return (20037508.342789244 - y) * pixels - 256 * grid[2], (x + 20037508.342789244) * pixels - 256 * grid[1]

        assert np.abs(viewer.at(*on_map(inside)) - (0, 168, 107)).max() < 3  # the mask
        assert np.abs(viewer.at(*on_map(beside)) - (40, 90, 200)).max() < 3  # the map
        assert np.abs(viewer.at(*on_map(below)) - (40, 90, 200)).max() > 20  # the raster
        viewer.shoot("15-map")
        zooms = {int(path.split("/")[1]) for path in asked}
        assert all(0 <= int(path.split("/")[2]) < 2 ** int(path.split("/")[1]) for path in asked)
        assert min(zooms) >= grid[0] - 8
        box = viewer.pane
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(page.locator(".cursor")).to_contain_text("lon -81.98")
        page.close()


def test_whoever_signs_in_sees_slides_and_nobody_else_does(
    folder: Path, browser: Browser, shots: Path, tmp_path: Path
) -> None:
    port = free_port("127.0.0.1", 0)
    with providing() as provider:
        (tmp_path / ".streamlit").mkdir()
        (tmp_path / ".streamlit" / "secrets.toml").write_text(provider.secrets(f"http://127.0.0.1:{port}"))
        with serving([folder / "samples"], tmp_path, port=port) as server:
            page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
            viewer, statuses = Viewer(page, shots), {}
            page.on("response", lambda answer: statuses.setdefault(answer.url.replace(server.url, ""), answer.status))
            page.goto(server.url)
            sign_in = page.get_by_role("button", name="Sign in")
            expect(sign_in).to_be_visible(timeout=60_000)
            viewer.shoot("16-sign-in")
            assert page.locator(".veca").count() == 0
            assert not any("/veca/image" in url for url in statuses)
            sign_in.click()
            page.wait_for_selector(".veca .pane canvas", timeout=60_000)
            viewer.settled()
            assert {"/authorize", "/token", "/jwks"} <= set(provider.asked)
            tiles = [url for url in statuses if "/veca/image" in url]
            assert tiles
            assert all("pass=" in url for url in tiles)
            assert {statuses[url] for url in tiles} == {200}
            # The cookie of who has signed in opens no tile: the pass does, for as long as it holds.
            bare = tiles[0].split("?")[0]
            assert page.evaluate("async url => (await fetch(url)).status", bare) == 401
            assert server.ask(bare)[0] == 401
            expect(page.get_by_text("Ada Pathologist")).to_be_visible()
            page.get_by_role("button", name="Sign out").click()
            expect(sign_in).to_be_visible(timeout=60_000)
            assert page.locator(".veca").count() == 0
            page.close()
