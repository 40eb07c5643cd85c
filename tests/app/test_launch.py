"""The server: it starts anywhere, speaks to this machine only, tells nobody, and stops when asked."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from servers import Server, serving

from app.launch import allowed_hosts, find_address, free_port, serve, shown_host
from pipelines.errors import RequestError

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@dataclass
class Outside:
    """Stands where the internet would be: whatever wants to go there is counted."""

    server: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    calls: int = 0

    def count(self) -> None:
        while True:
            try:
                self.server.accept()[0].close()
            except OSError:
                return
            self.calls += 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    trap = Outside()
    thread = threading.Thread(target=trap.count, daemon=True)
    thread.start()
    yield trap
    trap.server.shutdown(socket.SHUT_RDWR)
    trap.server.close()
    thread.join(5)


@pytest.fixture(scope="module")
def server(outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python -m app` in a folder of its own, as `veca view` starts it."""
    place = tmp_path_factory.mktemp("anywhere")
    (place / "-- my results").mkdir()
    ways_out = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), outside.url)
    with serving(["-- my results"], place, NO_PROXY="", no_proxy="", **ways_out) as started:
        yield started


def test_the_server_answers_with_the_page(server: Server) -> None:
    status, page = server.ask("/")
    assert status == 200
    assert b"<html" in page


def test_only_this_machine_can_reach_the_page(server: Server) -> None:
    listening = [c for c in psutil.Process(server.process.pid).net_connections("inet") if c.status == "LISTEN"]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", server.port)]


def test_the_page_can_be_opened_from_its_own_address(server: Server) -> None:
    address = f"127.0.0.1:{server.port}"
    assert server.ask("/_stcore/stream", **HANDSHAKE, Host=address, Origin=f"http://{address}")[0] == 101


@pytest.mark.parametrize("host", ["127.0.0.1", "elsewhere.example"])
def test_a_page_of_another_site_is_turned_away_and_nobody_is_asked_about_it(
    server: Server, outside: Outside, host: str
) -> None:
    headers = {"Host": f"{host}:{server.port}", "Origin": f"http://elsewhere.example:{server.port}"}
    assert server.ask("/_stcore/stream", **HANDSHAKE, **headers)[0] in (400, 403)
    assert outside.calls == 0


def test_the_server_stops_when_interrupted(server: Server, outside: Outside) -> None:
    server.process.send_signal(signal.SIGINT)
    _, said = server.process.communicate(timeout=30)
    assert server.process.returncode == 0
    assert f"is shown at http://127.0.0.1:{server.port} until Ctrl-C" in said
    assert "Traceback" not in said
    assert outside.calls == 0


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no folder .*nowhere; give a folder"):
        serve([tmp_path / "nowhere"])


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=rf"port {port} is in use; choose another --port"):
            serve([tmp_path], port=port)


def test_a_free_port_is_found_where_the_usual_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("app.launch.PORT", port)
        found = free_port("127.0.0.1")
    assert found != port
    with socket.create_server(("127.0.0.1", found)):
        pass


def test_a_port_that_cannot_be_is_one_line() -> None:
    with pytest.raises(RequestError, match="there is no port 70000"):
        free_port("127.0.0.1", 70000)


def test_an_address_that_is_not_ours_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"192\.0\.2\.1 is no address of this machine"):
        serve([tmp_path], host="192.0.2.1")
    with pytest.raises(RequestError, match="is no address of this machine"):
        find_address("no such host")


def test_a_page_is_asked_for_by_names_of_this_machine_only() -> None:
    assert {"127.0.0.1", "::1", "localhost"} <= set(allowed_hosts("127.0.0.1"))
    assert "slides.example" not in allowed_hosts("127.0.0.1")
    everywhere = allowed_hosts("0.0.0.0", ["slides.example"])
    assert {"127.0.0.1", "slides.example", socket.gethostname().lower()} <= set(everywhere)
    assert not {"0.0.0.0", "*", ""} & set(everywhere)


@pytest.mark.parametrize(("address", "host"), [("0.0.0.0", "localhost"), ("::1", "[::1]"), ("10.0.0.7", "10.0.0.7")])
def test_the_address_is_shown_as_a_browser_takes_it(address: str, host: str) -> None:
    assert shown_host(address) == host
