"""Corrections: a brush paints what it passes, nothing is lost, the result stays, and one can train on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from drawn_slides import tissue, write_svs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize

from pipelines.display.masks import MaskTiles, polygon_mask
from pipelines.errors import RequestError
from pipelines.live.corrected import SHAPES, CorrectedTiles, write_corrected
from pipelines.live.corrections import STROKES, Corrections, Stroke
from pipelines.live.excerpt import FORMATS, write_excerpt
from pipelines.truth import read_shapes
from tiling import Box, LabelClass, Size, View, open_image
from tiling.canvas import Canvas
from tiling.labels import Labels

CLASSES = (LabelClass(0, "background", (0, 0, 0)), LabelClass(1, "gland", (0, 200, 0)), LabelClass(4, "fat", (9, 9, 9)))
HEIGHT, WIDTH = 700, 900


def begin(place: Path, image: Path) -> Corrections:
    """A mask of the image with a square of gland, and corrections for it."""
    source = open_image(image)
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[100:200, 100:200] = 1
    canvas = Canvas.create(
        place / "case" / "labels.partial", size=Size(HEIGHT, WIDTH), block=512, chunk=512, classes=CLASSES,
        georef=source.georef, kind=source.kind, name="x", fingerprint="f",
    )  # fmt: skip
    with canvas:
        for box in canvas.blocks:
            canvas.write(box, np.ascontiguousarray(values[box.slices]))
        labels = canvas.publish(place / "case" / "labels.zarr")
    return Corrections(Corrections.begin(place / "case", str(image), "f", "m", 8, CLASSES, labels.size))


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_svs(tmp_path / "slide.svs", tissue(HEIGHT, WIDTH))


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=3, dtype="uint8", crs="EPSG:32617",
        transform=rasterio.Affine(0.1, 0, 402000, 0, -0.1, 3284000),
    ) as out:  # fmt: skip
        out.write(np.full((3, HEIGHT, WIDTH), 90, np.uint8))
    return path


PAINTED = (
    Stroke(4, 12.5, ((300, 300), (340, 420), (500, 410))),
    Stroke(1, 0, ((380, 350), (380, 500), (560, 500), (450, 400))),
    Stroke(0, 9, ((150, 90), (150, 210))),
    Stroke(None, 5, ((150, 140), (150, 160))),
    Stroke(255, 6, ((600, 600),)),
)


def paint(corrections: Corrections) -> NDArray[np.uint8]:
    """What the mask is with PAINTED on it."""
    for stroke in PAINTED:
        corrections.add(stroke)
    labels = Labels.open(corrections.mask / "labels.zarr")
    return corrections.burn(labels.read(labels.size.box), labels.size.box)


@settings(max_examples=25, deadline=None)
@example(points=[(1.75, 45.0), (100.0, 0.0), (16.5, 0.0), (1.75, 45.0), (100.0, 0.0)], radius=3.880859375)
@given(
    points=st.lists(st.tuples(st.floats(-20, 120), st.floats(-20, 120)), min_size=1, max_size=5),
    radius=st.floats(1, 30),
)
def test_a_brush_paints_the_pixels_whose_centres_it_passes(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[float, float]], radius: float
) -> None:
    place = tmp_path_factory.mktemp("brush")
    (place / "mask").mkdir()
    corrections = Corrections(Corrections.begin(place / "mask", "i", "f", "m", 8, CLASSES))
    corrections.add(Stroke(4, radius, tuple(points)))
    painted = corrections.burn(np.zeros((100, 100), np.uint8), Box(0, 0, 100, 100)) == 4
    y, x = np.mgrid[:100, :100] + 0.5
    away = np.full((100, 100), np.inf)
    for (ay, ax), (by, bx) in zip([points[0], *points], points, strict=False):
        length = (by - ay) ** 2 + (bx - ax) ** 2
        along = np.clip(((y - ay) * (by - ay) + (x - ax) * (bx - ax)) / length, 0, 1) if length else 0
        away = np.minimum(away, np.hypot(y - ay - along * (by - ay), x - ax - along * (bx - ax)))
    assert painted[away < radius * 0.99 - 0.02].all()
    assert not painted[away > radius + 0.02].any()


@settings(max_examples=60, deadline=None)
@given(points=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=3, max_size=9))
@example(points=[(0, 0), (0, 1), (0, 0), (1, 0), (0, 1), (1, 0)])  # every side runs twice
def test_a_filled_shape_holds_what_the_even_odd_rule_says_however_it_crosses_itself(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[int, int]]
) -> None:
    place = tmp_path_factory.mktemp("shape")
    (place / "mask").mkdir()
    corrections = Corrections(Corrections.begin(place / "mask", "i", "f", "m", 8, CLASSES))
    corners = [(y + 0.25, x + 0.25) for y, x in points]
    box = Box(0, 0, 42, 42)
    wanted = polygon_mask(corners, box)
    y, x = np.mgrid[:42, :42] + 0.5
    outline = shapely.LinearRing([(x, y) for y, x in corners])
    clear = shapely.distance(outline, shapely.points(x, y)) > 1e-6  # a centre on the outline may be either
    try:
        corrections.add(Stroke(4, 0, tuple(corners)))
    except RequestError:
        assert not (wanted & clear).any()  # it holds nothing
        return
    painted = corrections.burn(np.zeros((42, 42), np.uint8), box) == 4
    assert np.array_equal(painted[clear], wanted[clear])


def test_a_later_stroke_covers_earlier_ones_and_restoring_shows_the_mask_again(tmp_path: Path, slide: Path) -> None:
    values = paint(begin(tmp_path, slide))
    assert (values[320, 350], values[445, 450], values[150, 110], values[150, 150]) == (4, 1, 0, 1)
    assert values[600, 600] == 255
    assert values[110, 110] == 1


def test_strokes_outlive_the_process_and_a_line_that_was_cut_off_does_no_harm(tmp_path: Path, slide: Path) -> None:
    corrections = begin(tmp_path, slide)
    paint(corrections)
    with (corrections.folder / STROKES).open("ab") as file:
        file.write(b'{"value": 1, "radius": 3, "poi')  # killed here
    again = Corrections(corrections.folder)
    assert again.strokes == list(PAINTED)
    assert again.undo() == PAINTED[-1]
    again.add(PAINTED[0])
    assert corrections.strokes == [*PAINTED[:-1], PAINTED[0]]  # another process sees it too
    for line in (corrections.folder / STROKES).read_text().splitlines():
        json.loads(line)


def test_nothing_is_taken_back_where_nothing_was_painted(tmp_path: Path, slide: Path) -> None:
    corrections = begin(tmp_path, slide)
    assert corrections.undo() is None
    assert (corrections.folder / STROKES).read_bytes() == b""


def test_the_result_itself_is_never_touched(tmp_path: Path, slide: Path) -> None:
    corrections = begin(tmp_path, slide)
    before = {path: path.read_bytes() for path in (tmp_path / "case").rglob("*") if path.is_file()}
    paint(corrections)
    write_corrected(corrections)
    assert {path: path.read_bytes() for path in (tmp_path / "case").rglob("*") if path.is_file()} == before


def test_every_level_and_count_shows_the_strokes_in_their_place(tmp_path: Path, slide: Path) -> None:
    corrections = begin(tmp_path, slide)
    values = paint(corrections)
    tiles = CorrectedTiles(MaskTiles.open(tmp_path / "case" / "labels.zarr", open_image(slide).georef), corrections)
    assert np.array_equal(tiles.tile(0, 0, 1), values[:512, 512:])
    assert (tiles.tile(1, 0, 0)[::2, ::2] == values[::4, ::4][:175, :225]).mean() > 0.99
    assert tiles.count([(0, 0), (0, WIDTH), (HEIGHT, WIDTH), (HEIGHT, 0)]).pixels == {
        int(v): n for v, n in zip(*np.unique(values, return_counts=True), strict=True)
    }


@pytest.mark.parametrize("kind", ["slide", "raster"])
def test_what_was_painted_is_written_as_truth_that_training_reads(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    image: Path = request.getfixturevalue(kind)
    corrections = begin(tmp_path, image)
    values = paint(corrections)
    names = {path.name for path in write_corrected(corrections)}
    assert {SHAPES, "mask.tif", "areas.csv"} <= names
    assert np.array_equal(Labels.open(corrections.folder / "labels.zarr").read(Size(HEIGHT, WIDTH).box), values)
    view = View.open(open_image(image))
    known = {c.name: c.value for c in CLASSES}
    truth = read_shapes(corrections.folder / SHAPES, view, known, None, 255).values(Box(0, 0, HEIGHT, WIDTH))
    empty = np.full((HEIGHT, WIDTH), 255, np.uint8)
    expected = corrections.burn(empty, Box(0, 0, HEIGHT, WIDTH))
    assert (truth != expected).sum() <= 3  # a centre that lies on an outline
    assert set(np.unique(truth)) == {0, 1, 4, 255}


@pytest.mark.parametrize(
    ("stroke", "reason"),
    [
        ((2, 3.0, ((1, 1),)), "no class 2"),
        ((300, 3.0, ((1, 1),)), "class value 0..255"),
        ((1, -1.0, ((1, 1),)), "a radius and 1 to"),
        ((1, 3.0, ()), "got 0"),
        ((1, 3.0, ((float("nan"), 1),)), "a radius and 1 to"),
        ((1, 0.0, ((1, 1), (2, 2), (3, 3))), "holds something"),
    ],
)
def test_a_stroke_that_is_none_is_refused(
    tmp_path: Path, slide: Path, stroke: tuple[int, float, tuple[tuple[float, float], ...]], reason: str
) -> None:
    corrections = begin(tmp_path, slide)
    with pytest.raises(RequestError, match=reason):
        corrections.add(Stroke(*stroke))
    assert corrections.strokes == []


def test_a_damaged_journal_and_other_classes_are_told(tmp_path: Path, slide: Path) -> None:
    corrections = begin(tmp_path, slide)
    (corrections.folder / STROKES).write_text('{"value": 1}\n')
    with pytest.raises(RequestError, match="line 1 is no stroke"):
        Corrections(corrections.folder)
    (corrections.folder / STROKES).write_text("")
    record = corrections.folder / "corrections.json"
    record.write_text(record.read_text().replace("gland", "duct"))
    mask = MaskTiles.open(tmp_path / "case" / "labels.zarr", None)
    with pytest.raises(RequestError, match="move the corrections elsewhere"):
        CorrectedTiles(mask, Corrections(corrections.folder))


def test_strokes_are_not_laid_on_a_mask_of_other_pixels(tmp_path: Path, slide: Path) -> None:
    """The image was segmented again, at another pixel size: strokes would lie elsewhere on it."""
    corrections = begin(tmp_path, slide)
    corrections.add(PAINTED[0])
    mask = tmp_path / "case"
    canvas = Canvas.create(
        mask / "labels.partial", size=Size(HEIGHT // 2, WIDTH // 2), block=512, chunk=512, classes=CLASSES,
        georef=open_image(slide).georef.scaled(2, 2), kind="slide", name="x", fingerprint="g", scale=(2, 2),
    )  # fmt: skip
    shutil.rmtree(mask / "labels.zarr")
    with canvas:
        for box in canvas.blocks:
            canvas.write(box, np.zeros((box.height, box.width), np.uint8))
        labels = canvas.publish(mask / "labels.zarr")
    with pytest.raises(RequestError, match=r"700 x 900 px, but .* is 350 x 450 px now; move the corrections elsewhere"):
        CorrectedTiles(MaskTiles.open(mask / "labels.zarr", None), corrections)
    with pytest.raises(RequestError, match="move the corrections elsewhere"):
        write_corrected(corrections)
    with pytest.raises(RequestError, match="move the corrections elsewhere"):
        write_excerpt(labels, corrections, None, [4], ["areas.csv"], tmp_path)
    assert sorted(file.name for file in corrections.folder.iterdir()) == ["corrections.json", STROKES]


@pytest.mark.parametrize("kind", ["slide", "raster"])
def test_an_excerpt_holds_the_chosen_classes_of_what_was_drawn_in_their_place(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    image: Path = request.getfixturevalue(kind)
    corrections = begin(tmp_path, image)
    values = paint(corrections)
    labels = Labels.open(corrections.mask / "labels.zarr")
    corners = [(120.0, 90.0), (120.0, 480.0), (480.0, 480.0), (480.0, 90.0)]
    out = tmp_path / "out"
    out.mkdir()
    files = write_excerpt(labels, corrections, corners, [1, 4], list(FORMATS.values()), out)
    assert {path.name for path in files} == {"regions.geojson", "regions.gpkg", "regions.csv", "areas.csv"}
    assert set(out.iterdir()) == set(files)
    wanted = np.full_like(values, 255)
    wanted[120:480, 90:480] = values[120:480, 90:480]
    wanted[wanted == 0] = 255
    found = np.full_like(values, 255)
    for feature in json.loads((out / "regions.geojson").read_text())["features"]:
        shape, value = feature["geometry"], feature["properties"]["value"]
        found[rasterize([(shape, 1)], out_shape=found.shape) == 1] = value
    assert np.array_equal(found, wanted)
    with pytest.raises(RequestError, match="nothing of these classes"):
        write_excerpt(labels, None, [(650.0, 5.0), (650.0, 9.0), (690.0, 9.0)], [4], ["regions.csv"], out)
