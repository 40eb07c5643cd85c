"""What each core attends to in one window of an image, as small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.job import Job
from tiling import Box
from veca_core.explain import core_attention


def attention_window(job: Job, centre: tuple[float, float]) -> Box:
    """The window of the plan's size whose middle is nearest to a level-0 (y, x), inside the image where it fits."""
    window, size = job.grid.window, job.view.size
    at = [c / s for c, s in zip(centre, job.view.scale, strict=True)]
    sides, lengths = (window.height, window.width), (size.height, size.width)
    y, x = (max(0, min(round(p - w / 2), n - w)) for p, w, n in zip(at, sides, lengths, strict=True))
    return Box(y, x, window.height, window.width)


def attention_maps(job: Job, window: Box) -> NDArray[np.float32]:
    """(layers, cores, h, w): the share of its attention that each core gives to each patch of a window."""
    network = job.model.network.to(torch.device(job.plan.device))
    means = network.mean.flatten().tolist()
    bands: Sequence[int] = job.bands or range(len(means))
    fill = [means[list(bands).index(i)] for i in range(len(means))]
    pixels, _ = job.view.window(window, fill)
    chosen = np.ascontiguousarray(pixels[..., list(bands)]).astype(np.float32)
    tensor = torch.from_numpy(chosen).permute(2, 0, 1)[None].to(network.mean.device)
    with torch.inference_mode():
        images = (tensor - network.mean) / network.std
        maps: NDArray[np.float32] = core_attention(network.encoder, images, job.plan.cores)[:, 0].cpu().numpy()
    return maps


def write_maps(maps: NDArray[np.float32], path: Path) -> None:
    """As eight-bit pictures (layers, cores, h, w), each from its own least to its own largest value, by a rename."""
    least, largest = maps.min(axis=(2, 3), keepdims=True), maps.max(axis=(2, 3), keepdims=True)
    pictures = np.round((maps - least) / np.maximum(largest - least, 1e-12) * 255).astype(np.uint8)
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.save(file, pictures)
    partial.replace(path)
