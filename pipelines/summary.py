"""What a training or an evaluation came to, on one page: scores, curves, and held-back images beside what was said."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.display.look import default_look
from pipelines.scenes import IGNORE, Scene
from tiling import Box, View
from tiling.exports.files import replacing
from tiling.exports.overlay import overlay
from tiling.labels import LabelClass
from veca_core.card import ClassInfo

PAGE: Final = "summary.html"
SAMPLES: Final = "samples.png"
MOST: Final = 4
"""Held-back scenes that are shown."""
SIDE: Final = 384
"""Pixels, on each axis, that are shown of a scene."""
_GAP: Final = 8
_STYLE: Final = (
    'body{font:15px/1.5 system-ui,"DejaVu Sans",sans-serif;color:#15191e;background:#f4f6f8;margin:0}'
    "main{max-width:1180px;margin:0 auto;padding:24px}h1{font-size:24px;margin:0 0 4px}"
    "img{max-width:100%;height:auto;display:block;background:#fff;border:1px solid #d5dbe1}figure{margin:20px 0}"
    "figcaption,p{color:#59636e}pre{background:#fff;border:1px solid #d5dbe1;padding:12px;overflow:auto}"
    ".swatch{display:inline-block;width:14px;height:14px;border:1px solid #59636e;"
    "vertical-align:-2px;margin:0 6px 0 14px}"
)


@dataclass(slots=True)
class Samples:
    """Parts of the first scenes that are validated: the image, what is known of it, and what the network called it."""

    classes: Sequence[ClassInfo]
    rows: list[tuple[NDArray[np.uint8], ...]] = field(default_factory=list)
    """Three pictures (h, w, 3) for each scene, h and w at most SIDE."""
    names: list[str] = field(default_factory=list)

    def see(self, scene: Scene, piece: Box, truth: NDArray[np.uint8], called: NDArray[np.uint8]) -> None:
        """Keeps the part that has most classes, of scenes that are not kept yet."""
        if scene.name in self.names or len(self.rows) == MOST:
            return
        part = _richest(truth)
        inside = Box(piece.y + part.y, piece.x + part.x, part.height, part.width)
        picture = displayed(scene.view, inside)
        colors = [LabelClass(c.value, c.name, c.rgb) for c in self.classes]
        values = np.full(256, IGNORE, dtype=np.uint8)
        values[: len(self.classes)] = [c.value for c in self.classes]
        self.rows.append((picture, *(overlay(picture, values[said[part.slices]], colors) for said in (truth, called))))
        self.names.append(scene.name)

    def write(self, path: Path) -> None:
        """As one PNG, a row for each scene."""
        width = max(row[0].shape[1] for row in self.rows) + _GAP
        heights = [row[0].shape[0] + _GAP for row in self.rows]
        sheet = np.full((sum(heights) - _GAP, 3 * width - _GAP, 3), 255, dtype=np.uint8)
        for row, bottom in zip(self.rows, np.cumsum(heights), strict=True):
            for i, picture in enumerate(row):
                top, left = int(bottom) - picture.shape[0] - _GAP, i * width
                sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        with replacing(path) as partial:
            Image.fromarray(sheet).save(partial, format="PNG")


def displayed(view: View, box: Box) -> NDArray[np.uint8]:
    """(h, w, 3): a part of a scene in the colours that the viewer would show it in."""
    pixels = view.read(box)
    return default_look(view.source, pixels, view.valid(box)).render(pixels)


def write_page(
    path: Path, title: str, lead: str, text: str, pictures: Sequence[tuple[Path, str]], classes: Sequence[ClassInfo]
) -> None:
    """One HTML file that needs nothing else: a title, a sentence, text as it stands, and pictures with captions."""
    swatches = "".join(f'<span class="swatch" style="background:{c.color}"></span>{escape(c.name)}' for c in classes)
    figures = "".join(
        f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{_encoded(picture)}">'
        f"<figcaption>{escape(words)}</figcaption></figure>\n"
        for picture, words in pictures
        if picture.is_file()
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        f"<h1>{escape(title)}</h1><p>{escape(lead)}</p><p>{swatches}</p>\n{figures}<pre>{escape(text)}</pre>\n"
        "</main></body></html>\n"
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _richest(truth: NDArray[np.uint8]) -> Box:
    """The square of SIDE that shows most classes; the first of several."""
    height, width = (min(SIDE, side) for side in truth.shape)
    tops, lefts = (
        sorted({*range(0, full - side, max(1, side // 2)), full - side})
        for full, side in zip(truth.shape, (height, width), strict=True)
    )
    places = [Box(y, x, height, width) for y in tops for x in lefts]
    return max(places[:400], key=lambda box: len(set(np.unique(truth[box.slices]).tolist()) - {IGNORE}))


def _encoded(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode("ascii")
