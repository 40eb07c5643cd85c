"""How much memory and work a forward pass needs, from plain numbers. No tensors, no devices."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = 4
"""Bytes of a float32, which everything is counted in: bfloat16 passes need less, never more."""


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """The sizes of a network that its memory depends on."""

    parameters: int
    dim: int
    hidden: int
    layers: int
    patch: int
    bands: int
    classes: int
    widest: float
    """Values per input pixel that the widest layer of stem and head holds at once: its input and the copies that a
    convolution makes of it, its output, and a copy of that for the normalisation behind it."""
    skips: float
    """Values per input pixel of the finer features that wait for the head."""
    operations: float
    """Floating-point operations per input pixel of stem and head."""

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * FLOAT


def forward_bytes(size: NetworkSize, height: int, width: int, batch: int, cores: int) -> int:
    """Peak bytes of one inference pass beyond the weights, for `batch` windows of height x width pixels.

    The largest of three moments: the stem's (or head's) widest layer, the blocks' token work, and the logits at full
    size with their softmax; beside each, the pixels and the finer features that are alive throughout.
    """
    pixels = height * width
    tokens = -(-height // size.patch) * -(-width // size.patch)
    # As floats, without their mean and normalised: each a copy, and freed memory is not given back at once.
    alive = (3 * size.bands + size.skips) * pixels
    # Tokens, their norm, q, k and v, rotated copies of q and k, keys and values joined with the cores'.
    attention = (tokens + cores) * size.dim * 9
    # Tokens, their norm, both halves of the hidden layer and their product.
    feed_forward = (tokens + cores) * (2 * size.dim + 4 * size.hidden)
    logits = 3 * size.classes * pixels
    moment = max(size.widest * pixels, attention, feed_forward, logits)
    return int(batch * (alive + moment) * FLOAT)


def forward_operations(size: NetworkSize, height: int, width: int, cores: int) -> float:
    """Floating-point operations of one inference pass over a window, a multiplication and an addition counted as two.

    A token costs its q, k, v and o products and its feed-forward products; a patch and a core meet twice in each layer,
    each time for the score and for the value.
    """
    patches = -(-height // size.patch) * -(-width // size.patch)
    products = (patches + cores) * (4 * size.dim**2 + 3 * size.dim * size.hidden)
    meetings = (2 * patches * cores + cores**2) * 2 * size.dim
    return size.operations * height * width + 2 * size.layers * (products + meetings)


def stitch_bytes(classes: int, block: int, window: int) -> int:
    """Bytes that stitching needs: sums, weights, validity and labels of a block of so many pixels, and the pixels,
    logits and probabilities of a window of so many."""
    return block * ((classes + 1) * FLOAT + 11) + 3 * classes * FLOAT * window
