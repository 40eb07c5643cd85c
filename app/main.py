"""The page: choose an image, look at it and its masks, segment what is drawn, compare, take the files."""

from __future__ import annotations

from typing import Final

import streamlit as st

from app import choose, panels
from app.batch import batch_panel
from app.compute import attention_panel, segment_panel
from app.correct import correct_panel
from app.desk import the_desk
from app.icon import icon
from app.sign_in import is_welcome
from app.viewer import show
from pipelines.errors import USER_ERRORS

# The image gets the room: Streamlit's own margins are those of a text.
PAGE_STYLE: Final = """<style>
[data-testid="stMainBlockContainer"] { padding: 10px 16px 32px; max-width: none; }
[data-testid="stHeader"] { background: none; height: 0; min-height: 0; }
[data-testid="stSidebarHeader"] { height: 1.6rem; min-height: 0; padding-top: 0.4rem; }
[data-testid="stSidebarContent"] [data-testid="stVerticalBlock"] { gap: 0.55rem; }
[data-testid="stMain"] .stHtml, [data-testid="stMain"] .stElementContainer:has(> .stHtml) { display: none; }
</style>"""


def main() -> None:
    """Draws the page for the folders that the server was started with."""
    st.set_page_config(page_title="VECA", page_icon=icon(), layout="wide")
    if not is_welcome():
        panels.welcome()
        return
    st.html(PAGE_STYLE)
    desk = the_desk()
    contents = desk.catalog.look()
    with st.sidebar:
        image = choose.image(contents)
    if image is None:
        panels.empty(desk, contents)
        return
    try:
        tiles = desk.image(image.id)
    except USER_ERRORS as error:
        panels.unreadable(image, str(error))
        return
    if tiles is None:
        panels.unreadable(image, "it is gone")
        return
    with st.sidebar:
        mapped = choose.on_map(desk, tiles)
        shown = choose.masks(desk, contents, image)
        if image.alone:
            panels.alone(desk, contents, image)
    if mapped:
        try:
            show(desk, contents, image, tiles, shown, None, None, desk.world(image.id))
        except USER_ERRORS as error:
            panels.unreadable(image, str(error))
        panels.below(desk, image, shown)
        return
    with st.sidebar:
        segmenting = segment_panel(desk, image, tiles)
        correct_panel(desk, contents, image, shown)
        heat = attention_panel(desk, image, segmenting)
        batch_panel(desk, contents)
        panels.damaged(contents)
        panels.visitor()
    show(desk, contents, image, tiles, shown, segmenting.task, heat)
    segmenting.show_plan(desk)
    panels.below(desk, image, shown)


main()
