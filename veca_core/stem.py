"""From pixels to patch tokens: the paper's patch embedding, or a convolutional stem with finer features beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import segmentation_models_pytorch as smp
import torch
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn
from torch.nn import functional as F

from veca_core.config import VecaConfig
from veca_core.errors import ModelError
from veca_core.prepared import Product, product_type

DEEPEST: Final = 5
"""Stages of the encoders that stems are made of: the last one has stride 32."""


Scale = tuple[Tensor, Tensor]
"""Mean and deviation of each band, (1, bands, 1, 1): pixels become (pixels - mean) / deviation."""


@dataclass(frozen=True, slots=True)
class Stemmed:
    """What a stem makes of images whose sides are multiples of the patch."""

    tokens: Tensor
    """(B, N, D), row by row."""
    grid: tuple[int, int]
    """(h, w) with N = h * w."""
    skips: tuple[Tensor, ...]
    """Finer feature maps (B, c_i, H / s_i, W / s_i), finest first, for decoders that draw sharp edges."""


class PatchEmbed(nn.Module):
    """The paper's embedding: a convolution whose kernel and stride are the patch. Its skips are the pixels themselves,
    averaged to strides 2, 4, ... below the patch."""

    def __init__(self, config: VecaConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.dim, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.dim) if config.patch_norm else nn.Identity()
        self.strides = tuple(2**i for i in range(1, int(math.log2(config.patch))) if config.patch % 2**i == 0)
        self.skip_channels = (config.in_channels,) * len(self.strides)

    def forward(self, images: Tensor, scale: Scale | None = None, skips: bool = True, chunk: int = 2048) -> Stemmed:
        """Images are normalised already, or raw with the `scale` that does it; `skips` says whether to make those."""
        if torch.is_grad_enabled():
            images = normalised(images, scale)
            features = self.proj(images)  # (B, D, h, w)
            tokens = self.norm(features.flatten(2).transpose(1, 2))
            pooled = tuple(F.avg_pool2d(images, stride) for stride in self.strides) if skips else ()
            return Stemmed(tokens, (features.shape[2], features.shape[3]), pooled)
        return self._by_bands(images, scale, skips, chunk)

    def _by_bands(self, images: Tensor, scale: Scale | None, skips: bool, chunk: int) -> Stemmed:
        """The same as one matrix product for each band of about `chunk` patches: no copy of the whole image is made.

        Pixels go straight into the order of the product, and are normalised there. On an AVX-512 BF16 CPU it takes an
        eighth of the convolution's time; one buffer for all bands leaves an allocator nothing to lose.
        """
        batch, bands, height, width = images.shape
        side, weight = self.proj.kernel_size[0], self.proj.weight
        assert self.proj.bias is not None
        rows, columns = height // side, width // side
        embed = Product(weight.flatten(1), self.proj.bias, product_type(weight))
        tokens = weight.new_empty(batch, rows, columns, len(weight))
        strides = self.strides if skips else ()
        finer = [weight.new_empty(batch, bands, height // s, width // s) for s in strides]
        step = min(max(1, chunk // (batch * columns)), rows)
        shape = (batch, step, columns, bands, side, side)
        squares = images.new_empty(shape, dtype=images.dtype if scale is None else torch.float32)
        for top in range(0, rows, step):
            band = torch.unflatten(images[:, :, top * side : (top + step) * side], 3, (columns, side))
            band = torch.unflatten(band, 2, (-1, side))
            part = squares[:, : band.shape[2]].copy_(band.permute(0, 2, 4, 1, 3, 5))
            if scale is not None:
                part.sub_(scale[0].view(bands, 1, 1)).div_(scale[1].view(bands, 1, 1))
            count = part.shape[1]
            # In one expression: the copy in the product's number type is gone before the next one is made.
            embedded = self.norm(embed(part.reshape(-1, bands * side**2).to(embed.bias.dtype)))
            tokens[:, top : top + count] = embedded.view(batch, count, columns, -1)
            del embedded
            for level, stride in zip(finer, strides, strict=True):
                start = top * side // stride
                level[:, :, start : start + count * side // stride] = _averaged(part, stride)
        return Stemmed(tokens.flatten(1, 2), (rows, columns), tuple(finer))


def _averaged(squares: Tensor, stride: int) -> Tensor:
    """(B, n, w, bands, side, side) -> averages over squares of stride^2 pixels, (B, bands, n * side / stride, ...)."""
    cells = torch.unflatten(F.avg_pool2d(squares.flatten(0, 2), stride), 0, squares.shape[:3])
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class ConvStem(nn.Module):
    """A segmentation-models-pytorch encoder down to the patch's stride, then a 1 x 1 convolution to the token width.

    `name` is any encoder that library knows ('tu-tf_efficientnet_lite0', 'resnet18' ...). A `deep` stem goes on to the
    encoder's last stage, stride 32, and adds what it finds there to the tokens of the finer patch. Weights start
    random; pretrained ones are loaded into `body` by whoever trains.
    """

    def __init__(self, config: VecaConfig, name: str, deep: bool = False) -> None:
        super().__init__()
        level = int(math.log2(config.patch))
        if 2**level != config.patch or not 2 <= level <= DEEPEST:
            raise ModelError(f"a convolutional stem needs a patch of 4, 8, 16 or 32 px, got {config.patch}")
        depth = DEEPEST if deep else level
        self.body = _smp_encoder(name, config.in_channels, depth)
        channels = [int(c) for c in self.body.out_channels]
        if len(channels) != depth + 1:
            raise ModelError(f"the stem {name!r} has {len(channels) - 1} stages; {depth} are needed")
        self.proj = nn.Conv2d(channels[level], config.dim, 1)
        self.deeper = nn.ModuleList(nn.Conv2d(c, config.dim, 1, bias=False) for c in channels[level + 1 :])
        self.norm = nn.LayerNorm(config.dim) if config.patch_norm else nn.Identity()
        self.strides = tuple(2**i for i in range(1, level))
        self.skip_channels = tuple(channels[1:level])

    def forward(self, images: Tensor, scale: Scale | None = None, skips: bool = True, chunk: int = 0) -> Stemmed:  # noqa: ARG002
        """Images are normalised already, or raw with the `scale` that does it. It makes its `skips` on its way."""
        images = normalised(images, scale)
        level = len(self.strides) + 1
        maps = self.body(pad_to_patch(images, 2 ** (level + len(self.deeper))))
        height, width = images.shape[2] >> level, images.shape[3] >> level
        features = self.proj(maps[level][..., :height, :width])  # (B, D, h, w)
        for project, deep in zip(self.deeper, maps[level + 1 :], strict=True):
            features = (
                features
                + F.interpolate(project(deep), scale_factor=maps[level].shape[2] // deep.shape[2], mode="bilinear")[
                    ..., :height, :width
                ]
            )
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        finer = tuple(
            m[..., : images.shape[2] // s, : images.shape[3] // s]
            for m, s in zip(maps[1:level], self.strides, strict=True)
        )
        return Stemmed(tokens, (height, width), finer)


Stem = PatchEmbed | ConvStem


def build_stem(name: str, config: VecaConfig, deep: bool = False) -> Stem:
    """'patch' for the paper's embedding, else the name of a convolutional encoder, `deep` or down to the patch only."""
    if name == "patch" and deep:
        raise ModelError("the stem 'patch' has no deeper stages; leave 'deep' out, or name a convolutional stem")
    return PatchEmbed(config) if name == "patch" else ConvStem(config, name, deep)


