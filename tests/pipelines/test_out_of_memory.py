"""Where the device runs out of memory the plan is stepped down and the batch repeated; every other error stays one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from places import PATCH, WINDOW, PlaceModel, expected, model, place_bands, rgb, write_png
from torch import Tensor

from pipelines import Bundle, Options, segment, segment_all
from pipelines.errors import RequestError
from pipelines.inference import Predictor
from pipelines.job import Job
from pipelines.segmentation import Failure
from tiling import Grid, View, open_image
from tiling.readers.array import ArraySource
from veca_core import Model

PLAIN = Options(device="cpu", tissue=False, exports=("mask",))


class Small(PlaceModel):
    """Has memory for so many pixels, and raises an error for more."""

    def __init__(self, most: int, error: Callable[[], Exception]) -> None:
        super().__init__(place_bands(3))
        self.most = most
        self.error = error

    def forward(self, pixels: Tensor, cores: int | None = None, chunk: int | None = None) -> Tensor:
        answer = super().forward(pixels, cores, chunk)
        if pixels.shape[0] * pixels.shape[-2] * pixels.shape[-1] > self.most:
            raise self.error()
        return answer


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def small_model(most: int, error: Callable[[], Exception] = out_of_memory) -> Model:
    return replace(model(), network=Small(most, error).eval())


def test_the_batch_is_halved_and_repeated_until_it_fits() -> None:
    view = View.open(ArraySource(rgb(150, 203)))
    grid = Grid.over(view.size, 32, 8, PATCH)
    said: list[str] = []
    network = Small(2 * 32 * 32, out_of_memory).eval()
    predictor = Predictor(network, 64, 8, torch.device("cpu"), torch.float32, stepped_down=said.append)
    values = np.arange(0, 23, dtype=np.uint8) * 11
    assert np.array_equal(predictor.predict_block(view, grid, view.size.box).labels(values, 255), expected(150, 203))
    assert said == ["out of memory on cpu: batch 8 -> 4", "out of memory on cpu: batch 4 -> 2"]
    assert predictor.batch == 2
    assert network.calls == 2 + -(-len(grid) // 2), "what was asked twice is only what did not fit"


def test_where_one_window_does_not_fit_the_image_is_done_with_smaller_ones(tmp_path: Path) -> None:
    image, said = write_png(tmp_path / "a.png", 300, 203), list[str]()
    described = model().card.model_copy(update={"window": 512})
    used = replace(small_model(130 * 130), card=described)
    bundle = segment(image, used, tmp_path / "out", PLAIN, report=said.append)
    found = bundle.labels()
    assert np.array_equal(found.read(found.size.box), expected(300, 203))
    assert bundle.run.plan.window == 128
    with open_image(image) as source:  # type: ignore[attr-defined]
        assert bundle.run.plan.predicted < Job.prepare(source, used, tmp_path / "new", PLAIN).plan.predicted
    assert bundle.run.steps_down == (
        "out of memory on cpu: window 512 px -> 256 px, started anew",
        "out of memory on cpu: window 256 px -> 128 px, started anew",
    )
    assert [line for line in said if "out of memory" in line] == list(bundle.run.steps_down)
    assert Bundle.open(bundle.folder) == bundle
    assert segment(image, used, tmp_path / "out", PLAIN) == bundle, "the smaller plan is kept with the result"


def test_a_pinned_window_is_not_made_smaller(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 100, 203)
    with pytest.raises(RequestError, match="cpu has too little memory for one window of 64 px; ask for a smaller"):
        segment(image, small_model(60 * 60), tmp_path / "out", replace(PLAIN, window=64))


def test_the_smallest_window_that_does_not_fit_is_said(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 100, 203)
    with pytest.raises(RequestError, match=f"too little memory for one window of {WINDOW} px"):
        segment(image, small_model(60 * 60), tmp_path / "out", PLAIN)
    assert not (tmp_path / "out" / "a" / "run.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
        lambda: MemoryError("Unable to allocate 2.00 GiB"),
        lambda: ValueError("out of memory"),
    ],
    ids=["says it is one", "illegal access", "MemoryError", "ValueError"],
)
def test_any_other_error_is_never_taken_for_one(tmp_path: Path, error: Callable[[], Exception]) -> None:
    image = write_png(tmp_path / "a.png", 100, 203)
    used = small_model(1, error)
    with pytest.raises(type(error())) as caught:
        segment(image, used, tmp_path / "out", PLAIN)
    assert str(caught.value) == str(error())
    assert isinstance(used.network, Small)
    assert used.network.calls == 1, "nothing is tried again"
    (failure,) = segment_all([image], used, tmp_path / "out", PLAIN)
    assert isinstance(failure, Failure)
    assert str(error()) in failure.reason
