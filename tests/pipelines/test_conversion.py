"""Exports that are made later are those that the run itself makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from places import model as places_model
from places import write_slide

from pipelines import Bundle, Options
from pipelines.conversion import convert
from pipelines.segmentation import segment
from tiling import Spacing, open_image
from veca_core import load_model
from veca_core.card import PixelSize

EXPORTS = ("mask", "areas", "regions", "preview")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """Folders of a result with all exports, and of one with none, of the same image."""
    folder = tmp_path_factory.mktemp("convert")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    model = load_model(tiny_model)
    spacing = Spacing.square(0.5, "um")
    for out, exports in {"all": EXPORTS, "none": ()}.items():
        segment(folder / "a.png", model, folder / out, Options(exports=exports, spacing=spacing, cores=8))
    return folder / "all" / "a", folder / "none" / "a"


def test_a_later_export_has_the_same_bytes_and_needs_no_torch(finished: tuple[Path, Path]) -> None:
    everything, bare = finished
    words = ["veca", "convert", str(bare), "--exports", ",".join(EXPORTS)]
    run = "from pipelines.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    script = f"import sys; sys.argv = {words}\n{run}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    outputs = set(Bundle.open(everything).run.outputs)
    assert outputs == set(Bundle.open(bare).run.outputs)
    assert outputs == {
        "labels.zarr", "mask.tif", "areas.csv", "regions.geojson", "regions.csv", "preview.png",
    }  # fmt: skip
    for name in outputs - {"labels.zarr"}:
        assert (bare / name).read_bytes() == (everything / name).read_bytes(), name


def test_the_image_itself_can_be_written_with_its_labels_within(finished: tuple[Path, Path], veca: Any) -> None:
    everything, _ = finished
    assert veca("convert", everything, "--exports", "image").status == 0
    bundle = Bundle.open(everything)
    assert "image.zarr" in bundle.run.outputs
    with open_image(everything / "image.zarr") as image, open_image(everything.parents[1] / "a.png") as original:
        box = original.levels[0].size.box
        assert np.array_equal(image.read(box), original.read(box))
        assert np.array_equal(
            open_image(everything / "image.zarr/labels/classes").read(box)[..., 0], bundle.labels().read(box)
        )


def test_wishes_reach_the_regions(finished: tuple[Path, Path], veca: Any) -> None:
    _, bare = finished
    said = veca(
        "convert", bare, "--exports", "geojson,geoparquet", "--objects", "detection", "--min-area", "5px", "--json"
    )
    assert said.status == 0
    run = json.loads(said.out)[0]["run"]
    assert {"regions.geojson", "regions.parquet"} <= set(run["outputs"])
    features = json.loads((bare / "regions.geojson").read_text())["features"]
    assert {f["properties"]["objectType"] for f in features} <= {"detection"}


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["--exports", "shapes"], 2, "there is no export 'shapes'; the exports are mask"),
        (["--exports", "mask", "--classes", "a"], 2, "the wishes are about regions"),
        (["--exports", "geojson", "--classes", "nothing"], 1, "there is no class 'nothing'"),
        (["--exports", "geojson", "--simplify", "much"], 2, "cannot read 'much' as a length"),
        (["--exports", "geojson", "--objects", "cell"], 2, "annotation or detection"),
        (["--exports", "geojson", "--origin", "label"], 2, "slide or bounds"),
    ],
)
def test_what_cannot_be_converted_is_one_line(
    finished: tuple[Path, Path], veca: Any, words: list[str], status: int, line: str
) -> None:
    said = veca("convert", finished[0], *words)
    assert said.status == status
    assert line in said.line


def test_a_folder_without_a_result_is_one_line(tmp_path: Path, veca: Any) -> None:
    said = veca("convert", tmp_path, "--exports", "mask")
    assert said.status == 2
    assert "is no finished result" in said.line


@pytest.mark.parametrize("um", [0.5, 0.7, 1.0])
def test_an_image_that_is_written_later_is_on_the_grid_of_its_labels(tmp_path: Path, um: float) -> None:
    """At its own pixels, resampled, and at a coarser level: as a run itself writes it."""
    slide, model = write_slide(tmp_path / "a.ome.tif", 200, 300), places_model(spacing=PixelSize(value=um, unit="um"))
    at_once = segment(slide, model, tmp_path / "at once", Options(exports=("image", "preview"), device="cpu"))
    later = segment(slide, model, tmp_path / "later", Options(exports=(), device="cpu"))
    convert(later.folder, ["image", "preview"])
    assert later.preview is not None
    with open_image(at_once.folder / "image.zarr") as one, open_image(later.folder / "image.zarr") as other:
        assert one.levels == other.levels
        assert one.georef == other.georef
        box = one.levels[0].size.box
        assert np.array_equal(one.read(box), other.read(box))