def normalised(pixels: Tensor, scale: Scale | None) -> Tensor:
    """(pixels - mean) / deviation as floats, where there is a scale."""
    return pixels if scale is None else (pixels.float() - scale[0]) / scale[1]


def pad_to_patch(images: Tensor, patch: int) -> Tensor:
    """Repeats the last row and column of (B, C, H, W) until both sides are multiples of the patch."""
    down, right = -images.shape[-2] % patch, -images.shape[-1] % patch
    if not (down or right):
        return images
    rows = torch.arange(images.shape[-2] + down, device=images.device).clamp(max=images.shape[-2] - 1)
    columns = torch.arange(images.shape[-1] + right, device=images.device).clamp(max=images.shape[-1] - 1)
    return images[..., rows[:, None], columns]


def _smp_encoder(name: str, in_channels: int, depth: int) -> Any:
    try:
        body = smp.encoders.get_encoder(name, in_channels=in_channels, depth=depth, weights=None)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"the stem {name!r} is no encoder of segmentation-models-pytorch or timm") from error
    if isinstance(getattr(body, "model", None), EfficientNetFeatures):
        # timm keeps, and computes, the stages behind the last one that is asked for.
        last = max(body.model._stage_out_idx)
        del body.model.blocks[last:]
    else:
        _freeze_idle(body, in_channels)
    return body


def _freeze_idle(body: nn.Module, in_channels: int) -> None:
    """Freezes the weights of an encoder that no map depends on: other libraries keep the stages behind the last one."""
    training, side = body.training, 2**DEEPEST
    weights = [weight for weight in body.parameters() if weight.requires_grad]
    try:
        with torch.enable_grad():
            maps = body.eval()(torch.zeros(1, in_channels, side, 2 * side))
            reached = sum(found.sum() for found in maps if found.requires_grad)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError("this stem takes images of one size only; choose a convolutional one") from error
    gradients = torch.autograd.grad(reached, weights, allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)
    body.train(training)
