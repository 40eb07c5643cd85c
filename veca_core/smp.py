"""VECA as an encoder of segmentation-models-pytorch: `register_encoders()`, then smp.Unet("veca_small", ...)."""

from __future__ import annotations

from typing import Any, Final

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn
from torch.nn import functional as F

from veca_core.config import PRESETS, preset
from veca_core.encoder import VecaEncoder
from veca_core.errors import ModelError
from veca_core.stem import build_stem

PREFIX: Final = "veca_"
DEEPEST: Final = 5


class SmpEncoder(nn.Module, EncoderMixin):  # type: ignore[misc]
    """The features that library's decoders ask for: the images, a map for each stride 2, 4, ... below the patch, the
    patches, and for strides beyond the patch their means.

    `cores` may be set at any time: the budget that the next forward pass runs with, None for the whole bank.
    """

    def __init__(self, name: str, stem: str, depth: int = DEEPEST, output_stride: int = 32) -> None:
        nn.Module.__init__(self)
        EncoderMixin.__init__(self)
        if output_stride != 32:
            raise ModelError(
                f"VECA has no dilated stages, and output_stride={output_stride} asks for some: take a decoder that "
                "does not, like Unet, FPN or Segformer"
            )
        self.name, self.stem_name = name, stem
        self._depth = depth
        self.cores: int | None = None
        self.encoder = self._build(3)
        self._describe()
        least = len(self.encoder.stem.skip_channels) + 1
        if depth < least:
            raise ModelError(
                f"VECA's patches lie at depth {least}: with encoder_depth={depth} only its stem would run; "
                f"give {least} to {DEEPEST}"
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        """depth + 1 maps, finest first; sides of `images` (B, bands, H, W) are multiples of 2**depth."""
        tokens = self.encoder(images, self.cores)
        maps = [images, *tokens.skips, tokens.features]
        while len(maps) <= self._depth:
            maps.append(F.avg_pool2d(maps[-1], 2))
        return maps[: self._depth + 1]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Builds the encoder anew for other bands than three; there are no weights to keep yet."""
        if in_channels != self._in_channels:
            assert not pretrained, "no published weights are known under these names"
            self.encoder = self._build(in_channels)
            self._describe()

    def get_stages(self) -> dict[int, Any]:
        """None: nothing here can be dilated."""
        return {}

    def _build(self, in_channels: int) -> VecaEncoder:
        config = preset(self.name, in_channels=in_channels)
        return VecaEncoder(config, build_stem(self.stem_name, config))

    def _describe(self) -> None:
        config, stem = self.encoder.config, self.encoder.stem
        width = config.output_dim or config.dim
        levels = [config.in_channels, *stem.skip_channels, width]
        self._in_channels = config.in_channels
        self._out_channels = levels + [width] * (DEEPEST + 1 - len(levels))


def register_encoders() -> list[str]:
    """Adds veca_tiny, veca_small, ... (the paper's patch embedding) and veca_tiny_lite0, ... (a convolutional stem) to
    the encoders that segmentation-models-pytorch knows; returns their names. Weights start random."""
    added = []
    for name in PRESETS:
        for ending, stem in (("", "patch"), ("_lite0", "tu-tf_efficientnet_lite0")):
            smp.encoders.encoders[f"{PREFIX}{name}{ending}"] = {
                "encoder": SmpEncoder,
                "pretrained_settings": {},
                "params": {"name": name, "stem": stem},
            }
            added.append(f"{PREFIX}{name}{ending}")
    return added
