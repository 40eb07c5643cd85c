"""How sure a model was: probabilities of the classes, their entropy, and how far few and all cores disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.inference import Prediction
from tiling.layers import Layer, entropy, quantised
from veca_core import Model

LAYERS: Final = ("probability", "uncertainty")
"""Exports that need an array beside the labels."""
ROWS: Final = 64
"""Rows of a block that become bytes at once."""


def wanted_layers(model: Model, cores: int, exports: Sequence[str]) -> tuple[Layer, ...]:
    """The arrays that exports need, with what was measured of their calibration."""
    score = model.card.score(cores)
    measured = f"{score.ece:.4f}" if score is not None and score.ece is not None else "not measured"
    about = (("calibration_error", measured), ("calibration_measured_on", model.card.validation), ("cores", str(cores)))
    other = contrast(model, cores)
    sources = [] if other is None else ["disagreement"]
    channels = {"probability": tuple(c.name for c in model.card.classes), "uncertainty": ("entropy", *sources)}
    more = () if other is None else (("disagreement", f"total variation between {cores} and {other} cores"),)
    return tuple(
        Layer(name, channels[name], about + (more if name == "uncertainty" else ()))
        for name in LAYERS
        if name in exports
    )


def contrast(model: Model, cores: int) -> int | None:
    """The budget that is as far as can be from the one in use: the fewest cores, or all; None where there is one."""
    budgets = model.network.encoder.config.budgets
    other = budgets[0] if cores != budgets[0] else budgets[-1]
    return other if other != cores else None


def layer_values(prediction: Prediction, layers: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """The bytes of each layer of one block, (channels, h, w)."""
    if not layers:
        return {}
    seen, more = prediction.seen, len(prediction.stitched.sums) - prediction.classes
    counts = {"probability": prediction.classes, "uncertainty": 1 + more}
    result = {name: np.empty((counts[name], *seen.shape), np.uint8) for name in layers}
    for top in range(0, len(seen), ROWS):
        rows = slice(top, top + ROWS)
        channels = prediction.channels(rows)
        for name, made in result.items():
            made[:, rows] = quantised(_layer(name, channels, prediction.classes), seen[rows])
    return result


def _layer(name: str, channels: NDArray[np.float32], classes: int) -> NDArray[np.float32]:
    """A layer of some rows, as numbers 0..1."""
    if name == "probability":
        return channels[:classes]
    return np.concatenate([entropy(channels[:classes])[None], channels[classes:]])


def planned_classes(classes: int, exports: Sequence[str]) -> int:
    """What planning counts for a run that keeps layers: the disagreement is stitched like another class, and a block's
    layers are bytes, a quarter of what is stitched."""
    probability, uncertainty = (name in exports for name in LAYERS)
    kept = classes * probability + 2 * uncertainty
    return classes + uncertainty + -(-kept // 4)
