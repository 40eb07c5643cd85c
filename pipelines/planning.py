"""What would be chosen for an image, without running it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.choices import Choice, describe, table
from pipelines.job import Job, Options
from pipelines.planner import Plan
from tiling import open_image
from veca_core import Model


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan among those that were not chosen."""

    chosen: Plan
    choices: tuple[Choice, ...]
    """Cores and windows with their predicted peak, relative time and recorded accuracy; one is the chosen plan."""
    note: str
    """At which pixel size the image will be read."""

    def __str__(self) -> str:
        return "\n".join([self.note, *table(self.choices), describe(self.chosen)])


def plan(image: str | Path | NDArray[np.generic], model: Model, options: Options | None = None) -> Planned:
    """What `segment` would choose for an image (a path, address or array as there), and what else there is.

    Reads headers only (with a time bound also the tissue, and times a window). Raises ImageError, ModelError or
    RequestError where the image cannot be segmented like that.
    """
    options = options or Options()
    source = open_image(image, bands=options.bands, strict=options.strict)
    try:
        # No result lies below a file, so the plan is made for these wishes alone.
        job = Job.prepare(source, model, Path(os.devnull) / "no result", options)
        return Planned(job.plan, tuple(job.choices()), job.view.note)
    finally:
        source.close()
