"""The page: choose a result, see image and mask, read areas, learn how it was made, take the files."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

from app import panels, render
from pipelines.view import list_results


def main(folder: Path) -> None:
    """Draws the page for a folder of results."""
    st.set_page_config(page_title="VECA", page_icon=render.icon(), layout="wide")
    results = list_results(folder)
    if not results:
        panels.empty(folder)
        return

    with st.sidebar:
        chosen = panels.choose(results)
    if chosen.bundle is None:
        panels.damaged(chosen)
        return

    bundle = chosen.bundle
    panels.heading(chosen, bundle.run)
    areas = panels.areas(bundle)
    scene = panels.load(bundle)
    if scene is not None:
        with st.sidebar:
            look = panels.look(scene)
        wide, narrow = st.columns([3, 1], gap="medium")
        with wide:
            panels.picture(scene, look, bundle.run)
        with narrow:
            panels.legend(scene.legend, areas)

    wide, narrow = st.columns([3, 1], gap="medium")
    if areas:
        with wide:
            panels.area_table(areas)
    with narrow:
        panels.downloads(bundle)
    panels.story(bundle.run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
