"""What training makes small: a weighted sum of torch's cross-entropy and MONAI's Dice, focal and boundary losses."""

from __future__ import annotations

from monai.losses import BoundaryLoss, DiceLoss, FocalLoss
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.config import LossRecipe
from pipelines.scenes import IGNORE


class SegmentationLoss(nn.Module):
    """The sum that a recipe says, blind to ignored pixels. Dice is taken over the whole batch."""

    def __init__(self, classes: int, recipe: LossRecipe | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.weights = recipe or LossRecipe()
        self.dice = DiceLoss(batch=True, smooth_nr=1.0, smooth_dr=1.0)
        self.focal = FocalLoss(use_softmax=True, reduction="none")
        self.boundary = BoundaryLoss()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """A scalar from logits (B, K, H, W) and class indices (B, H, W) with IGNORE."""
        known = target != IGNORE
        total = logits.sum() * 0.0
        if not known.any():
            return total
        weights, mask = self.weights, known.unsqueeze(1)
        hot = F.one_hot(target.where(known, 0), self.classes).permute(0, 3, 1, 2) * mask  # (B, K, H, W)
        if weights.cross_entropy:
            total = total + weights.cross_entropy * F.cross_entropy(logits, target, ignore_index=IGNORE)
        if weights.focal:
            total = total + weights.focal * self.focal(logits, hot).sum() / known.sum()
        if weights.dice or weights.boundary:
            said = logits.softmax(dim=1) * mask
            total = total + weights.dice * self.dice(said, hot)
            if weights.boundary:
                total = total + weights.boundary * self.boundary(said, hot)
        return total
