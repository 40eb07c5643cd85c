"""From tokens to logits: the paper's linear head, and a U-Net decoder that draws sharp edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from veca_core.encoder import Tokens
from veca_core.errors import ModelError
from veca_core.stem import Stem


class LinearHead(nn.Module):
    """A normalised linear map of each patch (the paper's dense probe): logits at the patch grid."""

    reads_skips: Final = False

    def __init__(self, dim: int, classes: int, stem: Stem) -> None:  # noqa: ARG002 - every head is built alike
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.classify = nn.Conv2d(dim, classes, 1)

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, classes, h, w)."""
        logits: Tensor = self.classify(self.norm(tokens.features))
        return logits


class UnetHead(nn.Module):
    """segmentation-models-pytorch's U-Net decoder over the patches and the stem's finer features, up to stride 2."""

    reads_skips: Final = True
    WIDTHS: Final = (96, 64, 32, 16)

    def __init__(self, dim: int, classes: int, stem: Stem) -> None:
        super().__init__()
        steps = len(stem.skip_channels)
        if not 1 <= steps <= len(self.WIDTHS):
            raise ModelError(f"the head 'unet' needs a patch of 4 to 32 px, got one with {steps} finer levels below it")
        widths = self.WIDTHS[:steps]
        self.decoder = UnetDecoder(
            # The decoder drops the first entry (the image itself) and reads the rest from fine to coarse.
            encoder_channels=(stem.skip_channels[0], *stem.skip_channels, dim),
            decoder_channels=widths,
            n_blocks=steps,
        )
        self.classify = nn.Conv2d(widths[-1], classes, 3, padding=1)

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, classes, H / 2, W / 2)."""
        features = [tokens.skips[0], *tokens.skips, tokens.features]
        logits: Tensor = self.classify(self.decoder(features))
        return logits


Head = LinearHead | UnetHead
HEADS: Final[dict[str, Callable[[int, int, Stem], Head]]] = {"linear": LinearHead, "unet": UnetHead}
