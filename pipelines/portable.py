"""A model as a file for other runtimes: ONNX, or torch.export. Raw pixels in, class probabilities out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import RequestError
from pipelines.progress import Report, quiet
from tiling.exports.files import replacing
from veca_core import Model, Segmenter
from veca_core.encoder import Tokens
from veca_core.streaming import default_chunk

OPSET: Final = 18
FORMATS: Final = {"onnx": ".onnx", "torch-export": ".pt2"}
"""Formats and the endings of their files."""
_EXAMPLE: Final = (2, 50, 90)
"""Batch, height and width that the network is traced with; every other size runs too."""


class Portable(nn.Module):
    """The network with one budget of cores, written so that batch, height and width stay open."""

    def __init__(self, network: Segmenter, cores: int) -> None:
        super().__init__()
        self.network = network
        self.cores = cores

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw pixels (B, bands, H, W) float32 -> probabilities (B, classes, H, W), for any H, W >= 1."""
        encoder, head = self.network.encoder, self.network.head
        patch = encoder.config.patch
        height, width = pixels.shape[-2:]
        h, w = (height + patch - 1) // patch, (width + patch - 1) // patch
        images = (pixels - self.network.mean) / self.network.std
        images = _repeated(_repeated(images, 2, height, h * patch), 3, width, w * patch)
        stemmed = encoder.stem(images, None, head.reads_skips, default_chunk("cpu"))
        cores, patches = encoder.run(stemmed.tokens, (h, w), self.cores, 0)
        logits = head(Tokens(cores, patches, (h, w), stemmed.skips))
        logits = F.interpolate(logits, size=(h * patch, w * patch), mode="bilinear", align_corners=False)
        cropped = _repeated(_repeated(logits, 2, height, height), 3, width, width)  # a slice would ask if it cuts
        return cropped.softmax(dim=1)


def export_model(
    model: Model,
    out: Path,
    *,
    format: str = "onnx",  # noqa: A002 - the word people know
    cores: Sequence[int] | None = None,
    report: Report = quiet,
) -> list[Path]:
    """Writes `<name>-<cores>-cores.onnx` or `.pt2` into `out` for each budget, the largest alone unless given.

    A file holds its weights, the normalisation, and as metadata the classes, their colours and values, bands, spacing
    and window. Raises RequestError for a format that does not exist or what its tools cannot express.
    """
    check_format(format)
    config = model.network.encoder.config
    budgets = [config.check_budget(budget) for budget in cores or [config.cores]]
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for budget in budgets:
        path = out / f"{model.card.name}-{budget}-cores{FORMATS[format]}"
        with replacing(path) as temporary:
            (_write_onnx if format == "onnx" else _write_torch)(model, budget, temporary)
        paths.append(path)
        report(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return paths


def check_format(name: str) -> None:
    """Raises RequestError for a format that does not exist, or whose tools are not installed."""
    if name not in FORMATS:
        raise RequestError(f"there is no format {name!r}; the formats are {', '.join(FORMATS)}")
    if name == "onnx" and find_spec("onnx") is None:
        raise RequestError("exporting to ONNX needs the package onnx: pip install 'veca[onnx]'")


def metadata(model: Model, cores: int) -> dict[str, str]:
    """What a program needs to know to use the file; values are text."""
    card = model.card
    score = card.score(cores)
    content: dict[str, Any] = {
        "model": card.name,
        "summary": card.summary,
        "digest": model.digest,
        "cores": cores,
        "classes": [{"value": c.value, "name": c.name, "color": c.color} for c in card.classes],
        "bands": list(card.bands.names),
        "dtype": card.bands.dtype,
        "spacing": f"{card.spacing.value:g} {card.spacing.unit}" if card.spacing else "",
        "window": card.window,
        "mean_iou": score.mean_iou if score else "",
        "licence": card.licence,
        "limits": list(card.limits),
    }
    return {key: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for key, v in content.items()}


def _write_torch(model: Model, cores: int, path: Path) -> None:
    """An ExportedProgram. Takes minutes, as torch proves for which sizes the graph holds: for sides above a patch."""
    auto = torch.export.Dim.DYNAMIC
    sizes = ({0: auto, 2: auto, 3: auto},)
    with _tracing(model):
        program = torch.export.export(_portable(model, cores), (_example(model),), dynamic_shapes=sizes, strict=False)
    torch.export.save(program, path, extra_files={"veca.json": json.dumps(metadata(model, cores), ensure_ascii=False)})


def _write_onnx(model: Model, cores: int, path: Path) -> None:
    """By torch's older exporter: its new one takes twenty times as long where sizes are open, for the same graph."""
    import onnx

    names = {0: "batch", 2: "height", 3: "width"}
    with _tracing(model):
        torch.onnx.export(
            _portable(model, cores),
            (_example(model),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_axes={"pixels": names, "probabilities": names},
        )
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata(model, cores))
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _portable(model: Model, cores: int) -> Portable:
    return Portable(model.network.to("cpu").float(), cores).eval()


def _example(model: Model) -> Tensor:
    batch, height, width = _EXAMPLE
    return torch.zeros(batch, len(model.card.bands.names), height, width)


@contextmanager
def _tracing(model: Model) -> Iterator[None]:
    """Gradients on, since the network then takes the path that is one graph; what torch cannot express is one line."""
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own
        try:
            yield
        except Exception as error:  # what torch raises depends on the layer that it cannot express
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RequestError(f"{model.card.name} cannot be expressed as a graph of open size: {reason}") from error


def _repeated(images: Tensor, axis: int, length: int, wanted: int) -> Tensor:
    """Longer along an axis, the last row or column again and again."""
    at = torch.arange(wanted, device=images.device).clamp(max=length - 1)
    return images.index_select(axis, at)
