"""What training makes small: cross-entropy for every pixel, Dice for every class."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.scenes import IGNORE


class DiceAndCrossEntropy(nn.Module):
    """Cross-entropy plus MONAI's Dice over the batch, both blind to ignored pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.dice = DiceLoss(batch=True, smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """A scalar from logits (B, K, H, W) and class indices (B, H, W) with IGNORE."""
        known = target != IGNORE
        if not known.any():
            return logits.sum() * 0.0
        entropy = F.cross_entropy(logits, target, ignore_index=IGNORE)
        hot = F.one_hot(target.where(known, torch.zeros_like(target)), self.classes).permute(0, 3, 1, 2)
        mask = known.unsqueeze(1)
        dice: Tensor = self.dice(logits.softmax(dim=1) * mask, hot * mask)
        return entropy + dice
