"""`python -m app FOLDER`: what `veca view` starts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.launch import serve
from pipelines.display.mercator import BaseMap
from pipelines.errors import USER_ERRORS


def main() -> int:
    """Exit status 0 when stopped, 2 when called wrongly."""
    parser = argparse.ArgumentParser("veca view", description="Look at images and results in a browser.")
    parser.add_argument("folders", type=Path, nargs="+", help="folders of images and results")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; this machine only unless given")
    parser.add_argument("--port", type=int, help="port to listen on; a free one unless given")
    parser.add_argument("--name", action="append", default=[], help="a further name of this machine, for its network")
    parser.add_argument("--base-map", help="a map service below rasters, like https://HOST/{z}/{x}/{y}.png")
    parser.add_argument("--base-map-credit", default="", help="who made the base map; shown on it")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=True, help="open a browser")
    wanted = parser.parse_args()
    try:
        base_map = BaseMap(wanted.base_map, wanted.base_map_credit) if wanted.base_map else None
        return serve(wanted.folders, wanted.host, wanted.port, wanted.browser, wanted.name, base_map)
    except USER_ERRORS as error:
        sys.stderr.write(f"veca: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
