"""Starts the page's server on this machine, and stops it again."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import psutil
import streamlit as st
import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from streamlit import config, net_util

from app.desk import Desk, open_desk, the_desk
from app.guard import Guard
from app.routes import ROUTES
from app.sign_in import signs_in
from pipelines.display.mercator import BaseMap
from pipelines.errors import RequestError
from pipelines.progress import to_stderr

PAGE: Final = Path(__file__).with_name("main.py")
_M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""
TRIM: Final = 10.0
"""Seconds."""
PORT: Final = 8501
"""Tried first; any free one serves where it is taken."""
SETTINGS: Final[dict[str, Any]] = {
    "server.showEmailPrompt": False,
    "server.fileWatcherType": "none",
    "server.enableStaticServing": False,
    "server.enableAgentApi": False,
    "server.maxUploadSize": 1,
    "browser.gatherUsageStats": False,
    "runner.magicEnabled": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "logger.hideWelcomeMessage": True,
    "theme.light.primaryColor": "#2a7f9e",
    "theme.light.baseRadius": "small",
    "theme.dark.primaryColor": "#3fa0c2",
    "theme.dark.baseRadius": "small",
}
"""Of Streamlit, whatever its user's own configuration says."""


def serve(
    folders: Sequence[Path],
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = True,
    names: Sequence[str] = (),
    base_map: BaseMap | None = None,
) -> int:
    """Shows the images and results in `folders` until Ctrl-C, then returns 0. RequestError for what cannot be served.

    Only this machine reaches the page, unless `host` is its address in a network; `names` are further names under
    which browsers may ask for it there. Rasters can be shown on the `base_map`, which browsers fetch from its service.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"there is no folder {folder}; give a folder of images or results")
    address = find_address(host)
    chosen = free_port(address, port)
    url = f"http://{shown_host(address)}:{chosen}"
    to_stderr(f"{', '.join(map(str, folders))} is shown at {url} until Ctrl-C")
    if not ip_address(address).is_loopback:
        to_stderr("everyone who reaches this machine can look at it; without --host, only this machine can")
    hosts = allowed_hosts(address, names)
    configure(address, chosen, hosts)
    keep_memory_together()
    desk = Desk(folders, base_map=base_map)
    open_desk(desk)
    greet = url if open_browser and has_display() else None
    try:
        # Streamlit's own launcher binds a socket on which small answers wait 40 ms for each other.
        uvicorn.run(
            create_app(hosts, greet), host=address, port=chosen, log_level="warning", timeout_graceful_shutdown=1,
            server_header=False,
        )  # fmt: skip
    except KeyboardInterrupt:
        pass
    finally:
        open_desk(None)
        desk.close()
    return 0


def configure(address: str, port: int, hosts: Sequence[str]) -> None:
    """Sets what Streamlit is to do and not to do, whatever its user's own configuration says."""
    # It would ask a server in the internet for our address when a page of another site tries to reach this one.
    net_util.get_external_ip = lambda: None
    for name, value in SETTINGS.items():
        config.set_option(name, value)
    config.set_option("server.address", address)
    config.set_option("server.port", port)
    config.set_option("browser.serverAddress", shown_host(address))
    config.set_option("browser.serverPort", port)
    config.set_option("server.allowedHosts", list(hosts))


def keep_memory_together() -> None:
    """Two pools of memory for all threads, where glibc would make eight a processor and give little back."""
    with suppress(OSError, AttributeError):  # other systems have no such pools
        ctypes.CDLL(None).mallopt(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(2))


async def give_memory_back() -> None:
    """Now and then hands to the system what tiles have left free in those pools; goes on until it is cancelled."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # no glibc
        return
    while True:
        await asyncio.sleep(TRIM)
        await asyncio.to_thread(trim, ctypes.c_size_t(0))


def create_app(hosts: Sequence[str], greet: str | None = None) -> st.App:
    """The page and the routes beside it, behind the guard; opens a browser at `greet` once it answers."""

    @asynccontextmanager
    async def lifespan(_: st.App) -> AsyncIterator[dict[str, Any]]:
        if greet is not None:
            threading.Timer(0.5, webbrowser.open, (greet,)).start()
        giving = asyncio.create_task(give_memory_back())
        yield {}
        giving.cancel()

    signed_in = the_desk().signer.accepts if signs_in() else None
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=_host_patterns(hosts), www_redirect=False),
        Middleware(Guard, signed_in=signed_in),
    ]
    return st.App(PAGE, routes=ROUTES, middleware=middleware, lifespan=lifespan)


def _host_patterns(hosts: Sequence[str]) -> list[str]:
    """As Starlette compares them, some versions with the brackets of an IPv6 address and some without."""
    return [*hosts, *(f"[{host}]" for host in hosts if ":" in host)]


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


def allowed_hosts(address: str, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Names under which a browser may ask for the page: this machine's own, and those that were given.

    A page of another site cannot let its own name point here to read along.
    """
    local = ("localhost", "127.0.0.1", "::1", address)
    if ip_address(address).is_loopback:
        return tuple(dict.fromkeys((*local, *names)))
    own = [socket.gethostname(), socket.getfqdn()]
    if ip_address(address).is_unspecified:
        own += [a.address.partition("%")[0] for cards in psutil.net_if_addrs().values() for a in cards]
    known = [name for name in (*local, *own, *names) if name and not _is_unspecified(name)]
    return tuple(dict.fromkeys(name.lower() for name in known))


def _is_unspecified(name: str) -> bool:
    try:
        return ip_address(name).is_unspecified
    except ValueError:
        return False


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
