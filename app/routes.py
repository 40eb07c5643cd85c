"""The routes beside the page: tiles of images and masks, and short questions about them. They know no Streamlit."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final

from affine import Affine
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.desk import the_desk
from pipelines.display.facts import areas_of, lonlat, pixel_at
from pipelines.display.look import Look
from pipelines.display.masks import MaskTiles
from pipelines.errors import USER_ERRORS, RequestError
from pipelines.live.corrected import CorrectedTiles
from pipelines.view import read_regions

ASSETS: Final = Path(__file__).with_name("component") / "built"
PRIVATE: Final = {"Cache-Control": "private, no-store"}
"""What shows a patient's tissue stays in no cache."""
REGIONS: Final = 1000
"""Rows of a table of regions; the file has them all."""
KINDS: Final = {".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}

Answer = Callable[[Request], Response]


def told(answer: Answer) -> Answer:
    """Turns what can be wrong into a status and one line."""

    @wraps(answer)
    def run(request: Request) -> Response:
        try:
            return answer(request)
        except (IndexError, FileNotFoundError) as error:
            raise HTTPException(404) from error
        except (KeyError, ValueError) as error:
            raise HTTPException(400, "the question is not understood") from error
        except USER_ERRORS as error:
            # Paths stay here: only the page, which knows who looks, says where a file lies.
            raise HTTPException(422, "this part of the file cannot be read") from error

    return run


@told
def image_tile(request: Request) -> Response:
    """One tile of an image as a JPEG; on the map as a PNG."""
    image = _image(request)
    text = request.query_params.get("look")
    look = Look.parse(text, len(image.source.bands)) if text else None
    tile = image.tile(*_place(request), look)
    return Response(tile.data, media_type=tile.kind, headers=PRIVATE | {"X-Final": "1" if tile.final else "0"})


@told
def thumbnail(request: Request) -> Response:
    """The whole image, small."""
    return Response(_image(request).thumbnail(256).data, media_type="image/jpeg", headers=PRIVATE)


@told
def image_state(request: Request) -> Response:
    """How much of the levels that the file lacks is made."""
    return JSONResponse({"progress": _image(request).progress}, headers=PRIVATE)


@told
def mask_tile(request: Request) -> Response:
    """One tile of a mask: class values, a byte each, row by row, gzipped. With thin=1 no class is lost zoomed out."""
    if request.query_params.get("thin") == "1":
        values, final = _mask(request).thin_tile(*_place(request))
        return _bytes(values.tobytes(), {"X-Final": "1" if final else "0"})
    return _bytes(_mask(request).tile(*_place(request)).tobytes())


@told
def confidence(request: Request) -> Response:
    """How probable the class of one pixel of a region is; null where that is not known."""
    value = the_desk().confidence(
        request.path_params["name"], int(request.query_params["y"]), int(request.query_params["x"])
    )
    return JSONResponse({"confidence": value}, headers=PRIVATE)


@told
def where(request: Request) -> Response:
    """Longitude and latitude of a level-0 (y, x); null where the image lies nowhere."""
    place = lonlat(_image(request).source.georef, float(request.query_params["y"]), float(request.query_params["x"]))
    return JSONResponse({"lonlat": place}, headers=PRIVATE)


@told
def at(request: Request) -> Response:
    """Level-0 (y, x) of a longitude and latitude; null where the image lies nowhere."""
    lon, lat = float(request.query_params["lon"]), float(request.query_params["lat"])
    return JSONResponse({"place": pixel_at(_image(request).source.georef, lon, lat)}, headers=PRIVATE)


@told
def regions(request: Request) -> Response:
    """The largest regions of a class of a mask, each [row, column, pixels, area, perimeter]; level-0 pixels."""
    entry = the_desk().catalog.layer(request.path_params["name"])
    if entry is None or not (entry.folder / "regions.csv").is_file() or not entry.written:
        raise HTTPException(404)
    mask = the_desk().mask(entry.id)
    if not isinstance(mask, MaskTiles | CorrectedTiles):
        raise HTTPException(404)
    # By the mask's own place: its micrometres may be those that a user stated, where the image's file says others.
    georef, place = mask.labels.georef, mask.place
    back = Affine(place.step_x, 0, place.x, 0, place.step_y, place.y) @ ~georef.transform
    rows = []
    for row in read_regions(entry.folder, REGIONS, request.query_params["class"]):
        x, y = back @ row.world
        rows.append([round(y, 1), round(x, 1), row.pixels, row.area, row.perimeter])
    unit = "um2" if georef.unit == "um" else "m2"
    return JSONResponse({"rows": rows, "unit": unit, "most": REGIONS}, headers=PRIVATE)


@told
def task_state(request: Request) -> Response:
    """How far a region is: the cells that were finished since the number `since`."""
    task = the_desk().engine.tasks.get(request.path_params["name"])
    if task is None:
        raise HTTPException(404)
    since = int(request.query_params.get("since", "0"))
    state = {"state": task.state, "done": task.done, "cells": task.cells[since:], "reason": task.reason}
    return JSONResponse(state | {"count": len(task.cells)}, headers=PRIVATE)


@told
def heat(request: Request) -> Response:
    """What one core of one layer looks at: a byte a patch, row by row, gzipped."""
    task = the_desk().engine.tasks.get(request.path_params["name"])
    if task is None or task.what != "attention" or task.state != "finished":
        raise HTTPException(404)
    maps = the_desk().engine.maps(task)
    layer, core = int(request.path_params["layer"]), int(request.path_params["core"])
    return _bytes(maps[layer, core].tobytes())


async def paint(request: Request) -> Response:
    """Adds a stroke to corrections: {"value", "radius", "points": [[y, x], ...]} in level-0 pixels, or {"undo": true}.

    The answer says how many strokes there are, and which pixels of the mask have changed.
    """
    try:
        asked = json.loads(await request.body())
        undo = bool(asked.get("undo"))
        stroke = (
            None
            if undo
            else (asked["value"], float(asked["radius"]), [(float(y), float(x)) for y, x in asked["points"]])
        )
        if stroke and not (stroke[0] is None or (isinstance(stroke[0], int) and not isinstance(stroke[0], bool))):
            raise ValueError(stroke[0])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HTTPException(400, 'expected {"value", "radius", "points"} or {"undo": true}') from error
    return await run_in_threadpool(told(lambda asked: _painted(asked, stroke)), request)


async def measure(request: Request) -> Response:
    """Areas of the classes in a polygon: the body is {"corners": [[y, x], ...]} in level-0 pixels."""
    try:
        corners = [(float(y), float(x)) for y, x in json.loads(await request.body())["corners"]]
    except (ValueError, KeyError, TypeError) as error:
        raise HTTPException(400, 'expected {"corners": [[y, x], ...]}') from error
    if not 3 <= len(corners) <= 4096:
        raise HTTPException(400, "a region has 3 to 4096 corners")
    return await run_in_threadpool(told(lambda asked: _measured(asked, corners)), request)


def asset(request: Request) -> Response:
    """The page's own program; its name changes with its content, so it may be kept for ever."""
    name = request.path_params["file"]
    known = assets().get(name)
    if known is None:
        raise HTTPException(404)
    data, kind = known
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Content-Encoding": "gzip"}
    return Response(data, media_type=kind, headers=headers)


def assets() -> dict[str, tuple[bytes, str]]:
    """Name with the content's hash -> (gzipped bytes, media type)."""
    if not _ASSETS:
        for path in sorted(ASSETS.iterdir()):
            data = path.read_bytes()
            mark = hashlib.sha256(data).hexdigest()[:12]
            _ASSETS[f"{path.stem}.{mark}{path.suffix}"] = (gzip.compress(data, 9, mtime=0), KINDS[path.suffix])
    return _ASSETS


def asset_url(stem: str, suffix: str) -> str:
    """The address of one of the page's own files."""
    return "/veca/asset/" + next(name for name in assets() if name.startswith(f"{stem}.") and name.endswith(suffix))


_ASSETS: Final[dict[str, tuple[bytes, str]]] = {}

ROUTES: Final = [
    Route("/veca/asset/{file}", asset),
    Route("/veca/image/{name}/state", image_state),
    Route("/veca/image/{name}/where", where),
    Route("/veca/image/{name}/at", at),
    Route("/veca/image/{name}/thumbnail", thumbnail),
    Route("/veca/image/{name}/{level:int}/{row:int}/{column:int}", image_tile),
    Route("/veca/mask/{name}/confidence", confidence),
    Route("/veca/mask/{name}/regions", regions),
    Route("/veca/mask/{name}/measure", measure, methods=["POST"]),
    Route("/veca/mask/{name}/paint", paint, methods=["POST"]),
    Route("/veca/mask/{name}/{level:int}/{row:int}/{column:int}", mask_tile),
    Route("/veca/task/{name}", task_state),
    Route("/veca/heat/{name}/{layer:int}/{core:int}", heat),
]


def _image(request: Request) -> Any:
    image = the_desk().image(request.path_params["name"])
    if image is None:
        raise HTTPException(404)
    return image


def _mask(request: Request) -> Any:
    mask = the_desk().mask(request.path_params["name"])
    if mask is None:
        raise HTTPException(404)
    return mask


def _place(request: Request) -> tuple[int, int, int]:
    params = request.path_params
    return params["level"], params["row"], params["column"]


def _bytes(data: bytes, more: Mapping[str, str] | None = None) -> Response:
    packed = gzip.compress(data, 1, mtime=0)
    headers = PRIVATE | {"Content-Encoding": "gzip"} | dict(more or {})
    return Response(packed, media_type="application/octet-stream", headers=headers)


def _painted(request: Request, stroke: tuple[int | None, float, list[tuple[float, float]]] | None) -> Response:
    tiles = _mask(request)
    if not isinstance(tiles, CorrectedTiles):
        raise HTTPException(404)
    corrections = tiles.corrections
    try:
        if stroke is None:
            changed = corrections.undo()
        else:
            changed = tiles.stroke(*stroke)
            corrections.add(changed)
    except RequestError as error:
        raise HTTPException(400, str(error)) from error
    except OSError as error:
        raise HTTPException(507, f"this stroke could not be saved: {error.strerror}") from error
    box = changed.box if changed else None
    touched = [box.y, box.x, box.height, box.width] if box else None
    return JSONResponse({"count": len(corrections.strokes), "touched": touched}, headers=PRIVATE)


def _measured(request: Request, corners: list[tuple[float, float]]) -> Response:
    desk, mask = the_desk(), _mask(request)
    name = request.query_params.get("image")
    if name is None:
        entry = desk.catalog.layer(request.path_params["name"])
        name = entry.image if entry else None
    image = desk.image(name) if name else None
    count = mask.count(corners)
    georef, size = (image.source.georef, image.source.levels[0].size) if image else (None, None)
    if isinstance(mask, MaskTiles | CorrectedTiles) and mask.labels.georef.unit == "um":
        georef = mask.labels.georef.scaled(1 / mask.place.step_y, 1 / mask.place.step_x)  # as areas.csv has it
    rows = areas_of(count, mask, corners, georef, size)
    return JSONResponse({"rows": rows, "exact": count.exact}, headers=PRIVATE)
