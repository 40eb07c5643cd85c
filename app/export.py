"""Files of what is shown: chosen classes of a mask, all of it or what is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import streamlit as st

from app import viewer
from app.desk import Desk
from app.patience import wait_for
from app.words import plain
from pipelines.display.catalog import ImageEntry, LayerEntry
from pipelines.display.masks import MaskTiles
from pipelines.errors import USER_ERRORS
from pipelines.live.corrected import CorrectedTiles
from pipelines.live.excerpt import FORMATS

EXPORTS: Final = "exports"
"""In this folder of the first root, the files are kept."""
WHOLE: Final = "the whole mask"
DRAWN: Final = "what is drawn"


def export_panel(desk: Desk, image: ImageEntry, layer: LayerEntry, offer: Callable[[Path, str], None]) -> None:
    """What is exported, as what; and where it lies. `offer` shows a file that may be taken, under a key."""
    try:
        tiles = desk.mask(layer.id)
    except USER_ERRORS:
        return  # the viewer says why
    if not isinstance(tiles, MaskTiles | CorrectedTiles):
        return
    names = {c.value: c.name for c in tiles.labels.classes}
    corners = viewer.region(image)
    left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
    shown = [value for value, name in names.items() if name.lower() != "background"] or list(names)
    values = left.multiselect("Classes", list(names), shown, names.__getitem__, key=f"export classes {layer.id}")
    formats = middle.multiselect("As", list(FORMATS), ["GeoJSON", "CSV"], key="export formats")
    part = right.radio("Of", [DRAWN, WHOLE] if corners else [WHOLE], key=f"export part {bool(corners)}")
    drawn = tiles.place.of_labels((y, x) for y, x in corners) if part == DRAWN and corners else None
    folder = desk.catalog.roots[0] / EXPORTS / f"{layer.name.replace('/', ' ')} {time.strftime('%Y-%m-%d %H.%M.%S')}"
    pair = (layer.mask or layer.folder, layer.folder if layer.mask else None)
    exports = [FORMATS[name] for name in formats]
    if st.button("Export", key="export", disabled=not (values and formats), type="primary"):
        st.session_state["exporting"] = desk.engine.excerpt(pair, drawn, values, exports, folder).id
    st.caption("The picture that is on the screen is saved with S in the viewer.")
    task = desk.engine.tasks.get(st.session_state.get("exporting", ""))
    if task is None:
        return
    if not wait_for(task, "Exporting …"):
        return
    if task.state == "failed":
        st.error(plain(task.reason))
        return
    st.success(f"{', '.join(dict.fromkeys(task.answer['files']))} in")
    st.code(str(task.folder), language=None)
    for name in dict.fromkeys(task.answer["files"]):
        path = task.folder / name if task.folder else None
        if path is not None and path.is_file():
            offer(path, f"export {path}")
