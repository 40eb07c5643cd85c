"""How fast a whole image is segmented, in proportion to the bare network on the same windows, in one run.

    python tests/benchmarks/test_pipeline_speed.py --model nuclei

Reading, decoding, stitching and writing go on beside the network: they should cost at most a tenth of its time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from veca_core import load_model  # isort: skip - says how torch's threads wait, before torch
import numpy as np
import torch
from pipeline import write_slide

from pipelines import Options, segment
from pipelines.inference import autocast
from pipelines.job import Job
from tiling import open_image


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds for the windows of an image, in each repeat."""

    bare: list[float]
    """The network alone, its windows in memory already."""
    whole: list[float]
    """From the file to published labels on disk, with their pyramid."""
    work: list[float]
    """Processor time of the bare network, in proportion to that of the whole."""
    shares: dict[str, float]
    """Of the last repeat."""

    @property
    def ratios(self) -> list[float]:
        """Pixels per second end to end, in proportion to the bare network's just before: from least to most."""
        return sorted(bare / whole for bare, whole in zip(self.bare, self.whole, strict=True))

    def __str__(self) -> str:
        bare, whole, ratio = (statistics.median(found) for found in (self.bare, self.whole, self.ratios))
        spread = f"{self.ratios[0]:.1%} to {self.ratios[-1]:.1%} in {len(self.ratios)} repeats"
        work = f"of processor time {statistics.median(self.work):.1%}"
        return f"bare {bare:.2f} s, whole {whole:.2f} s (medians): {ratio:.1%} ({spread}), {work}; shares {self.shares}"


def speed(folder: Path, model: str, side: int, repeats: int) -> Speed:
    """Some repeats of each, in turn: a busy moment of a shared machine meets one pair of them."""
    image, used = write_slide(folder / f"{side}.tif", side), load_model(model)
    options = Options(device="cpu", spacing="native", tissue=False, exports=(), overwrite=True)
    with open_image(image) as source:  # type: ignore[attr-defined]
        job = Job.prepare(source, used, folder / "out", options)
        windows = list(job.grid)
        pixels = [np.moveaxis(job.view.window(window)[0], -1, 0)[None] for window in windows[:4]]
    tensors = [torch.from_numpy(np.ascontiguousarray(one)) for one in pixels]
    found = Speed([], [], [], {})
    for _ in range(repeats):
        started, work = time.perf_counter(), time.process_time()
        with torch.inference_mode(), autocast(torch.device("cpu"), getattr(torch, job.plan.precision)):
            for number in range(len(windows)):
                used.network(tensors[number % len(tensors)], job.plan.cores)
        found.bare.append(time.perf_counter() - started)
        work, started_whole = time.process_time() - work, time.process_time()
        run = segment(image, used, folder / "out", options).run
        found.work.append(work / (time.process_time() - started_whole))
        found.whole.append(run.seconds["predict"])
        found.shares.update(run.shares)
    return found


def test_print_the_speed_of_the_whole_in_proportion_to_the_network_s(tmp_path: Path) -> None:
    found = speed(tmp_path, "nuclei", 1024, repeats=1)
    sys.stdout.write(f"\n{found}\n")
    assert found.shares.keys() == {"read", "compute", "write"}
    assert found.shares["compute"] > found.shares["read"], "the network waits for pixels less than it computes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--side", type=int, default=2560)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = speed(Path(folder), given.model, given.side, given.repeats)
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
