"""What lies in a folder, seen without a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle
from numpy.typing import NDArray

from pipelines.bundle import Bundle, find_bundles
from pipelines.errors import RequestError
from pipelines.view import list_results, read_areas


def test_results_are_named_by_their_place_in_the_folder(results: Path, image: Path, values: NDArray[np.uint8]) -> None:
    for name in ("b", "a/x", "a/y"):
        write_bundle(results / name, image, values, exports=())
    listed = list_results(results)
    assert [result.name for result in listed] == ["a/x", "a/y", "b"]
    found = {bundle.folder.resolve() for bundle in find_bundles(results)}
    assert {result.bundle.folder for result in listed if result.bundle} == found


def test_a_result_itself_can_be_the_folder(bundle: Bundle) -> None:
    assert [result.name for result in list_results(bundle.folder)] == ["case 1"]


def test_links_are_not_followed_out_of_the_folder(bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "other results"
    other.mkdir()
    (other / "whole").symlink_to(bundle.folder, target_is_directory=True)
    part = other / "part"
    part.mkdir()
    (part / "run.json").write_bytes((bundle.folder / "run.json").read_bytes())
    (part / "labels.zarr").symlink_to(bundle.folder / "labels.zarr", target_is_directory=True)
    (listed,) = list_results(other)
    assert listed.name == "part"
    assert listed.bundle is None
    assert "leads out of the folder" in listed.problem


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"format": "veca-run/9"}'])
def test_a_damaged_record_has_a_reason_in_one_line(bundle: Bundle, content: bytes) -> None:
    (bundle.folder / "run.json").write_bytes(content)
    (listed,) = list_results(bundle.folder.parent)
    assert listed.bundle is None
    assert listed.problem
    assert "\n" not in listed.problem


def test_a_record_that_is_mended_is_read_again(bundle: Bundle) -> None:
    record = bundle.folder / "run.json"
    good = record.read_bytes()
    record.write_bytes(b"{")
    assert list_results(bundle.folder.parent)[0].problem
    record.write_bytes(good)
    assert not list_results(bundle.folder.parent)[0].problem


def test_areas_are_counted_as_the_mask_has_them(bundle: Bundle, values: NDArray[np.uint8]) -> None:
    rows = {row.name: row for row in read_areas(bundle.folder)}
    assert {rows[name].pixels for name in ("total", "no data")} == {2320, 80}
    assert rows["stroma"].pixels == (values == 7).sum()
    assert rows["stroma"].share == pytest.approx(300 / 2320)
    assert rows["stroma"].area is None


def test_damaged_areas_are_refused(bundle: Bundle) -> None:
    (bundle.folder / "areas.csv").write_bytes(b"class,value,pixels,share\nstroma,7,many,0.1\n")
    with pytest.raises(RequestError, match=r"areas\.csv is damaged"):
        read_areas(bundle.folder)
