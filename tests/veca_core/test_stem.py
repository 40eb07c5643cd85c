"""Convolutional stems: what a deep one adds, and what it leaves as it was."""

from __future__ import annotations

import pytest
import torch
from networks import LITE, TINY, card, network

from veca_core import ModelError, VecaConfig, VecaEncoder, build
from veca_core.stem import ConvStem, build_stem


def stems(patch: int = 16) -> tuple[ConvStem, ConvStem]:
    """A plain stem, and a deep one with the same weights where both have them."""
    torch.manual_seed(0)
    config = VecaConfig(**TINY, patch=patch)
    plain, deep = ConvStem(config, LITE).eval(), ConvStem(config, LITE, deep=True).eval()
    deep.load_state_dict(plain.state_dict(), strict=False)
    return plain, deep


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (64, 32)])
@pytest.mark.parametrize("patch", [4, 16, 32])
def test_a_deep_stem_has_the_tokens_and_skips_of_the_plain_one_and_more_in_them(
    patch: int, height: int, width: int
) -> None:
    images = torch.randn(2, 3, height + -height % patch, width + -width % patch)
    plain, deep = stems(patch)
    with torch.no_grad():
        ours, theirs = deep(images), plain(images)
        assert ours.tokens.shape == theirs.tokens.shape
        assert ours.grid == theirs.grid
        assert [s.shape for s in ours.skips] == [s.shape for s in theirs.skips]
        for project in deep.deeper:
            torch.nn.init.zeros_(project.weight)
        if all(side % 32 == 0 for side in images.shape[2:]):
            torch.testing.assert_close(deep(images).tokens, theirs.tokens)
    assert torch.equal(ours.tokens, theirs.tokens) == (patch == 32)


def test_a_deep_model_takes_any_size() -> None:
    described = card(LITE, "unet")
    architecture = described.architecture.model_copy(update={"deep": True})
    segmenter = build(architecture, described.bands, 4).eval()
    with torch.no_grad():
        for height, width in ((1, 1), (17, 33), (40, 100)):
            assert segmenter(torch.zeros(1, 3, height, width)).shape == (1, 4, height, width)


def test_a_model_without_blocks_is_its_stem_and_head() -> None:
    segmenter = network(card(LITE, "unet", layers=0))
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(segmenter(pixels, 8), segmenter(pixels, 24))


def test_the_patch_embedding_has_no_deeper_stages() -> None:
    with pytest.raises(ModelError, match="the stem 'patch' has no deeper stages"):
        build_stem("patch", VecaConfig(**TINY), deep=True)


@pytest.mark.parametrize("patch", [6, 10, 14, 16])
def test_patches_of_any_size_are_the_same_with_gradients_and_without(patch: int) -> None:
    torch.manual_seed(0)
    encoder = VecaEncoder(VecaConfig(**{**TINY, "patch": patch})).eval()
    images = torch.randn(1, 3, 3 * patch, 5 * patch)
    learned = encoder(images)
    with torch.no_grad():
        inferred = encoder(images)
    torch.testing.assert_close(inferred.features, learned.features, atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(inferred.skips, learned.skips, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", [LITE, "resnet18", "mobilenet_v2"])
def test_what_a_stem_does_not_use_of_its_encoder_does_not_learn(name: str) -> None:
    stem = ConvStem(VecaConfig(**TINY), name)
    found = stem(torch.randn(2, 3, 64, 64))
    (found.tokens.sum() + sum(skip.sum() for skip in found.skips)).backward()
    assert not [n for n, weight in stem.named_parameters() if weight.requires_grad and weight.grad is None]
    assert stem.training
