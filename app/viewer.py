"""The component on the page: what it is given, and what it tells back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import streamlit as st

from app.choose import Shown
from app.desk import Desk, the_desk
from app.routes import asset_url
from app.scene import image_values, layer_values, map_values, task_values
from app.sign_in import signs_in
from pipelines.display.catalog import Contents, ImageEntry, LayerEntry
from pipelines.display.look import Look
from pipelines.display.mercator import MapTiles
from pipelines.display.tiles import ImageTiles
from pipelines.errors import USER_ERRORS
from pipelines.live.engine import Task

STYLE: Final = Path(__file__).with_name("component") / "viewer.css"
LOADER: Final = """
let loaded;
export default function (component) {
  loaded ??= import(new URL("%s", window.location.origin).href);
  let undo;
  loaded.then((module) => { undo = module.default(component); });
  return () => loaded.then(() => undo?.());
}
"""
"""The program itself is fetched once from our own route, instead of travelling with each run of the page."""
MOST: Final = 400
"""Thumbnails that are offered; a filter finds the rest."""


def show(
    desk: Desk,
    contents: Contents,
    image: ImageEntry,
    tiles: ImageTiles,
    shown: Shown,
    task: Task | None,
    heat: dict[str, Any] | None,
    world: MapTiles | None = None,
) -> None:
    """The image and what lies on it; in the `world`, on a map."""
    view = st.query_params.get("view")
    place = (image.id, world is not None)
    if st.session_state.get("looked at") not in (None, place):
        # The place in the address is another image's.
        st.query_params.pop("view", None)
        view = None
    st.session_state["looked at"] = place
    on_map = world is not None
    layer = task_values(desk, task) if task is not None and not on_map else None
    running = layer is not None
    layer = layer or _layer(desk, shown.layer, on_map)
    # In a list, because Streamlit loads pandas and Arrow, eighty megabytes, to look for tables in a dict.
    data = [
        {
            "image": map_values(desk, image, world) if world is not None else image_values(image, tiles),
            "look": "" if on_map else look_of(image, tiles),
            "images": [{"id": entry.id, "name": entry.name} for entry in list(contents.images.values())[:MOST]],
            "layer": layer,
            "other": None if running else _layer(desk, shown.other, on_map),
            "compare": "off" if running else shown.compare,
            "heat": None if on_map else heat,
            "view": view,
            "pass": desk.signer.issue() if signs_in() else "",
        }
    ]
    _mount()(
        data=data,
        key="viewer",
        default={"region": None, "look": None},
        on_region_change=_nothing,
        on_look_change=_nothing,
        on_pick_change=_picked,
        on_ended_change=_nothing,
        on_find_change=_find_regions,
    )


def region(image: ImageEntry) -> list[list[float]] | None:
    """The corners (y, x) in level-0 pixels of what is drawn on this image."""
    drawn = _told("region")
    return drawn["corners"] if drawn and drawn.get("image") == image.id else None


def look_of(image: ImageEntry, tiles: ImageTiles) -> str:
    """How the bands are shown; empty for the image's own way."""
    chosen = _told("look")
    if not chosen or chosen.get("image") != image.id:
        return ""
    try:
        return str(Look.parse(str(chosen["text"]), len(tiles.source.bands)))
    except USER_ERRORS:
        return ""


def _layer(desk: Desk, entry: LayerEntry | None, on_map: bool) -> dict[str, Any] | None:
    if entry is None:
        return None
    try:
        return layer_values(desk, entry, on_map=on_map)
    except (*USER_ERRORS, OSError) as error:
        st.error(f"The mask {entry.name} cannot be shown: {error}")
        return None


def _told(name: str) -> Any:
    state = st.session_state.get("viewer")
    return state.get(name) if state else None


def _picked() -> None:
    """A thumbnail was clicked."""
    name = _told("pick")
    if isinstance(name, str):
        st.session_state["image"] = name


def _find_regions() -> None:
    """The regions of a mask are wanted that were not written out."""
    desk = the_desk()
    entry = desk.catalog.layer(str(_told("find")))
    if entry is not None and entry.kind != "corrected":
        st.session_state["finding"] = desk.engine.export(entry.folder, ["regions"]).id


def _nothing() -> None:
    """The run that follows reads what has changed."""


@st.cache_resource
def _mount() -> Callable[..., Any]:
    return st.components.v2.component(
        "veca_viewer",
        html='<div class="veca"></div>',
        css=STYLE.read_text(encoding="utf-8"),
        js=LOADER % asset_url("viewer", ".js"),
    )
