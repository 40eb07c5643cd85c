"""Numbers and names as the page writes them."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from typing import Final

from pipelines.view import AreaRow

_AREA_UNITS: Final = {
    "um2": (("mm²", 1e-6, 1e5), ("µm²", 1.0, 0.0)),
    "m2": (("km²", 1e-6, 1e6), ("ha", 1e-4, 1e3), ("m²", 1.0, 0.0)),
}
"""For a unit of areas.csv: the units that people read, largest first, their factors, and from what area they serve."""


def area_texts(rows: Sequence[AreaRow]) -> tuple[str, list[str]]:
    """A unit that people read and each row's area in it, all with as many decimals; ('', empty texts) without areas.

    The largest area chooses the unit; the smallest keeps two digits, as far as six decimals reach.
    """
    known = [row.area for row in rows if row.area]
    units = _AREA_UNITS.get(rows[0].unit or "") if rows else None
    if not known or units is None:
        return "", [""] * len(rows)
    unit, factor = next((name, factor) for name, factor, least in units if max(known) >= least)
    decimals = min(6, max(0, 1 - math.floor(math.log10(min(known) * factor))))
    return unit, ["" if row.area is None else f"{row.area * factor:,.{decimals}f}" for row in rows]


def percent_text(share: float | None) -> str:
    if share is None:
        return ""
    return "<0.1\u00a0%" if 0 < share < 0.001 else f"{share * 100:.1f}\u00a0%"


def bytes_text(size: int) -> str:
    """Like '1.4 GiB'."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.{0 if units[0] == 'bytes' else 1}f}\u00a0{units[0]}"


def seconds_text(seconds: float) -> str:
    """Like '12.3 s', '4 min 10 s' or '2 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def micro(text: str) -> str:
    """'0.5 um/px' with its Greek letter."""
    return re.sub(r"\bum\b", "µm", text)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line: names come from files and may hold anything."""
    line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in string.punctuation else letter for letter in line)


def shell_word(text: str) -> str:
    """A path as it is typed: in quotes where it has spaces."""
    return f'"{text}"' if re.search(r"\s", text) else text
