"""A plain web server with range requests, which counts what it sends; and an object store as Amazon's."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

BUCKET = "images"


@dataclass
class Served:
    """A folder behind http, and what was asked of it."""

    url: str
    sent: int = 0
    """Bytes of content that were sent."""
    requests: list[str] = field(default_factory=list)


@contextmanager
def web_server(folder: Path, *, parts: bool = True) -> Iterator[Served]:
    """Serves the files of a folder, whole or in ranges (unless it knows no `parts`), on this machine only."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            file = folder / unquote(urlsplit(self.path).path).lstrip("/")
            served.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            if not file.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = file.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "") if parts else "")
            start, stop = 0, len(content)
            if wanted:
                start, stop = int(wanted[1]), min(stop, int(wanted[2] or stop - 1) + 1)
            part = content[start:stop]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            if parts:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if body:
                served.sent += len(part)
                self.wfile.write(part)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server with one bucket, named by the usual environment; gives a client of Amazon's own library."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    names = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1", "ENDPOINT_URL": endpoint}
    for name, value in (names | {"DEFAULT_REGION": "us-east-1", "ALLOW_HTTP": "true"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": "path"}))
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()  # servers of one process share their content
    client.create_bucket(Bucket=BUCKET)
    try:
        yield client
    finally:
        client.close()
        server.stop()


def upload(client: Any, path: Path, key: str) -> str:
    """Puts a file, or all of a folder, into the bucket; gives its address."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        client.upload_file(str(file), BUCKET, key if path.is_file() else f"{key}/{file.relative_to(path)}")
    return f"s3://{BUCKET}/{key}"
