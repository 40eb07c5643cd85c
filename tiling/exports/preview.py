"""One picture that shows a result at a glance: the image, the classes laid over it, a legend and a scale bar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from tiling.exports.areas import areas
from tiling.exports.files import printable, replacing
from tiling.exports.overlay import coarse_labels, hatched, overlay
from tiling.exports.thumbnail import thumbnail
from tiling.geometry import Size
from tiling.georef import Spacing
from tiling.labels import Labels
from tiling.view import View

_PAGE: Final = 1600
"""Width of the widest page in pixels."""
_NARROWEST: Final = 720
"""Width of the narrowest page: room for the title and the legend of a narrow image."""
_TALLEST: Final = 960
"""Height of the tallest panel."""
_LARGEST_PIXEL: Final = 16
"""A small image is enlarged, each pixel to a square of at most this side."""
_MARGIN, _GAP, _LINE = 32, 24, 30
_INK, _FAINT, _FRAME, _PAPER = "#15191e", "#59636e", "#c9d1d9", "#ffffff"
_TITLE, _TEXT, _SMALL = 26, 17, 15
"""Sizes of the letters in pixels."""
_FONT: Final = "matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One row of the legend."""

    swatch: Image.Image
    name: str
    share: str


def write_preview(labels: Labels, folder: Path, image: View | None, tags: Mapping[str, str]) -> list[Path]:
    """Writes preview.png, at most 1600 px wide; the tags go into its text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, text in tags.items():
        info.add_itxt(key, printable(text))
    with replacing(folder / "preview.png") as path:
        draw_preview(labels, image).save(path, pnginfo=info)
    return [folder / "preview.png"]


def draw_preview(labels: Labels, image: View | None) -> Image.Image:
    """The page: title, panels side by side (the image where it is given, then its classes), scale bar, legend."""
    panels = _panels(labels, image)
    size = Size(panels[0].height, panels[0].width)
    across = len(panels) * size.width + (len(panels) - 1) * _GAP
    width = max(across + 2 * _MARGIN, _NARROWEST)
    legend = _legend(labels)
    columns = _columns(legend, width - 2 * _MARGIN)
    top = _MARGIN + 76
    below = top + size.height + 16
    height = below + 48 + -(-len(legend) // columns) * _LINE + _MARGIN
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, (_MARGIN, _MARGIN - 8), labels.name, _TITLE, _INK, width - 2 * _MARGIN)
    _write(draw, (_MARGIN, _MARGIN + 32), _facts(labels), _SMALL, _FAINT, width - 2 * _MARGIN)
    for index, panel in enumerate(panels):
        left = _MARGIN + index * (size.width + _GAP)
        page.paste(panel, (left, top))
        draw.rectangle((left - 1, top - 1, left + size.width, top + size.height), outline=_FRAME)
    spacing = labels.georef.spacing(labels.size)
    if spacing is not None:
        _scale_bar(draw, (_MARGIN, below), spacing, labels.size.width / size.width, size.width)
    _draw_legend(page, legend, columns, below + 48)
    return page


def _panels(labels: Labels, image: View | None) -> list[Image.Image]:
    """The image where it is given, then the classes, all of one size."""
    widest = (_PAGE - 2 * _MARGIN - (_GAP if image else 0)) // (2 if image else 1)
    scale = min(widest / labels.size.width, _TALLEST / labels.size.height)
    scale = min(int(scale), _LARGEST_PIXEL) if scale >= 1 else scale
    size = Size(max(1, round(labels.size.height * scale)), max(1, round(labels.size.width * scale)))
    values = coarse_labels(labels, size)
    if image is None:
        return [Image.fromarray(overlay(None, values, labels.classes))]
    rgb, valid = (_resized(a, size) for a in thumbnail(image, max(size.height, size.width)))
    pictures = [hatched(rgb, valid.astype(bool)), overlay(rgb, values, labels.classes)]
    return [Image.fromarray(picture) for picture in pictures]


def _resized(array: NDArray[np.uint8] | NDArray[np.bool_], size: Size) -> NDArray[np.uint8]:
    """Enlarged by repeating pixels; the last odd pixel of a reduction is smoothed away."""
    picture = Image.fromarray(array.astype(np.uint8))
    enlarged = picture.height < size.height or picture.width < size.width or array.dtype == bool
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
    return np.asarray(picture.resize((size.width, size.height), how))


def _facts(labels: Labels) -> str:
    """Size in pixels, spacing, and size in the world."""
    pixels = f"{labels.size.width:,} × {labels.size.height:,} px"
    spacing = labels.georef.spacing(labels.size)
    if spacing is None:
        return pixels
    height, width = labels.size.height * spacing.y, labels.size.width * spacing.x
    return f"{pixels}   ·   {_per_pixel(spacing)}   ·   {_length(width, spacing)} × {_length(height, spacing)}"


def _per_pixel(spacing: Spacing) -> str:
    """Width before height, as the size beside it."""
    square = math.isclose(spacing.y, spacing.x, rel_tol=1e-3)
    sides = f"{spacing.x:.4g}" if square else f"{spacing.x:.4g} × {spacing.y:.4g}"
    return f"{sides} {'µm' if spacing.unit == 'um' else 'm'}/px"


def _scale_bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], spacing: Spacing, reduction: float, width: int) -> None:
    """A bar of a round length, about a quarter of the panel; `reduction` is image pixels a panel pixel."""
    per_pixel = spacing.x * reduction
    length = _round_length(per_pixel * width / 4)
    left, y = at[0], at[1] + 12
    right = left + max(2, round(length / per_pixel))
    draw.line((left, y, right, y), fill=_INK, width=3)
    for x in (left, right):
        draw.line((x, y - 6, x, y + 6), fill=_INK, width=2)
    _write(draw, (right + 12, y - 11), _length(length, spacing), _TEXT, _INK, 200)


def _round_length(length: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(n * power for n in (5, 2, 1) if n * power <= length * (1 + 1e-9))


def _length(length: float, spacing: Spacing) -> str:
    """With three digits, in the unit that keeps it readable."""
    small, large = ("µm", "mm") if spacing.unit == "um" else ("m", "km")
    value, unit = (length, small) if length < 1000 else (length / 1000, large)
    return f"{float(f'{value:.3g}'):,g} {unit}"


def _legend(labels: Labels) -> list[_Entry]:
    """All classes with their shares, then no data where there is any."""
    rows = areas(labels)
    entries = [
        _Entry(_swatch(Image.new("RGB", (22, 18), c.color)), c.name, _percent(row.share))
        for c, row in zip(labels.classes, rows, strict=True)
    ]
    missing = labels.size.pixels - sum(row.pixels for row in rows)
    if missing:
        box = hatched(np.zeros((18, 22, 3), np.uint8), np.zeros((18, 22), bool))
        share = f"{_percent(missing / labels.size.pixels)} of the image"
        entries.append(_Entry(_swatch(Image.fromarray(box)), "no data", share))
    return entries


def _swatch(box: Image.Image) -> Image.Image:
    ImageDraw.Draw(box).rectangle((0, 0, box.width - 1, box.height - 1), outline=_FAINT)
    return box


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return "0 %" if share == 0 else "<0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _columns(legend: Sequence[_Entry], width: int) -> int:
    return max(1, width // _entry_width(legend))


def _entry_width(legend: Sequence[_Entry]) -> int:
    longest = max((_font(_TEXT).getlength(f"{e.name}   {e.share}") for e in legend), default=0)
    return min(32 + round(longest) + 36, _NARROWEST - 2 * _MARGIN)


def _draw_legend(page: Image.Image, legend: Sequence[_Entry], columns: int, top: int) -> None:
    draw, step = ImageDraw.Draw(page), _entry_width(legend)
    for index, entry in enumerate(legend):
        left, y = _MARGIN + index % columns * step, top + index // columns * _LINE
        page.paste(entry.swatch, (left, y + 1))
        share = _font(_TEXT).getlength(entry.share)
        end = _write(draw, (left + 32, y - 1), entry.name, _TEXT, _INK, step - 32 - 36 - 12 - share)
        _write(draw, (end + 12, y - 1), entry.share, _TEXT, _FAINT, share + 1)


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, color: str, room: float) -> float:
    """Writes one line, cut with an ellipsis where it needs more than `room` pixels; gives the x where it ends."""
    text, font = printable(text), _font(size)
    while len(text) > 1 and font.getlength(text) > room:
        text = text[:-2].rstrip() + "…"
    draw.text(at, text, font=font, fill=color)
    return at[0] + font.getlength(text)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The one that comes with Matplotlib: Pillow's own has no µ, and no accents for the names of classes."""
    try:
        return ImageFont.truetype(str(distribution("matplotlib").locate_file(_FONT)), size)
    except (PackageNotFoundError, OSError):
        return ImageFont.load_default(size)
