"""How fast a whole image is segmented, in proportion to the bare network on the same windows, in one run.

    python tests/benchmarks/test_pipeline_speed.py --model nuclei --side 4096

Reading, decoding, stitching and writing go on beside the network: they should cost at most a tenth of its time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pipeline import write_slide

from pipelines import Options, segment
from pipelines.inference import autocast
from pipelines.job import Job
from tiling import open_image
from veca_core import load_model


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds for the windows of an image."""

    bare: float
    """The network alone, its windows in memory already."""
    whole: float
    """From the file to published labels on disk, with their pyramid."""
    shares: dict[str, float]

    @property
    def ratio(self) -> float:
        """Pixels per second end to end, in proportion to the bare network's."""
        return self.bare / self.whole


def speed(folder: Path, model: str, side: int, repeats: int) -> Speed:
    """The fastest of some repeats of each, in turn."""
    image, used = write_slide(folder / f"{side}.tif", side), load_model(model)
    options = Options(device="cpu", spacing="native", tissue=False, exports=(), overwrite=True)
    with open_image(image) as source:  # type: ignore[attr-defined]
        job = Job.prepare(source, used, folder / "out", options)
        windows = list(job.grid)
        pixels = [np.moveaxis(job.view.window(window)[0], -1, 0)[None] for window in windows[:4]]
    tensors = [torch.from_numpy(np.ascontiguousarray(one)) for one in pixels]
    bare, whole, shares = float("inf"), float("inf"), dict[str, float]()
    for _ in range(repeats):
        started = time.perf_counter()
        with torch.inference_mode(), autocast(torch.device("cpu"), getattr(torch, job.plan.precision)):
            for number in range(len(windows)):
                used.network(tensors[number % len(tensors)], job.plan.cores)
        bare = min(bare, time.perf_counter() - started)
        run = segment(image, used, folder / "out", options).run
        if run.seconds["predict"] < whole:
            whole, shares = run.seconds["predict"], run.shares
    return Speed(bare, whole, shares)


def test_print_the_speed_of_the_whole_in_proportion_to_the_network_s(tmp_path: Path) -> None:
    found = speed(tmp_path, "nuclei", 1024, repeats=1)
    sys.stdout.write(f"\n{found}: {found.ratio:.0%}\n")
    assert found.shares.keys() == {"read", "compute", "write"}
    assert found.shares["compute"] > found.shares["read"], "the network waits for pixels less than it computes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = speed(Path(folder), given.model, given.side, given.repeats)
    sys.stdout.write(f"bare {found.bare:.2f} s, whole {found.whole:.2f} s: {found.ratio:.1%}; shares {found.shares}\n")


if __name__ == "__main__":
    main()
