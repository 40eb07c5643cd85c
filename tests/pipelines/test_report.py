"""report.html says what the results say, loads nothing, and cannot be made to run anything."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from pipelines import Options
from pipelines.report import write_report
from pipelines.segmentation import segment_all
from tiling import Spacing
from veca_core import load_model

EVIL = "a & <img src=x onerror=alert(1)> 'b'"


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for name, attrs in self.tags if name == tag and attribute in attrs]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Two results, one with a name that is HTML, one damaged, and an image that failed."""
    folder = tmp_path_factory.mktemp("report")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    for name in ("plain", EVIL):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    images = [folder / "plain.png", folder / f"{EVIL}.png", folder / "broken.png"]
    segment_all(images, load_model(tiny_model), folder / "out", Options(spacing=Spacing.square(0.5, "um"), cores=8))
    (folder / "out" / "damaged").mkdir()
    (folder / "out" / "damaged" / "run.json").write_text("{")
    return folder / "out"


def test_the_page_shows_pictures_areas_plan_links_and_what_failed(results: Path) -> None:
    path = write_report(results)
    page = Page(path.read_text(encoding="utf-8"))
    sources = page.all("img", "src")
    assert len(sources) == 4
    for source in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
        assert picture.size == (130, 90)
    links = [unquote(link) for link in page.all("a", "href")]
    assert "plain/mask.tif" in links
    assert all((results / link).is_file() for link in links)
    for words in ("plain.png, 130 x 90 px", "8 cores, window 64 px", "total", "mm²", EVIL, "broken.png", "damaged"):
        assert words in page.text, words
    assert "2 done, 1 damaged, 1 failed" in page.text


def test_nothing_is_loaded_or_run_and_no_folder_of_this_machine_is_named(results: Path) -> None:
    html = write_report(results).read_text(encoding="utf-8")
    page = Page(html)
    policy = next(str(a["content"]) for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "link", "form", "base"})
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert not re.search(r"(?:src|href)=[\"'](?!data:)(?:\w+:|//)", html)
    assert "url(" not in html
    assert str(results.parent) not in html


def test_an_image_that_is_gone_leaves_its_classes(results: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(results, tmp_path / "out")
    moved = results.parent / "plain.png"
    kept = moved.read_bytes()
    moved.unlink()
    try:
        page = Page(write_report(tmp_path / "out").read_text(encoding="utf-8"))
    finally:
        moved.write_bytes(kept)
    assert "The image is gone or has changed since" in page.text


def test_the_command_writes_it_or_says_why_not(results: Path, tmp_path: Path, veca: Any) -> None:
    said = veca("report", results)
    assert (said.status, said.out.strip()) == (0, str(results / "report.html"))
    for folder, line in {tmp_path: "holds no results", tmp_path / "none": "there is no folder"}.items():
        said = veca("report", folder)
        assert said.status == 2
        assert line in said.line
