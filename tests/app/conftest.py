"""The page as a user meets it: run by Streamlit, with the pictures that it sends to the browser."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from numpy.typing import NDArray
from pages import OpenPage, Picture
from PIL import Image
from streamlit.runtime.memory_media_file_storage import MemoryMediaFileStorage
from streamlit.testing.v1 import AppTest

from app.launch import PAGE
from pipelines.bundle import Bundle


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> OpenPage:
    """Runs the page for a folder, as the server would."""

    def run(folder: Path) -> AppTest:
        monkeypatch.setattr(sys, "argv", [str(PAGE), str(folder)])
        return AppTest.from_file(str(PAGE), default_timeout=60).run()

    return run


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> Picture:
    """The pixels (h, w, 3) of the image on a page."""
    sent: dict[str, bytes] = {}
    keep = MemoryMediaFileStorage.load_and_get_id

    def load_and_get_id(self: MemoryMediaFileStorage, data: bytes, *rest: Any, **options: Any) -> str:
        name = keep(self, data, *rest, **options)
        sent[name] = data
        return name

    monkeypatch.setattr(MemoryMediaFileStorage, "load_and_get_id", load_and_get_id)

    def pixels(page: AppTest) -> NDArray[np.uint8]:
        name = Path(page.image[0].value[0]).stem
        return np.asarray(Image.open(io.BytesIO(sent[name])))

    return pixels


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A PNG of 40 rows and 60 columns, outside the folder of results."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    path = tmp_path / "images" / "case 1.png"
    path.parent.mkdir()
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
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def bundle(results: Path, image: Path, values: NDArray[np.uint8]) -> Bundle:
    """One finished result, the only one in its folder."""
    return write_bundle(results / "case 1", image, values)
