"""Where Streamlit's sign-in is on, the routes beside the page are behind it too: by default they would not be."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from drawn_slides import tissue, write_svs
from pages import OpenPage, words
from servers import serving

from app.signing import HOURS, Signer
from pipelines.display.catalog import Catalog, read_key

SECRETS = """
[auth]
redirect_uri = "http://localhost:8501/oauth2callback"
cookie_secret = "0123456789abcdef0123456789abcdef"
client_id = "viewer"
client_secret = "secret"
server_metadata_url = "http://127.0.0.1:9/.well-known/openid-configuration"
"""


def test_without_a_pass_no_route_answers_and_with_one_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    write_svs(folder / "slide.svs", tissue(300, 300))
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text(SECRETS)
    with serving([folder], tmp_path) as server:
        key = read_key(tmp_path / "cache" / "veca" / "viewer.key")
        (image,) = Catalog([folder], key).look().images
        good, old = Signer(key).issue(), Signer(key).issue(time.time() - 3600 * (HOURS + 1))
        forged = Signer(bytes(32)).issue()
        routes = [f"/veca/image/{image}/0/0/0", f"/veca/image/{image}/thumbnail", "/veca/mask/x/0/0/0", "/veca/task/x",
                  f"/veca/image/{image}/where?y=0&x=0", f"/veca/image/{image}/at?lat=0&lon=0", "/veca/heat/x/0/0",
                  "/veca/mask/x/regions?class=a", "/veca/mask/x/confidence?y=0&x=0"]  # fmt: skip
        for route in routes:
            joint = "&" if "?" in route else "?"
            for given in ("", f"{joint}pass=", f"{joint}pass={old}", f"{joint}pass={forged}", f"{joint}pass={good}0"):
                assert server.ask(route + given)[0] == 401, route + given
            assert server.ask(f"{route}{joint}pass={good}")[0] in (200, 404), route
        assert server.ask(f"/veca/image/{image}/0/0/0?pass={good}")[0] == 200
        for asked in ("measure", "paint"):
            assert server.ask(f"/veca/mask/x/{asked}", "POST", "{}")[0] == 401
        assert server.ask("/")[0] == 200


def test_the_page_offers_nothing_but_to_sign_in(
    folder: Path, image: Path, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert image.exists()
    monkeypatch.setattr("app.sign_in.signs_in", lambda: True)
    page = open_page(folder)
    assert not page.exception
    assert [button.label for button in page.button] == ["Sign in"]
    assert not page.selectbox
    assert "case 1" not in words(page)


def test_a_pass_holds_for_hours_and_no_longer() -> None:
    signer, now = Signer(b"key"), 1_800_000_000.0
    given = signer.issue(now)
    assert signer.accepts(given, now)
    assert signer.accepts(given, now + HOURS * 3600 - 1)
    assert not signer.accepts(given, now + (HOURS + 1) * 3600)
    assert not Signer(b"another key").accepts(given, now)
    for text in (
        "",
        ".",
        "x",
        "9" * 40 + ".x",
        given.replace(".", ""),
        "²." + given.partition(".")[2],
        given[:-1] + "é",
    ):
        assert not signer.accepts(text, now)
