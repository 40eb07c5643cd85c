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


def serve(folder: Path, host: str = "127.0.0.1", port: int | None = None, open_browser: bool = True) -> int:
    """Shows the results in `folder` until Ctrl-C, then returns 0. Raises RequestError for what cannot be served.

    Only this machine reaches the page, unless `host` is its address in a network.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; give the --out folder of a segmentation")
    address = find_address(host)
    flags = server_flags(address, free_port(address, port), open_browser and has_display())
    # Streamlit would ask a server in the internet for our address when a page of another site tries to reach this one.
    net_util.get_external_ip = lambda: None
    to_stderr(f"{folder} is shown at {flags['browser.serverAddress']}:{flags['server.port']} until Ctrl-C")
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    cli.main(["run", str(PAGE), *arguments, "--", str(folder.resolve())], standalone_mode=False)
    return 0
