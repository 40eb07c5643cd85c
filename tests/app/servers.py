"""The viewer's server as `veca view` starts it, in a process of its own and a home of its own."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.launch import free_port

TOP = Path(__file__).parents[2]


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            self.headers = answer.headers
            return answer.status, b"" if answer.status == 101 else answer.read()
        finally:
            connection.close()


@contextmanager
def serving(
    folders: Sequence[Path | str],
    place: Path,
    *,
    home: Path | None = None,
    port: int | None = None,
    options: Sequence[str] = (),
    **more: str,
) -> Iterator[Server]:
    """Started in the folder `place` with `options`; ended, however it goes. `more` goes into its environment."""
    port = port or free_port("127.0.0.1", 0)
    home = home or place
    environment = os.environ | {"PYTHONPATH": str(TOP), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")} | more
    command = [
        sys.executable,
        "-P",
        "-m",
        "app",
        "--port",
        str(port),
        "--no-browser",
        *options,
        "--",
        *map(str, folders),
    ]
    process = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        started = Server(process, port)
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, "the server did not start within two minutes"
            try:
                if started.ask("/_stcore/health") == (200, b"ok"):
                    break
            except OSError:
                time.sleep(0.1)
        yield started
    finally:
        process.kill()
        process.communicate()
