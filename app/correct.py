"""Correcting a mask by hand: begin, paint in the viewer, and take the files."""

from __future__ import annotations

import streamlit as st

from app.choose import Shown
from app.desk import Desk
from app.patience import wait_for
from app.words import plain
from pipelines.display.catalog import Contents, ImageEntry, LayerEntry
from pipelines.errors import USER_ERRORS


def correct_panel(desk: Desk, contents: Contents, image: ImageEntry, shown: Shown) -> None:
    """What is shown is corrected, or can be."""
    layer = shown.layer
    if layer is None:
        return
    with st.expander("Correct", expanded=layer.kind == "corrected"):
        if layer.kind == "corrected":
            _files(desk, layer)
            return
        begun = any(other.mask == layer.folder for other in contents.layers_of(image.id))
        st.caption("Paint and erase classes. Corrections are kept beside the mask, which stays as it is.")
        word = "Go on correcting" if begun else "Correct this mask"
        if st.button(word, key=f"correct {layer.id}", width="stretch"):
            try:
                st.session_state["made"] = (image.id, desk.begin_corrections(layer.id))
            except (*USER_ERRORS, OSError) as error:
                st.error(plain(str(error)))
            else:
                st.rerun()


def _files(desk: Desk, layer: LayerEntry) -> None:
    st.caption("Each stroke is saved at once, in")
    st.code(str(layer.folder), language=None)
    task = desk.engine.tasks.get(st.session_state.get(f"writing {layer.id}", ""))
    words = "Files and areas are those of the last stroke." if layer.written else "The files are not written yet."
    st.caption(words)
    st.button(
        "Write the files", key=f"write {layer.id}", on_click=_write, args=(desk, layer), width="stretch",
        help="The corrected mask, its areas and regions, and corrections.geojson to train on.",
    )  # fmt: skip
    if task is None:
        return
    if not task.ended.is_set():
        wait_for(task, "Writing …")
        st.rerun()
    if task.state == "failed":
        st.error(plain(task.reason))


def _write(desk: Desk, layer: LayerEntry) -> None:
    st.session_state[f"writing {layer.id}"] = desk.engine.correct(layer.folder).id
