"""How much memory and work a forward pass needs, from plain numbers. No tensors, no devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from veca_core.heap import HEAPED, HOLES

FLOAT = 4
"""Bytes of a float32, which everything is counted in: bfloat16 passes need less, never more."""


ATTENTIONS: Final = ("stored", "fused", "plain", "fused on a CPU")
"""How the patches' attention is computed: with stored scores (few cores on a CPU), by a fused kernel that stores none,
or by scaled_dot_product_attention's plain rendering, which computes in float32 and stores them."""
CPU_ATTENTIONS: Final = ("stored", "fused on a CPU")
RESIDENT: Final = 24 * 2**20
"""Bytes that a process on a CPU holds beside its tensors: compiled kernels, scratch space, what was freed."""


@dataclass(frozen=True, slots=True)
class Around:
    """What is taken (positive) and given back around the encoder's blocks, in order: bytes per input pixel."""

    stem: tuple[float, ...]
    """From raw pixels to tokens and finer features, which stay."""
    head: tuple[float, ...]
    """From there to logits at full size, which stay alone."""


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """The sizes of a network that its memory depends on."""

    parameters: int
    dim: int
    hidden: int
    heads: int
    layers: int
    patch: int
    bands: int
    classes: int
    around: Mapping[tuple[int, bool], Around] = field(repr=False)
    """For 4 and 2 bytes a number, on a CPU (True) and elsewhere."""
    operations: float
    """Floating-point operations per input pixel of stem and head."""
    embeds: bool
    """Whether patches are embedded a band of rows at a time, and not by a convolutional stem."""

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * FLOAT

    def prepared(self, dtype: int) -> int:
        """Bytes of the blocks' weights as they are prepared for products of a number type, beside the weights."""
        return self._in_blocks * dtype

    def cast(self, dtype: int) -> int:
        """Bytes of the other weights as autocast keeps them during a pass in another number type than their own."""
        return (self.parameters - self._in_blocks) * dtype if dtype != FLOAT else 0

    @property
    def _in_blocks(self) -> int:
        """Weights that are matrices of the blocks."""
        return self.layers * (4 * self.dim**2 + 3 * self.dim * self.hidden)


def encoder_bytes(
    tokens: int,
    dim: int,
    hidden: int,
    heads: int,
    cores: int,
    batch: int = 1,
    chunk: int = 2048,
    dtype: int = FLOAT,
    attention: str = "stored",
    values: int = 0,
    state: int = FLOAT,
) -> int:
    """Peak bytes of one inference pass of the encoder beyond images and weights, for `batch` images of N `tokens`.

    `dtype` and `state` are the bytes of the number types that are multiplied and added up; `values` is what a patch
    reads (bands * patch * patch) where patches are embedded in bands of rows, 0 where a convolutional stem does it. The
    number of layers does not matter: a layer leaves nothing behind. The token state is alive throughout; beside it the
    largest of some moments: embedding a band, making the table of rotations, and a chunk's attention and feed-forward.
    """
    assert attention in ATTENTIONS, attention
    n = min(max(batch, chunk // batch * batch), tokens * batch)  # tokens of a chunk, over the batch
    table = tokens * dim // heads * dtype
    copied = state if dtype != state else 0  # of the normalised tokens, before they become what is multiplied
    # The band's pixels as floats; beside them a rounded copy, and what comes of the product.
    embed = n * (values * (FLOAT + (dtype if dtype != FLOAT else 0)) + dim * dtype)
    embed *= values > 0
    rotate = n * dim * 5 * dtype
    scores = n * heads * cores
    meet = n * dim * 3 * dtype + _attention_bytes(attention, n * dim, scores, dtype)
    if attention == "stored" and batch > 1:
        meet += n * dim * 2 * dtype  # products want the heads of all images side by side
    feed = n * (dim * dtype + 2 * hidden * dtype) + n * dim * copied
    rotations = max(tokens * dim // heads // 2 * FLOAT * 3, tokens * dim // heads * FLOAT + table)
    core_work = batch * cores * (10 * dim + 2 * hidden) * dtype
    left = table if attention in CPU_ATTENTIONS else 0  # on the heap, of what the table was made from
    chunked = table + left + core_work + max(rotate, meet, feed, n * dim * (copied + dtype))
    return int(batch * tokens * dim * state + max(embed, rotations, chunked))


def _attention_bytes(attention: str, width: int, scores: int, dtype: int) -> int:
    """What a chunk's attention holds at most beside its queries, keys and values, which have `width` numbers each."""
    # A sum in float32 makes a copy first where the device is a CPU.
    summed = scores * FLOAT if dtype != FLOAT else 0
    if attention == "stored":
        return width * dtype + 2 * scores * dtype + max(scores * dtype, summed)
    fold = width * dtype + scores * dtype
    if attention == "fused on a CPU":
        return fold + summed + width * dtype  # the kernel's own copy
    if attention == "fused":
        return fold
    # Plain: queries and their scaled copy, scores and their softmax, and the result, all in float32.
    if dtype == FLOAT:
        return max(fold, width * FLOAT + 2 * scores * FLOAT)
    copies = 2 * width * FLOAT
    return max(fold, copies + 2 * scores * FLOAT, copies + width * (FLOAT + dtype) + scores * (FLOAT + dtype))


def forward_bytes(
    size: NetworkSize,
    height: int,
    width: int,
    batch: int,
    cores: int,
    chunk: int = 2048,
    dtype: int = FLOAT,
    attention: str = "stored",
) -> int:
    """Peak bytes of one inference pass beyond weights and pixels, for `batch` windows of height x width pixels.

    Follows what is taken and given back: by the stem, by the encoder beside the finer features that wait, by the head,
    and for the softmax of the logits at full size.
    """
    pixels = batch * height * width
    tokens = -(-height // size.patch) * -(-width // size.patch)
    on_cpu = attention in CPU_ATTENTIONS
    pool = Pool(HEAPED if on_cpu else 0)
    encoder = encoder_bytes(
        tokens, size.dim, size.hidden, size.heads, cores, batch, chunk, dtype, attention,
        values=size.bands * size.patch**2 if size.embeds else 0,
    )  # fmt: skip
    around = size.around[dtype, on_cpu]
    work = encoder - batch * tokens * size.dim * FLOAT  # the state is one of the steps
    shares = size.classes * pixels * FLOAT
    for _ in range(2):  # the second pass finds the heap as the first one left it
        pool.empty()
        pool.follow(around.stem, pixels)
        for part in (work, -work):
            pool.change(part, heaped=True)
        pool.follow(around.head, pixels)
        pool.change(shares)
    return int(size.cast(dtype) + pool.peak)


class Pool:
    """A process's memory as an allocator keeps it: the heap does not shrink, and large blocks come and go."""

    def __init__(self, heaped: int) -> None:
        """Blocks of `heaped` bytes or fewer come from the heap; 0 where there is none."""
        self.heaped = heaped
        self.heap = self.high = self.large = self.peak = 0.0

    def empty(self) -> None:
        """All is given back."""
        self.heap = self.large = 0.0

    def follow(self, steps: Iterable[float], pixels: int) -> None:
        """Steps in bytes per pixel, for so many."""
        for step in steps:
            self.change(step * pixels)

    def change(self, size: float, heaped: bool = False) -> None:
        """Takes a block, or gives it back where `size` is negative."""
        if self.heaped and (heaped or abs(size) <= self.heaped):
            self.heap += size
            self.high = max(self.high, self.heap)
        else:
            self.large += size
        self.peak = max(self.peak, HOLES * self.high + self.large)


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
