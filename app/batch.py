"""Runs over many images from the page: start, watch, stop."""

from __future__ import annotations

import re
from typing import Final

import streamlit as st

from app.desk import Desk
from app.words import plain
from pipelines.display.catalog import Contents
from pipelines.live.batch import BatchRun
from pipelines.shipped import shipped

ENDED: Final = {0: "All images are done.", 1: "Some images failed; the others are done."}
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,60}")


def batch_panel(desk: Desk, contents: Contents) -> None:
    """Images, model and folder of a run; or the run that is on."""
    with st.expander("Segment many images"):
        if desk.batch is not None:
            _watch(desk)
            return
        entries = list(contents.images.values())
        names = {entry.id: entry.name for entry in entries}
        chosen = st.multiselect("Images", list(names), format_func=names.__getitem__, key="batch images")
        cards = {choice.name: choice for choice in shipped()}
        model = st.selectbox("Model", list(cards), key="batch model")
        budgets = list(cards[model].budgets)
        cores = st.select_slider("Attention cores", budgets, budgets[-1], key=f"batch cores {model}")
        folder = st.text_input("Folder for the results", "results", key="batch folder").strip()
        good = NAME.fullmatch(folder) is not None
        if not good:
            st.caption("A folder's name: letters, digits, spaces, . _ and -.")
        paths = [entry.path for entry in entries if entry.id in chosen]
        st.button(
            "Start", key="batch start", disabled=not paths or not good, width="stretch",
            on_click=lambda: desk.start_batch(paths, model, folder, None if cores == budgets[-1] else cores),
        )  # fmt: skip


@st.fragment(run_every=2.0)
def _watch(desk: Desk) -> None:
    run: BatchRun | None = desk.batch
    if run is None:
        return
    if run.status is None:
        st.progress(max(0, run.started - 1) / run.total, f"image {max(1, run.started)} of {run.total}")
        st.button("Stop", on_click=run.stop, key="batch stop", width="stretch")
    else:
        st.write(ENDED.get(run.status, "Stopped. The same run goes on from where it was."))
        if st.button("Close", key="batch close", width="stretch"):
            desk.batch = None
            desk.catalog.look(fresh=0)
            st.rerun()
    st.caption(f"Results go to {plain(str(run.out))}")
    st.code("\n".join(list(run.lines)[-12:]) or "…", language=None)
