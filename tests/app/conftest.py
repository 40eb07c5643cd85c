"""The page as a user meets it: run by Streamlit beside a desk of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle
from numpy.typing import NDArray
from pages import OpenPage
from PIL import Image
from streamlit.testing.v1 import AppTest

from app.desk import Desk, open_desk
from app.launch import PAGE
from pipelines.bundle import Bundle
from pipelines.live.engine import Engine


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit puts the page in the place of `__main__`, where processes that later tests start would run it."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture
def open_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPage]:
    """Runs the page for folders, as the server would. The network's process is not warmed up for tests of panels."""
    monkeypatch.setattr(Engine, "warm", lambda *_: None)
    desks: list[Desk] = []

    def run(*folders: Path, **query: str) -> AppTest:
        desk = Desk(folders, cache=tmp_path / "cache", key=bytes(32))
        desks.append(desk)
        open_desk(desk)
        page = AppTest.from_file(str(PAGE), default_timeout=60)
        for name, value in query.items():
            page.query_params[name] = value
        return page.run()

    yield run
    open_desk(None)
    for desk in desks:
        desk.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is shown: images and results."""
    (tmp_path / "shown" / "images").mkdir(parents=True)
    return tmp_path / "shown"


@pytest.fixture
def image(folder: Path) -> Path:
    """A PNG of 40 rows and 60 columns."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    path = folder / "images" / "case 1.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def values() -> NDArray[np.uint8]:
    """(40, 60): background, a block of tumour, a block of stroma, a strip without data."""
    values = np.zeros((40, 60), np.uint8)
    values[5:15, 5:30] = 1
    values[20:35, 30:50] = 7
    values[:, 58:] = 255
    return values


@pytest.fixture
def results(folder: Path) -> Path:
    return folder / "results"


@pytest.fixture
def bundle(results: Path, image: Path, values: NDArray[np.uint8]) -> Bundle:
    """One finished result, the only one in its folder."""
    return write_bundle(results / "case 1", image, values)
