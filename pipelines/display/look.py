"""From an image's bands to the colours on a screen: each band is stretched and adds its colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import RequestError
from tiling import Source

Color = tuple[int, int, int]
PURE: Final[tuple[Color, ...]] = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
CHANNELS: Final[tuple[Color, ...]] = (
    (0, 110, 255), (0, 255, 80), (255, 60, 40), (255, 255, 255), (255, 0, 255), (0, 255, 255), (255, 200, 0),
)  # fmt: skip
"""Colours of fluorescence channels, in the order of a microscope's filters: blue, green, red, then what is left."""
STRETCH: Final = (1.0, 99.0)
"""Percentiles that become black and bright where values are not a display's."""
_PART: Final = re.compile(r"(\d{1,4}):([0-9a-f]{6}):(-?[0-9.]+(?:e[+-]?\d+)?):(-?[0-9.]+(?:e[+-]?\d+)?)")


@dataclass(frozen=True, slots=True)
class Channel:
    """One band as it is shown."""

    band: int
    color: Color
    """What a bright pixel adds."""
    low: float
    """This value adds nothing."""
    high: float
    """This value adds the whole colour."""

    def __str__(self) -> str:
        return f"{self.band}:{bytes(self.color).hex()}:{self.low:g}:{self.high:g}"


@dataclass(frozen=True, slots=True)
class Look:
    """How an image's bands are shown. As text it travels in the address of a tile."""

    channels: tuple[Channel, ...]

    @classmethod
    def parse(cls, text: str, bands: int) -> Look:
        """From its text; raises RequestError for what is none, or names a band that is not there."""
        channels = []
        for part in text.split(","):
            match = _PART.fullmatch(part)
            if match is None or int(match[1]) >= bands:
                raise RequestError(f"{text!r} does not say how {bands} bands are shown; expected band:rrggbb:low:high")
            try:
                low, high = float(match[3]), float(match[4])
            except ValueError as error:
                raise RequestError(f"{text!r}: a channel's low and high are numbers") from error
            red, green, blue = bytes.fromhex(match[2])
            channels.append(Channel(int(match[1]), (red, green, blue), low, high))
        return cls(tuple(channels))

    def __str__(self) -> str:
        return ",".join(map(str, self.channels))

    @property
    def is_plain(self) -> bool:
        """Whether red, green and blue are shown as they are."""
        return self.channels == tuple(Channel(i, PURE[i], 0, 255) for i in range(3))

    def render(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """(h, w, bands) of any number type -> (h, w, 3)."""
        if self.is_plain and pixels.dtype == np.uint8:
            return np.ascontiguousarray(pixels[..., :3])
        total = np.zeros((*pixels.shape[:2], 3), np.float32)
        for channel in self.channels:
            values = pixels[..., channel.band].astype(np.float32)
            span = max(channel.high - channel.low, 1e-12)
            share = np.clip(np.nan_to_num((values - channel.low) / span), 0, 1)
            total += share[..., None] * np.asarray(channel.color, np.float32)
        return np.clip(total + 0.5, 0, 255).astype(np.uint8)


def default_look(source: Source, sample: NDArray[Any], valid: NDArray[np.bool_]) -> Look:
    """What suits an image: its own colours, or bands stretched by percentiles of a coarse `sample` (h, w, bands)."""
    if source.dtype == np.uint8 and len(source.bands) == 1:
        return Look((Channel(0, (255, 255, 255), 0, 255),))
    colours = _rgb(source.bands)
    if colours is not None:
        eight = source.dtype == np.uint8
        spans = [(0.0, 255.0) if eight else _span(sample[..., i], valid) for i in colours]
        return Look(tuple(Channel(i, PURE[k], *spans[k]) for k, i in enumerate(colours)))
    bands = range(min(len(source.bands), len(CHANNELS)))
    palette: Sequence[Color] = CHANNELS if source.kind != "raster" and len(bands) > 1 else ((255, 255, 255),)
    if source.kind == "raster" and len(source.bands) >= 3:
        palette, bands = PURE, range(3)
    chosen = bands if len(palette) > 1 else range(1)
    return Look(tuple(Channel(i, palette[i], *_span(sample[..., i], valid)) for i in chosen))


def _rgb(names: Sequence[str]) -> list[int] | None:
    """Where red, green and blue are."""
    lower = [name.lower() for name in names]
    if {"red", "green", "blue"} <= set(lower):
        return [lower.index(name) for name in ("red", "green", "blue")]
    return None


def _span(values: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[float, float]:
    known = values[valid & np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = (float(f"{v:.4g}") for v in np.percentile(known, STRETCH))
    return (low, high) if high > low else (low - 0.5, low + 0.5)
