"""The component on the page: what it is given, and what it tells back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import streamlit as st

from app.choose import Shown
from app.desk import Desk
from app.routes import asset_url
from app.scene import image_values, layer_values, task_values
from app.sign_in import signs_in
from pipelines.display.catalog import Contents, ImageEntry, LayerEntry
from pipelines.display.look import Look
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
) -> None:
    """The image and what lies on it."""
    view = st.query_params.get("view")
    if st.session_state.get("looked at") not in (None, image.id):
        # The place in the address is another image's.
        st.query_params.pop("view", None)
        view = None
    st.session_state["looked at"] = image.id
    layer = task_values(desk, task) if task is not None else None
    running = layer is not None
    layer = layer or _layer(desk, shown.layer)
    _mount()(
        data={
            "image": image_values(image, tiles),
            "look": look_of(image, tiles),
            "images": [{"id": entry.id, "name": entry.name} for entry in list(contents.images.values())[:MOST]],
            "layer": layer,
            "other": None if running else _layer(desk, shown.other),
            "compare": "off" if running else shown.compare,
            "heat": heat,
            "jump": st.session_state.get("jump"),
            "view": view,
            "pass": desk.signer.issue() if signs_in() else "",
        },
        key="viewer",
        default={"region": None, "look": None},
        on_region_change=_nothing,
        on_look_change=_nothing,
        on_pick_change=_picked,
        on_ended_change=_nothing,
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


def jump(y: float, x: float, height: float, width: float) -> None:
    """Lets the viewer go to a level-0 rectangle."""
    mark = (st.session_state.get("jump") or {}).get("mark", 0) + 1
    st.session_state["jump"] = {"y": y, "x": x, "height": height, "width": width, "mark": mark}


def _layer(desk: Desk, entry: LayerEntry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    try:
        return layer_values(desk, entry)
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
