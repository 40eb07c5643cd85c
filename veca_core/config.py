"""The sizes of the network, and the published presets. Plain numbers; everything else is built from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from veca_core.errors import ModelError


@dataclass(frozen=True, slots=True)
class VecaConfig:
    """A VECA encoder: L pre-norm blocks on N patch tokens and a bank of M ordered core tokens, all of width D."""

    dim: int
    """D, the width of a token."""
    layers: int
    """L, the number of blocks."""
    heads: int
    mlp_ratio: float = 2.66667
    """The hidden width of the feed-forward part is int(dim * mlp_ratio)."""
    patch: int = 16
    """Side of a patch in pixels."""
    in_channels: int = 3
    cores: int = 64
    """M, the size of the core bank."""
    core_chunk: int = 8
    """Budgets are multiples of this."""
    budget_weights: tuple[int, ...] = (1, 1, 2, 2, 3, 3, 4, 4)
    """How often training draws each multiple of `core_chunk`, smallest first; cut to the bank's length."""
    patch_norm: bool = False
    """A LayerNorm after the patch embedding (off in the paper)."""
    output_dim: int | None = None
    """Width of the linear output projection; None for no projection."""
    rope_off: float = 0.125
    """Share of rotary frequencies that are switched off (given an infinite period)."""
    rope_off_from: Literal["low", "high"] = "low"
    """Which end of the frequencies is switched off."""
    rope_shift: float = 0.08
    """Training: patch coordinates are shifted by up to this much."""
    rope_rescale: float = 2.0
    """Training: patch coordinates are scaled log-uniformly between 1/this and this."""

    def __post_init__(self) -> None:
        counts = ("dim", "heads", "patch", "in_channels", "cores", "core_chunk")
        for name in (*counts, *(() if self.output_dim is None else ("output_dim",))):
            if type(getattr(self, name)) is not int or getattr(self, name) <= 0:
                raise ModelError(f"{name} must be a positive whole number, got {getattr(self, name)!r}")
        if type(self.layers) is not int or self.layers < 0:
            raise ModelError(f"layers must be a whole number, 0 for no blocks at all, got {self.layers!r}")
        if self.dim % self.heads or (self.dim // self.heads) % 4:
            raise ModelError(f"a head's width must be a multiple of 4, got dim {self.dim} over {self.heads} heads")
        if self.cores % self.core_chunk:
            raise ModelError(f"cores come in chunks of {self.core_chunk}, got a bank of {self.cores}")
        if self.hidden <= 0 or not 0 <= self.rope_off <= 1 or self.rope_rescale < 1:
            raise ModelError(
                "mlp_ratio must be positive, rope_off from 0 to 1 and rope_rescale at least 1, got "
                f"{self.mlp_ratio}, {self.rope_off} and {self.rope_rescale}"
            )
        if self.rope_off_from not in ("low", "high"):
            raise ModelError(f"rope_off_from must be low or high, got {self.rope_off_from!r}")
        if not self.budget_weights or min(self.budget_weights) < 0 or sum(self.draw_weights) <= 0:
            raise ModelError(f"budget_weights must be positive numbers, got {self.budget_weights}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        """Hidden width of the SwiGLU feed-forward part."""
        return int(self.dim * self.mlp_ratio)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Every number of cores the encoder can run with."""
        return tuple(range(self.core_chunk, self.cores + 1, self.core_chunk))

    @property
    def draw_weights(self) -> tuple[int, ...]:
        """A weight for each of `budgets`; a bank longer than the weights repeats the last one."""
        short = len(self.budgets) - len(self.budget_weights)
        return (self.budget_weights + self.budget_weights[-1:] * max(short, 0))[: len(self.budgets)]

    def check_budget(self, cores: int | None) -> int:
        """The number of active cores: `cores`, or the whole bank for None; raises ModelError for another number."""
        if cores is None:
            return self.cores
        if cores not in self.budgets:
            known = f"a multiple of {self.core_chunk} from {self.core_chunk} to {self.cores}"
            raise ModelError(f"this model cannot run with {cores} cores; ask for {known}")
        return cores


PRESETS: Final[dict[str, VecaConfig]] = {
    "tiny": VecaConfig(dim=192, layers=6, heads=3),
    "small": VecaConfig(dim=384, layers=12, heads=6),
    "splus": VecaConfig(dim=384, layers=12, heads=6, mlp_ratio=4.0),
    "base": VecaConfig(dim=768, layers=12, heads=12),
    "large": VecaConfig(dim=1024, layers=24, heads=16),
}
"""arXiv 2605.12491, all but `tiny`, which is ours: what two CPU cores train in an hour and run at interactive speed."""


def preset(name: str, **changes: Any) -> VecaConfig:
    """A preset by name, with fields changed; raises ModelError for an unknown one."""
    if name not in PRESETS:
        raise ModelError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
