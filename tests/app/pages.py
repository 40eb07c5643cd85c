"""How tests read a page that Streamlit has run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streamlit.testing.v1 import AppTest

OpenPage = Callable[[Path], AppTest]
"""Runs the page for a folder."""
Picture = Callable[[AppTest], NDArray[np.uint8]]
"""Gives the pixels (h, w, 3) of the image on a page."""


def words(page: AppTest) -> str:
    """All text on the page."""
    kinds = ("header", "markdown", "caption", "code", "info", "warning", "error")
    return "\n".join(str(element.value) for kind in kinds for element in page.get(kind))


def switch(page: AppTest, name: str) -> Any:
    return page.checkbox(key=next(box.key for box in page.checkbox if box.key and box.key.endswith(f" {name}")))


def small(picture: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The picture with each enlarged pixel as one again; all that belong to one pixel are alike."""
    side = picture.shape[0] // shape[0]
    assert np.array_equal(picture[::side, ::side].repeat(side, 0).repeat(side, 1), picture)
    return picture[::side, ::side]
