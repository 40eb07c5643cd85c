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

    panels.heading(chosen, chosen.bundle.run)
    scene = panels.load(chosen.bundle)
    if scene is not None:
        with st.sidebar:
            look = panels.look(scene.legend)
        left, right = st.columns([2, 1], gap="medium")
        with left:
            panels.picture(scene, look, chosen.bundle.run)
        with right:
            panels.areas(chosen.bundle, scene.legend)
            panels.downloads(chosen.bundle)
    panels.story(chosen.bundle.run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
