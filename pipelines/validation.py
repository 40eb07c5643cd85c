"""Segments whole labelled scenes through the same path as `segment`, and counts what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.inference import Predictor, fast_precision
from pipelines.measure import Confusion
from pipelines.scenes import IGNORE, Scene
from tiling import Grid
from veca_core import Segmenter

VALIDATION_BLOCK: Final = 2048


def validate(
    network: nn.Module,
    scenes: Sequence[Scene],
    lookup: NDArray[np.uint8],
    device: torch.device,
    *,
    cores: int,
    window: int,
    multiple: int,
    tick: Callable[[], None] = lambda: None,
) -> Confusion:
    """The confusion over all scenes at native resolution.

    `network` is a Segmenter, or what takes and gives the same; its windows have sides that are multiples of `multiple`.
    """
    segmenter = cast(Segmenter, network.eval())
    predictor = Predictor(segmenter, cores, 1, device, fast_precision(device))
    confusion = Confusion(segmenter.classes)
    indices = np.arange(segmenter.classes, dtype=np.uint8)
    for scene in scenes:
        grid = Grid.over(scene.view.size, window, window // 8, multiple)
        called = predictor.predict_blocks(
            scene.view, grid, scene.boxes(VALIDATION_BLOCK), lambda block, done: (block, done.labels(indices, IGNORE))
        )
        for block, labels in called:
            confusion.add(scene.targets(block, lookup), labels)
        tick()
    return confusion
