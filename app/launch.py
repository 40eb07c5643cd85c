"""Starts the page's server on this machine, and stops it again."""

from __future__ import annotations

import errno
import os
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from streamlit import net_util
from streamlit.web import cli

from pipelines.errors import RequestError
from pipelines.progress import to_stderr

PAGE: Final = Path(__file__).with_name("main.py")
PORT: Final = 8501
"""Tried first; any free one serves where it is taken."""
SETTINGS: Final = {
    "server.showEmailPrompt": "false",
    "server.fileWatcherType": "none",
    "server.enableStaticServing": "false",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "logger.hideWelcomeMessage": "true",
    "theme.primaryColor": "#2a7f9e",
    "theme.baseRadius": "small",
}
"""Of Streamlit, whatever its user's own configuration says."""


def serve(folder: Path, host: str = "127.0.0.1", port: int | None = None, open_browser: bool = True) -> int:
    """Shows the results in `folder` until Ctrl-C, then returns 0. Raises RequestError for what cannot be served.

    Only this machine reaches the page, unless `host` is its address in a network.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; give the --out folder of a segmentation")
    address = find_address(host)
    chosen = free_port(address, port)
    # Streamlit would ask a server in the internet for our address when a page of another site tries to reach this one.
    net_util.get_external_ip = lambda: None
    to_stderr(f"{folder} is shown at http://{shown_host(address)}:{chosen} until Ctrl-C")
    if not ip_address(address).is_loopback:
        to_stderr("everyone who reaches this machine can look at it; without --host, only this machine can")
    flags = [
        *(f"--{name}={value}" for name, value in SETTINGS.items()),
        f"--server.address={address}",
        f"--server.port={chosen}",
        f"--server.headless={'false' if open_browser and has_display() else 'true'}",
        f"--browser.serverAddress={shown_host(address)}",
        *(f"--server.allowedHosts={name}" for name in allowed_hosts(address)),
    ]
    cli.main(["run", str(PAGE), *flags, "--", str(folder.resolve())], standalone_mode=False)
    return 0


def find_address(host: str) -> str:
    """The address of a host's name, IPv4 first; raises RequestError where there is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _no_address(host) from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def free_port(address: str, port: int | None = None) -> int:
    """`port`, or where it is None 8501 or any free one; raises RequestError where it, or the address, is not ours."""
    try:
        return _bind(address, PORT if port is None else port)
    except OverflowError as error:
        raise RequestError(f"there is no port {port}; choose one from 1024 to 65535") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port is None:
            return _bind(address, 0)
        if error.errno == errno.EADDRINUSE:
            raise RequestError(f"port {port} is in use; choose another --port, or none to take a free one") from error
        if error.errno == errno.EACCES:
            raise RequestError(f"port {port} is kept for the system; choose one from 1024 to 65535") from error
        raise _no_address(address) from error


def allowed_hosts(address: str) -> tuple[str, ...]:
    """Names under which a browser may ask for the page; empty: any.

    On a loopback address only its own: a page of another site cannot let its own name point here to read along.
    """
    return ("localhost", "127.0.0.1", "::1", address) if ip_address(address).is_loopback else ()


def shown_host(address: str) -> str:
    """What to type into a browser on this machine."""
    if ip_address(address).is_unspecified:
        return "localhost"
    return f"[{address}]" if ":" in address else address


def has_display() -> bool:
    """Whether a browser can open a window here."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _bind(address: str, port: int) -> int:
    """The port that could be bound, and is free again; 0 finds one. Raises OSError or OverflowError as sockets do."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        if os.name != "nt":  # where it would allow two servers on one port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return int(probe.getsockname()[1])


def _no_address(host: str) -> RequestError:
    return RequestError(f"{host} is no address of this machine; leave --host out to show the page on this machine only")
