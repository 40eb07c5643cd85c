"""How tests read a page that Streamlit has run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamlit.testing.v1 import AppTest

OpenPage = Callable[..., AppTest]
"""Runs the page for folders, with what stands in its address."""


def words(page: AppTest) -> str:
    """All text on the page, as it is read."""
    kinds = ("header", "markdown", "caption", "code", "info", "warning", "error")
    return "\n".join(str(element.value) for kind in kinds for element in page.get(kind)).replace("\\", "")


def chosen(page: AppTest, label: str) -> Any:
    """The selectbox of a label."""
    return next(box for box in page.selectbox if box.label == label)
