"""What the component in the browser is told: the image, its masks, and where to look. Plain values only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.desk import ON_MAP, Desk
from pipelines.display.catalog import ImageEntry, LayerEntry
from pipelines.display.facts import crs_name
from pipelines.display.look import CHANNELS, PURE
from pipelines.display.masks import MaskTiles, Place
from pipelines.display.mercator import MapTiles
from pipelines.display.tiles import ImageTiles
from pipelines.errors import USER_ERRORS, RequestError
from pipelines.live.corrected import CorrectedTiles
from pipelines.live.engine import Task
from pipelines.view import AreaRow, read_areas

Values = dict[str, Any]


def image_values(entry: ImageEntry, tiles: ImageTiles) -> Values:
    """The image: its zoom levels, its place in the world, and its bands where it is more than a picture."""
    source = tiles.source
    size = source.levels[0].size
    spacing = source.georef.spacing(size)
    picture = (tiles.look.is_plain and len(source.bands) == 3) or len(source.bands) == 1
    return {
        "id": entry.id,
        "name": entry.name,
        "version": entry.path.stat().st_mtime_ns,
        "width": size.width,
        "height": size.height,
        "levels": [
            {
                "width": level.size.width,
                "height": level.size.height,
                "tileWidth": level.tile.width,
                "tileHeight": level.tile.height,
                "across": level.tiles[1],
                "down": level.tiles[0],
                "stepX": level.step[1],
                "stepY": level.step[0],
            }
            for level in tiles.levels
        ],
        "spacing": {"y": spacing.y, "x": spacing.x, "unit": spacing.unit} if spacing else None,
        "transform": list(source.georef.transform[:6]),
        "unit": source.georef.unit,
        "crs": crs_name(source.georef),
        "progress": tiles.progress,
        "look": str(tiles.look),
        "channels": None if picture else channels(tiles),
    }


def map_values(desk: Desk, entry: ImageEntry, tiles: MapTiles) -> Values:
    """The image as a map shows it, with what lies below."""
    base = desk.base_map
    assert base is not None, "a map is shown where there is a base map"
    below = {"url": base.url, "credit": base.credit, "zoom": tiles.grid.zoom, "x": tiles.grid.x, "y": tiles.grid.y}
    home = dict(zip(("y", "x", "height", "width"), tiles.home, strict=True))
    return {
        **image_values(entry, tiles),
        "id": entry.id + ON_MAP,
        "look": "",
        "channels": None,
        "base": below,
        "home": home,
    }


def channels(tiles: ImageTiles) -> list[Values]:
    """Every band of an image as it may be shown: its name, a colour, and the range that suits."""
    known = {channel.band: channel for channel in tiles.look.channels}
    low, high = tiles.look.channels[0].low, tiles.look.channels[0].high
    palette = PURE + CHANNELS
    return [
        {
            "band": band,
            "name": name,
            "color": bytes(known[band].color if band in known else palette[band % len(palette)]).hex(),
            "low": f"{known[band].low if band in known else low:g}",
            "high": f"{known[band].high if band in known else high:g}",
        }
        for band, name in enumerate(tiles.source.bands)
    ]


def layer_values(desk: Desk, entry: LayerEntry, *, on_map: bool = False) -> Values:
    """A finished mask. Raises ImageError or RequestError where it cannot be read, or laid on the map."""
    tiles = desk.mask(entry.id)
    assert isinstance(tiles, MaskTiles | CorrectedTiles), "a listed mask is there"
    mask = desk.mask(entry.id + ON_MAP) if on_map else tiles
    if mask is None:
        raise RequestError("it has no mask.tif that is up to date, which the map is drawn from; write its files")
    classes = [
        {"value": c.value, "name": c.name, "colour": f"#{bytes(c.color).hex()}", "background": is_background(c.name)}
        for c in tiles.labels.classes
    ]
    areas = [area_values(row) for row in layer_areas(entry) if row.value is not None]
    return {
        **_places(entry.id + ON_MAP * on_map, entry.name, mask.place, mask.sizes),
        "version": tiles.labels.fingerprint,
        "classes": classes,
        "areas": areas,
        "running": False,
        "confident": not on_map and (entry.confidence is not None or (isinstance(mask, MaskTiles) and mask.confident)),
        "regions": "none" if on_map else _regions(entry),
        "strokes": len(mask.corrections.strokes) if isinstance(mask, CorrectedTiles) else None,
    }


def task_values(desk: Desk, task: Task) -> Values | None:
    """A region that is being segmented, or was; None before its first tile."""
    board = desk.board(task)
    if board is None:
        return None
    classes = [
        {"value": value, "name": name, "colour": colour.lower(), "background": is_background(name)}
        for value, name, colour in board.classes
    ]
    title = f"{task.wish.model}, {task.wish.cores or 'all'} cores"
    return {
        **_places(task.id, title, board.place, board.sizes),
        "version": task.id,
        "classes": classes,
        "areas": None,
        "running": not task.ended.is_set(),
        "confident": True,
        "regions": "none",
        "strokes": None,
    }


def _regions(entry: LayerEntry) -> str:
    """Whether there is a table of the mask's regions ('table'), it can be made ('find'), or neither ('none')."""
    if (entry.folder / "regions.csv").is_file():
        return "table" if entry.written else "none"
    return "none" if entry.kind == "corrected" else "find"


def layer_areas(entry: LayerEntry) -> list[AreaRow]:
    """The rows of a mask's areas.csv; none where it has none, a damaged one, or one that is out of date."""
    try:
        return read_areas(entry.folder) if entry.written else []
    except (*USER_ERRORS, OSError):  # the table under the viewer says why
        return []


def area_values(row: AreaRow) -> Values:
    return {"value": row.value, "pixels": row.pixels, "area": row.area, "unit": row.unit, "share": row.share}


def is_background(name: str) -> bool:
    """Whether a class is what lies around the others."""
    return name.strip().lower() == "background"


def _places(name: str, title: str, place: Place, sizes: Sequence[Any]) -> Values:
    return {
        "id": name,
        "name": title,
        "place": {"y": place.y, "x": place.x, "stepY": place.step_y, "stepX": place.step_x},
        "levels": [{"height": size.height, "width": size.width} for size in sizes],
    }
