"""Segments an image again and again, each time in a forked child that may be killed: libraries are loaded only once.

Reads a folder for the results a line from stdin, and behind a tab the name of an export at which the child kills
itself, if it is to; answers with the child's process id, then with 'ended'.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from places import PlaceModel, model
from torch import Tensor

import pipelines.planner
import pipelines.segmentation
from pipelines import Options, segment
from tiling.exports import EXPORTS


class Slow(PlaceModel):
    """Takes its time, so that there is something to interrupt."""

    def forward(self, pixels: Tensor, cores: int | None = None, chunk: int | None = None) -> Tensor:
        time.sleep(0.005)
        return super().forward(pixels, cores, chunk)


def die(*_: Any) -> Any:
    """An export that does not survive its first step."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(image: Path) -> None:
    pipelines.planner.BLOCKS, pipelines.segmentation.CHUNK = (64,), 32
    used = model(2)
    used.network.__class__ = Slow
    for line in sys.stdin:
        place, _, deadly = line.rstrip("\n").partition("\t")
        out, child = Path(place), os.fork()
        if child == 0:
            if deadly:
                EXPORTS[deadly] = die
            options = Options(device="cpu", tissue=False, exports=("mask", "areas"), overlap=8)
            run = segment(image, used, out, options).run
            said = {"resumed": run.resumed_blocks, "blocks": run.blocks}
            (out / "said.json").write_text(json.dumps(said), encoding="utf-8")
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        os.waitpid(child, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
