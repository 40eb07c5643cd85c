"""The routes beside the page: they show what lies in the folders, to the page itself, and nothing else to nobody."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from bundles import CLASSES, write_bundle
from drawn_slides import tissue, write_svs
from PIL import Image
from servers import Server, serving

from app.desk import Desk
from pipelines.display.catalog import Catalog, read_key
from pipelines.live.corrections import Corrections
from tiling import Spacing, View, open_image


@dataclass(frozen=True)
class Open:
    """A server with a slide, its mask, a broken slide, and what it may not show."""

    server: Server
    folder: Path
    outside: Path
    image: str
    broken: str
    mask: str
    corrected: str


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    place = tmp_path_factory.mktemp("viewer")
    folder, outside = place / "slides", place / "private.png"
    folder.mkdir()
    slide = write_svs(folder / "slide.svs", tissue(700, 500))
    values = np.zeros((700, 500), np.uint8)
    values[100:300, 50:250] = 1
    write_bundle(folder / "results" / "slide", slide, values)
    Corrections.begin(folder / "results" / "slide", str(slide), "", "m", 8, CLASSES)
    # Its second tile row is nonsense; its header is whole.
    data = bytearray(slide.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 4000] = bytes(4000)
    (folder / "broken.svs").write_bytes(data)
    Image.new("RGB", (30, 30)).save(outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(place, target_is_directory=True)
    with serving([folder], place) as server:
        names = {entry.path.name: entry.id for entry in Catalog([folder], _key(place)).look().images.values()}
        layers = {layer.kind: layer.id for layer in Catalog([folder], _key(place)).look().layers.values()}
        yield Open(
            server, folder, outside, names["slide.svs"], names["broken.svs"], layers["result"], layers["corrected"]
        )


def _key(place: Path) -> bytes:
    return read_key(place / "cache" / "veca" / "viewer.key")


@pytest.mark.parametrize(
    "path",
    [
        "/veca/image/{image}/0/1/1", "/veca/image/{image}/thumbnail", "/veca/image/{image}/state",
        "/veca/image/{image}/where?y=1&x=1", "/veca/mask/{mask}/0/0/0", "/veca/mask/{mask}/confidence?y=1&x=1",
        "/veca/mask/{corrected}/0/0/0",
    ],
)  # fmt: skip
def test_nothing_of_a_slide_stays_in_a_cache(opened: Open, path: str) -> None:
    named = path.format(image=opened.image, mask=opened.mask, corrected=opened.corrected)
    assert opened.server.ask(named)[0] == 200
    assert opened.server.headers["cache-control"] == "private, no-store"


def test_an_image_tile_is_a_jpeg_that_no_cache_keeps(opened: Open) -> None:
    status, body = opened.server.ask(f"/veca/image/{opened.image}/0/1/1")
    assert status == 200
    assert Image.open(io.BytesIO(body)).size == (240, 240)
    headers = opened.server.headers
    assert headers["content-type"] == "image/jpeg"
    assert headers["cache-control"] == "private, no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_mask_tile_is_bare_values(opened: Open) -> None:
    status, body = opened.server.ask(f"/veca/mask/{opened.mask}/0/0/0", Accept_Encoding="gzip")
    values = np.frombuffer(gzip.decompress(body), np.uint8).reshape(512, 500)
    assert status == 200
    assert (values[100:300, 50:250] == 1).all()
    assert values.sum() == 200 * 200


def test_a_drawn_region_is_measured(opened: Open) -> None:
    corners = [[150, 0], [150, 100], [250, 100], [250, 0]]
    status, body = opened.server.ask(f"/veca/mask/{opened.mask}/measure", "POST", json.dumps({"corners": corners}))
    rows = {row["value"]: row for row in json.loads(body)["rows"]}
    assert status == 200
    assert rows[1]["pixels"] == 100 * 50
    assert rows[1]["area"] == pytest.approx(5000 * 0.25)
    assert rows[1]["unit"] == "um2"
    assert rows[1]["share"] == 0.5


def test_a_mask_at_a_stated_pixel_size_lies_and_measures_as_its_run_took_it(tmp_path: Path) -> None:
    folder, half = tmp_path / "pictures", Spacing.square(0.5, "um")
    folder.mkdir()
    Image.fromarray(tissue(200, 300)).save(folder / "picture.png")
    slide = write_svs(folder / "slide.svs", tissue(200, 300))  # it says 0.5 um, wrongly
    values = np.zeros((100, 150), np.uint8)
    values[50:60, 100:120] = 1
    for path in (folder / "picture.png", slide):
        view = View.open(open_image(path), half, Spacing.square(0.25, "um"))
        write_bundle(folder / "results" / path.stem, path, values, exports=("regions",), view=view)
    with serving([folder], tmp_path) as server:
        for layer in Catalog([folder], _key(tmp_path)).look().layers.values():
            corners = [[90, 190], [90, 250], [130, 250], [130, 190]]
            status, body = server.ask(f"/veca/mask/{layer.id}/measure", "POST", json.dumps({"corners": corners}))
            assert status == 200, body
            rows = {row["value"]: row for row in json.loads(body)["rows"]}
            assert (rows[1]["pixels"], rows[1]["unit"]) == (200, "um2")
            assert rows[1]["area"] == pytest.approx(200 * 0.25)
            status, body = server.ask(f"/veca/mask/{layer.id}/regions?class={quote(CLASSES[1].name)}")
            assert status == 200, body
            table = json.loads(body)
            assert table["unit"] == "um2"
            assert table["rows"] == [[110.0, 220.0, 200.0, 50.0, 30.0]]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '{"corners": [[1, 2]]}', '{"corners": [[1], [2], [3]]}', '{"corners": 1}']
)
def test_a_question_that_is_none_is_refused(opened: Open, body: str) -> None:
    assert opened.server.ask(f"/veca/mask/{opened.mask}/measure", "POST", body)[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "[]", "{}", '{"value": "1", "radius": 2, "points": [[1, 1]]}',
        '{"value": 1.5, "radius": 2, "points": []}',
        '{"value": true, "radius": 2, "points": [[1, 1]]}', '{"value": 9, "radius": 2, "points": [[1, 1]]}',
        '{"value": 1, "radius": -2, "points": [[1, 1]]}', '{"value": 1, "radius": 2, "points": []}',
        '{"value": 1, "radius": 1e999, "points": [[1, 1]]}',
        '{"value": 1, "radius": 0, "points": [[1, 1], [2, 2], [3, 3]]}',
    ],
)  # fmt: skip
def test_a_stroke_that_is_none_is_refused_and_leaves_nothing(opened: Open, body: str) -> None:
    assert opened.server.ask(f"/veca/mask/{opened.corrected}/paint", "POST", body)[0] == 400
    assert (opened.folder / "results" / "slide.corrected" / "strokes.jsonl").read_bytes() == b""


def test_a_stroke_is_on_the_disk_when_it_is_answered_and_only_corrections_can_be_painted(opened: Open) -> None:
    stroke = json.dumps({"value": 7, "radius": 4, "points": [[350, 100], [350, 160]]})
    assert opened.server.ask(f"/veca/mask/{opened.mask}/paint", "POST", stroke)[0] == 404
    assert opened.server.ask(f"/veca/mask/{opened.image}/paint", "POST", stroke)[0] == 404
    foreign = opened.server.ask(
        f"/veca/mask/{opened.corrected}/paint", "POST", stroke, Origin="http://elsewhere.example"
    )
    assert foreign[0] == 403
    status, body = opened.server.ask(f"/veca/mask/{opened.corrected}/paint", "POST", stroke)
    assert status == 200
    assert json.loads(body) == {"count": 1, "touched": [346, 96, 8, 68]}
    journal = opened.folder / "results" / "slide.corrected" / "strokes.jsonl"
    assert len(journal.read_text().splitlines()) == 1
    packed = opened.server.ask(f"/veca/mask/{opened.corrected}/0/0/0", Accept_Encoding="gzip")[1]
    values = np.frombuffer(gzip.decompress(packed), np.uint8).reshape(512, 500)
    assert (values[350, 100:160] == 7).all()
    assert (values[100:300, 50:250] == 1).all()
    undone = json.loads(opened.server.ask(f"/veca/mask/{opened.corrected}/paint", "POST", '{"undo": true}')[1])
    assert undone["count"] == 0
    journal.write_bytes(b"")


@pytest.mark.parametrize(
    "path",
    [
        "/veca/image/{image}/0/99/0", "/veca/image/{image}/9/0/0", "/veca/mask/{mask}/0/5/5",
        "/veca/mask/{mask}/7/0/0",
        "/veca/image/{forged}/0/0/0", "/veca/image/{mask}/0/0/0", "/veca/mask/{image}/0/0/0",
        "/veca/mask/{forged}/0/0/0",
        "/veca/task/{forged}", "/veca/heat/{forged}/0/0", "/veca/asset/viewer.js",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(opened: Open, path: str) -> None:
    named = path.format(image=opened.image, mask=opened.mask, forged=opened.image[::-1])
    assert opened.server.ask(named)[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/veca/image/..%2f..%2fprivate.png/0/0/0", "/veca/image/{outside}/0/0/0", "/veca/image/%2e%2e/thumbnail",
        "/veca/asset/..%2f..%2fmain.py", "/veca/asset/../../../main.py", "/veca/asset/%2e%2e/%2e%2e/viewer.css",
        "/veca/image/link.png/thumbnail", "/veca/mask/..%2fslides%2fresults%2fslide%2flabels.zarr/0/0/0",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folders(opened: Open, path: str) -> None:
    status, body = opened.server.ask(path.format(outside=str(opened.outside).replace("/", "%2f")))
    assert status in (400, 404) or b"<html" in body  # the page itself answers what is no route, with itself


def test_links_out_of_the_folders_have_no_name(opened: Open) -> None:
    found = Catalog([opened.folder], bytes(32)).look()
    assert sorted(entry.name for entry in found.images.values()) == ["broken.svs", "slide.svs"]


def test_a_file_that_becomes_a_link_out_of_the_folders_is_shown_no_more(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "in" / "a.png", tmp_path / "secret.png"):
        Image.new("RGB", (9, 9)).save(path)
    desk = Desk([tmp_path / "in"], cache=tmp_path / "cache", key=bytes(32))
    (name,) = desk.catalog.look().images
    assert desk.image(name) is not None
    (tmp_path / "in" / "a.png").unlink()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "secret.png")
    assert desk.image(name) is None
    desk.close()


def test_names_are_the_same_after_a_restart_and_another_key_gives_others(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    place = tmp_path / "state" / "viewer.key"
    names = [list(Catalog([tmp_path], read_key(place)).look().images) for _ in range(2)]
    assert names[0] == names[1]
    assert list(Catalog([tmp_path], bytes(32)).look().images) != names[0]
    assert place.stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "slides", ""])
def test_a_foreign_host_gets_nothing(opened: Open, host: str) -> None:
    for path in ("/", f"/veca/image/{opened.image}/0/0/0", "/_stcore/health"):
        assert opened.server.ask(path, Host=host)[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
    ],
)  # fmt: skip
def test_another_site_gets_no_tile(opened: Open, headers: dict[str, str]) -> None:
    assert opened.server.ask(f"/veca/image/{opened.image}/0/0/0", **headers)[0] == 403


def test_the_page_can_be_opened_by_a_link_on_another_site(opened: Open) -> None:
    assert opened.server.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


def test_a_ten_gigabyte_upload_is_refused_before_it_is_read(opened: Open) -> None:
    for path in ("/_stcore/upload_file/session/file", f"/veca/mask/{opened.mask}/measure", "/"):
        connection = http.client.HTTPConnection("127.0.0.1", opened.server.port, timeout=20)
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(10 * 2**30))
        connection.endheaders()
        connection.send(b"x" * 1000)
        assert connection.getresponse().status in (403, 413)
        connection.close()


def test_an_upload_that_does_not_say_its_size_is_cut_off(opened: Open) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(400):
            yield b"x" * 2**16

    connection = http.client.HTTPConnection("127.0.0.1", opened.server.port, timeout=20)
    try:
        connection.request("POST", f"/veca/mask/{opened.mask}/measure", endless(), encode_chunked=True)
        assert connection.getresponse().status >= 400
    except OSError:
        pass  # the connection was closed under it
    finally:
        connection.close()
    assert opened.server.ask("/_stcore/health")[0] == 200


def test_a_corrupt_slide_is_told_and_the_others_go_on(opened: Open) -> None:
    statuses = {
        opened.server.ask(f"/veca/image/{opened.broken}/0/{row}/{column}")[0] for row in range(3) for column in range(3)
    }
    assert 200 in statuses
    assert statuses <= {200, 422}
    status, body = opened.server.ask(f"/veca/image/{opened.broken}/1/0/0")
    assert status in (200, 422)
    assert str(opened.folder).encode() not in body
    assert opened.server.ask(f"/veca/image/{opened.image}/1/0/0")[0] == 200


def test_no_name_becomes_markup_in_the_browser() -> None:
    sources = (Path(__file__).parents[2] / "app" / "component" / "src").glob("*.js")
    program = "".join(path.read_text() for path in sources)
    assert "textContent" in program
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "srcdoc", "eval("):
        assert way not in program, way


def test_the_server_holds_no_torch(opened: Open) -> None:
    opened.server.ask(f"/veca/image/{opened.image}/0/0/0")
    maps = Path(f"/proc/{opened.server.process.pid}/maps")
    if not maps.exists():
        pytest.skip("this system does not say which libraries a process holds")
    assert "libtorch" not in maps.read_text()
    assert "libarrow" not in maps.read_text()  # which Streamlit loads for tables, with pandas: we have none


def test_the_programs_licences_are_served_beside_it(opened: Open) -> None:
    from app.routes import asset_url

    status, body = opened.server.ask(asset_url("licences", ".txt"), Accept_Encoding="gzip")
    assert status == 200
    assert b"OpenSeadragon" in gzip.decompress(body)
    assert "immutable" in opened.server.headers["cache-control"]


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed: the built program cannot be compared")
def test_the_built_program_is_that_of_its_sources(tmp_path: Path) -> None:
    component = Path(__file__).parents[2] / "app" / "component"
    modules = component / "node_modules"
    if not modules.is_dir():
        pytest.skip("app/component/node_modules is missing: run npm ci there")
    copy = tmp_path / "component"
    shutil.copytree(component, copy, ignore=shutil.ignore_patterns("node_modules", "built"))
    (copy / "node_modules").symlink_to(modules, target_is_directory=True)
    import subprocess

    subprocess.run(["node", "build.mjs"], cwd=copy, check=True, capture_output=True)
    for name in ("viewer.js", "licences.txt"):
        assert (copy / "built" / name).read_bytes() == (component / "built" / name).read_bytes(), name
