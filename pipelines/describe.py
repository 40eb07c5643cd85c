"""What an image is, as plain lines for a person and as plain values for a program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiling import Source, open_image
from tiling.readers.opened import listed


def info(image: str | Path, bands: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that opening an image tells, without reading a pixel. Never a label, a name or a date.

    With `bands`, as if the image held these only, by name or by number from 1.
    """
    source = open_image(image, bands=bands)
    size = source.levels[0].size
    spacing = source.georef.spacing(size)
    return {
        "path": str(source.path),
        "kind": source.kind,
        "size": [size.height, size.width],
        "bands": list(source.bands),
        "dtype": str(source.dtype),
        "spacing": str(spacing) if spacing else None,
        "levels": [[level.size.height, level.size.width] for level in source.levels],
        "tile": [source.levels[0].chunk.height, source.levels[0].chunk.width],
        "crs": _crs_name(source),
        "transform": [float(v) for v in source.georef.transform[:6]],
        "details": dict(source.provenance),
        "warnings": list(source.warnings),
    }


def info_lines(facts: dict[str, Any]) -> list[str]:
    """An image's facts for people."""
    height, width = facts["size"]
    return [
        facts["path"],
        f"  {facts['kind']}, {height} x {width} px, {listed(facts['bands'])}, {facts['dtype']}",
        f"  pixel size: {facts['spacing'] or 'not stated; give it with --spacing'}",
        "  levels: " + ", ".join(f"{h} x {w}" for h, w in facts["levels"]),
        *([f"  CRS: {facts['crs']}"] if facts["crs"] else []),
        *(f"  {name}: {value}" for name, value in facts["details"].items()),
        *(f"  note: {warning}" for warning in facts["warnings"]),
    ]


def _crs_name(source: Source) -> str | None:
    if source.georef.crs is None:
        return None
    import pyproj

    crs = pyproj.CRS.from_user_input(source.georef.crs)
    return f"{crs.name}" + (f" ({':'.join(authority)})" if (authority := crs.to_authority()) else "")
