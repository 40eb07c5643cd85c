"""Whether a device runs the network as it should: each thing that is promised is done once, and judged.

Weights are formulas, are drawn from a fixed seed, or come with the package: it needs no files and no network.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import psutil
import torch
from torch import Tensor

from pipelines.device import choose_device, format_bytes, free_memory
from pipelines.gauge import GaugeError, gauge
from pipelines.inference import autocast, fast_precision
from pipelines.job import versions
from pipelines.known import KNOWN, known_network, known_picture, sample
from pipelines.planner import READING, Wishes, make_plan, pass_bytes
from tiling import Size
from veca_core import ModelError, Segmenter, VecaEncoder, load_model, preset, shipped_models
from veca_core.memory import RESIDENT, encoder_bytes
from veca_core.model import network_size
from veca_core.prepared import packs
from veca_core.streaming import attention_kind, default_chunk, keeps_scores

CLOSE: Final = 1e-4
"""How far float32 results of a device may be from the plain equations, as the published code's are."""
SHIFT: Final = 0.02
"""How far fast number types may move probabilities, in the mean over a picture, from those of float32."""
UNDER: Final = 0.95
OVER: Final = 1.15
"""What a predicted peak of the encoder may be, in measured ones: at least and at most."""
SIDE: Final = 6144
"""Pixels of the picture whose peak is measured: so many that what an allocator keeps, or not, hardly matters."""
RETRIES: Final = 2
"""How often a peak is measured again that looks too small."""
BUDGETS: Final = (8, 32, 64)
"""Numbers of cores that are timed."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    said: str
    passed: bool | None = None
    """None: a fact, which nobody judges."""

    def line(self) -> str:
        """For people."""
        mark = {True: "pass", False: "FAIL", None: "    "}[self.passed]
        return f"{mark}  {self.name}: {self.said}"


Step = Callable[[torch.device], Iterable[Check]]


def doctor(device: str = "auto") -> Iterator[Check]:
    """Facts and judgements about a device, one after the other; raises RequestError where there is no such device."""
    chosen = choose_device(device)
    return (check for name, step in STEPS.items() for check in judged(name, step, chosen))


def judged(name: str, step: Step, device: torch.device) -> Iterator[Check]:
    """What a step says; where the device or a model breaks it, that is a failed check like any other."""
    try:
        yield from step(device)
    except (RuntimeError, GaugeError, ModelError, OSError) as error:  # torch's errors are RuntimeErrors
        lines = str(error).strip().splitlines() or ["no reason was given"]
        yield Check(name, f"stopped with {type(error).__name__}: {lines[0]}", False)


def facts(device: torch.device) -> Iterator[Check]:
    """Versions, what the device is, its free memory, and how products and attention are computed there."""
    yield Check("versions", ", ".join(f"{name} {version}" for name, version in versions().items()))
    if device.type == "cuda":
        name, total = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
        name = f"{name}, CUDA {torch.version.cuda}"
    else:
        name, total = platform.processor() or platform.machine(), psutil.virtual_memory().total
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    memory = f"{format_bytes(free_memory(device))} of {format_bytes(total)} free"
    yield Check("device", f"{device} ({name}){threads}, {memory}")
    dtype = fast_precision(device)
    products = "weights packed for oneDNN" if packs(device, dtype) else "the library's own products"
    attention = "scores of a chunk are kept" if keeps_scores(device.type, 64) else "scaled_dot_product_attention"
    number = str(dtype).removeprefix("torch.")
    yield Check("kernels", f"{number}, {products}, {attention}, {default_chunk(device.type)} tokens at a time")


def known_answers(device: torch.device) -> Iterator[Check]:
    """A network that is a formula, float32 on the device, against what its equations give in float64."""
    network, picture = known_network().to(device), known_picture().to(device)
    with torch.inference_mode():
        found = {cores: sample(network(picture, cores, chunk=7)) for cores in KNOWN}
    off = farthest(abs(a - b) for cores, known in KNOWN.items() for a, b in zip(found[cores], known, strict=True))
    yield Check("known answers", f"{off:.1e} off what is recorded, {CLOSE:g} are allowed", off <= CLOSE)


def parity(device: torch.device) -> Iterator[Check]:
    """The encoder in bounded memory on the device, float32, against the plain equations on the CPU, in all tokens."""
    network, picture = drawn("tiny", torch.device("cpu")), drawn_picture(176, 240)
    image = (picture.float() - 127) / 60
    with torch.enable_grad():
        expected = network(image, 32)
    with torch.inference_mode():
        found = network.to(device)(image.to(device), 32, chunk=37)
    pairs = ((found.patches, expected.patches), (found.cores, expected.cores))
    off = farthest(float((a.cpu() - b.detach()).abs().max()) for a, b in pairs)
    said = f"float32 is {off:.1e} off the plain equations on a CPU, {CLOSE:g} are allowed"
    yield Check("parity", said, off <= CLOSE)


def agreement(device: torch.device) -> Iterator[Check]:
    """Each shipped model as it runs here, against itself in float32 on the CPU."""
    for folder in shipped_models():
        model = load_model(folder)
        bands = len(model.card.bands.names)
        picture = drawn_picture(256, 256)[:, [i % 3 for i in range(bands)]]
        expected = probabilities(model.network, picture, torch.float32)
        found = probabilities(model.network.to(device), picture.to(device), fast_precision(device))
        off = float((found - expected).abs().mean())
        said = f"probabilities are {off:.4f} off those of float32 on a CPU, {SHIFT:g} are allowed"
        yield Check(f"model {model.card.name}", said, off <= SHIFT)


def encoder_memory(device: torch.device, side: int = SIDE) -> Iterator[Check]:
    """What is predicted for the encoder alone against its measured peak: a formula, so neither too low nor too high."""
    config = preset("small")
    predicted = encoder_bytes(
        (side // config.patch) ** 2, config.dim, config.hidden, config.heads, 64, 1, default_chunk(device.type),
        fast_precision(device).itemsize, attention_kind(device.type, 64), values=config.in_channels * config.patch**2,
    )  # fmt: skip
    predicted += RESIDENT if device.type == "cpu" else 0
    said = f"{format_bytes(predicted)} predicted for {side} px"
    if device.type not in ("cpu", "cuda"):
        yield Check("memory of the encoder", f"{said}; {device.type} tells no peak to compare with")
        return
    peak = gauge(device, "", side)
    for _ in range(RETRIES):  # what a busy system takes back meanwhile makes a reading too low, and nothing too high
        if predicted <= OVER * peak:
            break
        peak = max(peak, gauge(device, "", side))
    said += f", {format_bytes(peak)} measured; {UNDER:g} to {OVER:g} of that are allowed"
    yield Check("memory of the encoder", said, UNDER * peak <= predicted <= OVER * peak)


def plan_memory(device: torch.device) -> Iterator[Check]:
    """What the planner expects of a batch of each shipped model against its measured peak, which must not be more."""
    for folder in shipped_models():
        model = load_model(folder)
        network, cores = network_size(model.network), model.network.encoder.config.cores
        plan = make_plan(network, Size(20_000, 20_000), cores, model.card.window, Wishes(device=str(device)))
        expected = pass_bytes(network, plan.window, plan.window, plan.batch, cores, device)
        expected += READING if device.type == "cpu" else 0  # which what the allocator keeps comes out of, too
        said = f"{format_bytes(expected)} planned for {plan.batch} x {plan.window} px"
        if device.type not in ("cpu", "cuda"):
            yield Check(f"memory of {model.card.name}", f"{said}; {device.type} tells no peak to compare with")
            continue
        peak = gauge(device, str(folder), plan.window, plan.batch)
        said += f", {format_bytes(peak)} measured"
        if device.type == "cuda":
            said += f", {format_bytes(torch.cuda.max_memory_reserved(device))} reserved"
        yield Check(f"memory of {model.card.name}", said, peak <= expected)


def throughput(device: torch.device) -> Iterator[Check]:
    """Megapixels in a second through `small` at 1024 px, for some budgets of cores."""
    network, picture = drawn("small", device), drawn_picture(1024, 1024).to(device)
    scale = torch.full((1, 3, 1, 1), 127.0, device=device), torch.full((1, 3, 1, 1), 60.0, device=device)
    for cores in BUDGETS:
        best = float("inf")
        with torch.inference_mode(), autocast(device, fast_precision(device)):
            for _ in range(2):
                started = time.perf_counter()
                patches = network(picture, cores, scale=scale, skips=False).patches
                finite = bool(patches.sum().isfinite())  # waits for the device
                best = min(best, time.perf_counter() - started)
        said = f"{picture[0, 0].numel() / best / 1e6:.2f} megapixels a second"
        yield Check(f"speed with {cores} cores", said if finite else f"{said}, of values that are no numbers", finite)


STEPS: Final[dict[str, Step]] = {
    "facts": facts,
    "known answers": known_answers,
    "parity": parity,
    "models": agreement,
    "memory of the encoder": encoder_memory,
    "memory of models": plan_memory,
    "speed": throughput,
}


def farthest(distances: Iterable[float]) -> float:
    """The largest; not a number where one of them is none, which `max` would pass over."""
    return float(torch.tensor(list(distances), dtype=torch.float64).max())


def probabilities(network: Segmenter, picture: Tensor, precision: torch.dtype) -> Tensor:
    """(1, classes, H, W), on the CPU."""
    with torch.inference_mode(), autocast(picture.device, precision):
        logits: Tensor = network(picture)
    return logits.float().softmax(dim=1).cpu()


def drawn(name: str, device: torch.device, **changes: int) -> VecaEncoder:
    """A preset's encoder with weights from a fixed seed, on a device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VecaEncoder(preset(name, **changes)).eval().to(device)


def drawn_picture(height: int, width: int) -> Tensor:
    """(1, 3, H, W) 8-bit pixels: slow waves with noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, height, width, generator=generator) * 20
    rows, columns = torch.arange(height).view(-1, 1) / 40, torch.arange(width) / 60
    return (noise + 127 + 60 * torch.sin(rows + columns)).clamp(0, 255).to(torch.uint8)
