"""Segments a drawn region with the windows, grid and plan of a whole run, so that its pixels are that run's pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.display.masks import Place, polygon_mask
from pipelines.errors import RequestError
from pipelines.inference import Prediction
from pipelines.job import Job
from pipelines.live.board import CONFIDENCE, Board
from pipelines.segmentation import open_predictor
from tiling import NODATA, Box, LabelClass, Size
from tiling.canvas import Canvas
from tiling.exports import EXPORTS
from tiling.labels import Labels

CELL: Final = 256
"""Side in pixels of what is shown at once when it is finished."""
LARGEST: Final = 2**27
"""Pixels of a region at most: more is a run over the image, which goes on after an interruption."""
BLOCK: Final = 1024
EXPORTED: Final = ("mask", "areas", "regions")
_END: Final = object()
Corners = Sequence[tuple[float, float]]
"""(y, x) in level-0 pixels."""


def region_box(job: Job, corners: Corners) -> Box:
    """The pixels of the run's grid that a polygon touches; raises RequestError for one that is empty or too large."""
    size: Size = job.view.size
    own = own_corners(job, corners)
    top, left = (max(0, int(np.floor(min(p[i] for p in own)))) for i in (0, 1))
    bottom = min(size.height, int(np.ceil(max(p[0] for p in own))))
    right = min(size.width, int(np.ceil(max(p[1] for p in own))))
    if top >= bottom or left >= right:
        raise RequestError("the drawn region lies outside of the image; draw it on the image")
    box = Box.between(top, left, bottom, right)
    if not any(polygon_mask(own, cell).any() for cell in cells(box)):
        raise RequestError("the drawn region holds no pixel; draw a larger one")
    if box.pixels > LARGEST:
        raise RequestError(
            f"the drawn region is {box.size}, more than {LARGEST // 10**6} million pixels; draw a smaller one, or run "
            "the whole image"
        )
    return box


def own_corners(job: Job, corners: Corners) -> list[tuple[float, float]]:
    """Corners in pixels of the run's grid."""
    return [(y / job.view.scale[0], x / job.view.scale[1]) for y, x in corners]


def new_board(job: Job, box: Box, folder: Path) -> Board:
    """An empty board for a box of the run's grid."""
    scale_y, scale_x = job.view.scale
    place = Place(box.y * scale_y, box.x * scale_x, scale_y, scale_x)
    return Board.create(folder, box.size, place, [(c.value, c.name, c.color) for c in job.model.card.classes])


def predict_region(
    job: Job, box: Box, corners: Corners, board: Board, shown: Callable[[Box], None], stopped: Callable[[], bool]
) -> bool:
    """Fills the board cell by cell, telling each that can be looked at; False where it was stopped before the end.

    The windows, their grid and their weights are those of a run over the whole image with this plan, so every pixel
    has the value that it has there. A region was pointed at: it is not searched for tissue.
    """
    predictor = open_predictor(job)
    values = np.array([c.value for c in job.model.card.classes], dtype=np.uint8)
    own = own_corners(job, corners)
    touched = [cell for cell in cells(box) if polygon_mask(own, cell).any()]

    def finish(cell: Box, prediction: Prediction) -> None:
        seen = polygon_mask(own, cell) & prediction.seen
        place = cell.relative_to(box).slices
        board.values[place] = np.where(seen, prediction.labels(values, NODATA), np.uint8(NODATA))
        board.confidence[place] = _confidence(prediction.probabilities) * seen
        shown(cell.relative_to(box))

    # The cell that needs the fewest windows comes first, so that something is seen soon; the others go row by row.
    quickest = min(touched, key=lambda cell: sum(1 for _ in job.grid.touching(cell)))
    finish(quickest, predictor.predict_block(job.view, job.grid, quickest))
    others = [cell for cell in touched if cell != quickest]
    with closing(predictor.predict_blocks(job.view, job.grid, others, finish)) as finished:
        while not stopped():
            if next(finished, _END) is _END:
                return True
    return False


def cells(box: Box) -> Iterator[Box]:
    """A region in cells on the image's own raster, row by row."""
    for y in range(box.y // CELL * CELL, box.bottom, CELL):
        for x in range(box.x // CELL * CELL, box.right, CELL):
            cell = Box(y, x, CELL, CELL).intersect(box)
            if cell is not None:
                yield cell


def publish(job: Job, box: Box, board: Board, folder: Path, fingerprint: str) -> Labels:
    """The region as labels.zarr and its exports in `folder`, placed in the world where it lies."""
    canvas = Canvas.create(
        folder / "labels.zarr.partial",
        size=box.size,
        block=BLOCK,
        chunk=512,
        classes=[LabelClass(c.value, c.name, c.rgb) for c in job.model.card.classes],
        georef=job.view.georef.shifted(box.y, box.x),
        kind=job.source.kind,
        name=job.source.name,
        fingerprint=fingerprint,
        scale=job.view.scale,
        corner=(box.y * job.view.scale[0], box.x * job.view.scale[1]),
        anew=True,
    )
    with canvas:
        for block in canvas.blocks:
            canvas.write(block, np.ascontiguousarray(board.values[block.slices]))
        labels = canvas.publish(folder / "labels.zarr")
    np.save(folder / CONFIDENCE, board.confidence)
    for name in EXPORTED:
        EXPORTS[name](labels, folder, None, job.tags)
    return labels


def _confidence(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(classes, h, w) -> (h, w): the largest, 0..255."""
    return np.asarray(np.round(probabilities.max(axis=0) * 255), dtype=np.uint8)
