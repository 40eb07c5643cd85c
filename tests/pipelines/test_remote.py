"""Images from a web server, results into an object store: the same bundle, finished only once all of it is there."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import Veca
from places import expected, model, write_png, write_slide
from zarr.storage import ObjectStore

from pipelines import Bundle, Options, segment
from pipelines.errors import RequestError
from pipelines.remote import Store
from tiling import ImageError, storage

sys.path.append(str(Path(__file__).parents[1] / "tiling"))
from served import BUCKET, object_store, web_server

PLAIN = Options(device="cpu", tissue=False, exports=("mask",))
OUT = f"s3://{BUCKET}/results"


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with object_store(monkeypatch) as found:
        yield found


def test_a_slide_from_the_web_goes_into_a_store(veca: Veca, tiny_model: Path, tmp_path: Path) -> None:
    write_slide(tmp_path / "a.ome.tif", 150, 200)
    local = segment(tmp_path / "a.ome.tif", model(), tmp_path / "local", PLAIN)
    with web_server(tmp_path) as served:
        image = f"{served.url}/a.ome.tif"
        bundle = segment(image, model(), OUT, PLAIN)
        assert bundle.run.image.path == image
        names = storage.names(f"{OUT}/a")
        assert set(names) == {str(p.relative_to(local.folder)) for p in local.folder.rglob("*") if p.is_file()}
        labels = zarr.open_group(ObjectStore(storage.folder_store(f"{OUT}/a/labels.zarr"), read_only=True), mode="r")
        assert np.array_equal(labels["0"][:], expected(150, 200))
        assert storage.read_all(f"{OUT}/a/mask.tif")[-2000:] != b""
        assert not list((tmp_path / "home").rglob("labels.zarr")), "nothing is left here"
        said = veca("segment", image, f"{served.url}/none.tif", "-m", tiny_model, "-o", OUT, "--overwrite")
    assert said.status == 1
    assert f"{OUT}/a: labels.zarr" in said.err
    assert "none.tif: no such file" in said.err
    rows = list(csv.DictReader(io.StringIO(storage.read_all(f"{OUT}/summary.csv").decode())))
    assert [(row["image"].split("/")[-1], row["status"]) for row in rows] == [
        ("a.ome.tif", "done"),
        ("none.tif", "failed"),
    ]


def test_a_result_that_is_there_is_not_made_again_and_another_image_s_is_kept(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 70, 90)
    first = segment(image, model(), OUT, PLAIN)
    told: list[str] = []
    again = segment(image, model(), OUT, PLAIN, report=told.append)
    assert again.run == first.run
    assert any(line.startswith(f"{OUT}/a holds this very result already") for line in told)
    (tmp_path / "other").mkdir()
    other = write_png(tmp_path / "other/a.png", 70, 90)
    with pytest.raises(RequestError, match=rf"{OUT}/a holds the result of .*/a\.png; choose another --out"):
        segment(other, model(), OUT, PLAIN)
    small = write_png(image, 30, 20)
    segment(small, model(), OUT, PLAIN)
    shards = [name for name in storage.names(f"{OUT}/a") if "/c/" in name]
    assert len(shards) == len({shard.split("/")[1] for shard in shards}), "no shard of the larger image is left"


def test_further_exports_of_a_result_in_a_store_leave_the_earlier_ones(tmp_path: Path) -> None:
    image = write_png(tmp_path / "more.png", 70, 90)
    segment(image, model(), OUT, replace(PLAIN, exports=("mask",)))
    both = segment(image, model(), OUT, replace(PLAIN, exports=("areas",)))
    assert both.run.exports == ("mask", "areas")
    assert {"mask.tif", "areas.csv"} <= set(storage.names(f"{OUT}/more"))


def test_run_json_is_taken_away_first_and_sent_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = write_png(tmp_path / "a.png", 70, 90)
    segment(image, model(), OUT, PLAIN)
    send, sent = storage.send, []

    def broken(file: Path, path: str) -> None:
        if len(sent) == 3:
            raise ImageError(f"{path}: cannot be written: the line is dead")
        sent.append(path)
        send(file, path)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "send", broken)
        with pytest.raises(ImageError, match="the line is dead"):
            segment(image, model(), OUT, replace(PLAIN, overwrite=True))
    assert "run.json" not in storage.names(f"{OUT}/a")
    bundle = segment(image, model(), OUT, PLAIN)
    assert isinstance(bundle, Bundle)
    assert "run.json" in storage.names(f"{OUT}/a")


def test_a_store_that_takes_no_files_is_said_before_anything_starts(veca: Veca, tiny_model: Path) -> None:
    with pytest.raises(RequestError, match="results cannot be written over http"):
        Store.of("https://here/results")
    assert Store.of("results") is None
    said = veca("segment", "s3://images/a.tif", "--model", tiny_model, "--out", "s3://no-such-bucket/results")
    assert said.status == 2
    assert "veca: s3://no-such-bucket/results/.veca-probe: cannot be written: " in said.line
    assert veca("samples", "--synthetic", "--out", "s3://images/x").line.endswith("give a folder of this machine")
