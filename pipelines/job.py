"""One image with everything that was decided about it before its first pixel is read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import torch

from pipelines import damage
from pipelines.bands import misplaced, other_order
from pipelines.bundle import (
    LABELS,
    Bundle,
    GridRecord,
    ImageRecord,
    ModelRecord,
    PlanRecord,
    RunRecord,
    export_tags,
    image_fingerprint,
)
from pipelines.choices import Choice, choices
from pipelines.confidence import planned_classes
from pipelines.device import choose_device
from pipelines.errors import RequestError
from pipelines.pace import measure_pace
from pipelines.peak import peak_memory
from pipelines.planner import Plan, Planner, Wishes, check_overlap, expected, halvings, make_plan
from pipelines.room import plan_with_room, reading_of
from tiling import Grid, Source, Spacing, View, storage
from tiling.exports import EXPORTS
from tiling.readers.opened import listed
from veca_core import Model
from veca_core.memory import NetworkSize
from veca_core.model import network_size

PLAN: Final = "plan.json"
"""Of a run that is not finished."""
DEFAULT_EXPORTS: Final = ("mask", "regions", "areas", "preview")
PACKAGES: Final = ("veca", "torch", "numpy", "zarr", "tifffile", "rasterio")
"""Whose versions run.json records."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may ask of a run; the defaults are what most want."""

    cores: int | None = None
    window: int | None = None
    overlap: int | None = None
    memory: int | None = None
    """Bytes; None for four fifths of what is free."""
    time: float | None = None
    """Seconds that the network may take for one image; None for as long as it takes."""
    device: str = "auto"
    spacing: Spacing | Literal["native"] | None = None
    """The size of the image's own pixels where the file does not say it; 'native' reads pixels as they are."""
    exports: tuple[str, ...] = DEFAULT_EXPORTS
    tissue: bool = True
    """Slides only: leave out windows without tissue."""
    bands: tuple[str, ...] = ()
    """Bands of the image that the model reads as its first, second ...: names, or numbers from 1; empty: all."""
    strict: bool = False
    """Whether a tile that cannot be decoded is an error; else it is no data and told in run.json."""
    overwrite: bool = False
    """Start anew where a result is there already."""
    dask: str | None = None
    """A Dask cluster to run on: 'tcp://host:8786', a scheduler file, or 'local:4'; None: this process."""
    threads: int | None = None
    """On a cluster: torch threads of each piece of work; None for one (local:N: this process's, shared out)."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.exports if name not in EXPORTS]
        if unknown:
            raise RequestError(f"there is no export {unknown[0]!r}; the exports are {', '.join(EXPORTS)}")
        if self.time is not None and self.dask is not None:
            raise RequestError("a bound on time is for one machine; leave out --time or --dask")

    def check(self, model: Model) -> None:
        """Raises RequestError or ModelError for what this model can do for no image at all."""
        model.network.encoder.config.check_budget(self.cores)
        if self.dask is None:
            choose_device(self.device)
        if self.window is not None or self.overlap is not None:
            check_overlap(self.window or model.card.window, model.network.encoder.config.patch, self.overlap)


@dataclass(frozen=True, slots=True)
class Job:
    """One image with everything that was decided about it."""

    source: Source
    model: Model
    view: View
    plan: Plan
    grid: Grid
    folder: Path
    options: Options
    request: str
    """Names what was asked for, whatever plan was then made."""
    fingerprint: str
    """Names request and plan."""
    seen: str = ""
    """Fingerprint of the image as it was when the run began."""

    @classmethod
    def prepare(cls, source: Source, model: Model, folder: Path, options: Options, planner: Planner = make_plan) -> Job:
        """Chooses view and plan; raises where the model cannot read this image."""
        check_bands(source, model, options)
        model.network.encoder.config.check_budget(options.cores)
        view = open_view(source, model, options)
        budgets = best_first(model)
        wishes = Wishes(
            options.cores, options.window, options.overlap, options.memory, options.device, budgets,
            reading=reading_of(source),
        )  # fmt: skip
        full, window = model.network.encoder.config.cores, model.card.window
        if options.time is not None:
            device, tissue = choose_device(options.device), searches_tissue(source, model, options)
            pace = measure_pace(model.network, view, options.window or window, device, tissue)
            passes = 2 if "uncertainty" in options.exports and len(budgets) > 1 else 1
            wishes = replace(wishes, time=options.time, pace=replace(pace, passes=passes))
        seen = image_fingerprint(source.path)
        asked = request(seen, model, options)
        fresh = plan_with_room(source, planner, planned_size(model, options), view.size, full, window, wishes)
        plan = fresh if options.overwrite else remembered_plan(folder, asked, fresh)
        grid = Grid.over(view.size, plan.window, plan.overlap, model.network.encoder.config.patch)
        mark = fingerprint(asked, plan)
        return cls(source, model, view, plan, grid, folder, options, asked, mark, seen)

    def with_half_the_window(self) -> Job:
        """The same with half the window: another run, which starts anew.

        Raises RequestError where the user pinned the window, or where it is the smallest already.
        """
        plan, patch = self.plan, self.model.network.encoder.config.patch
        smaller = halvings(plan.window, patch)[1:]
        if self.options.window or not smaller:
            raise RequestError(
                f"{self.source.path}: {plan.device} has too little memory for one window of {plan.window} px; "
                f"ask for a smaller --window, or run it on another --device"
            )
        wished = self.options.overlap
        overlap = check_overlap(smaller[0], patch, None if wished is None else min(wished, smaller[0] // 2))
        reason = f"memory ran out with a window of {plan.window} px"
        plan = replace(plan, window=smaller[0], overlap=overlap, batch=1, reason=reason)
        plan = expected(plan, planned_size(self.model, self.options), self.view.size, reading_of(self.source))
        grid = Grid.over(self.view.size, plan.window, plan.overlap, patch)
        return replace(self, plan=plan, grid=grid, fingerprint=fingerprint(self.request, plan))

    @property
    def bands(self) -> tuple[int, ...] | None:
        """Where the model's bands lie in the image, where the image names the same ones in another order."""
        # With --bands they come in the order that was asked for.
        return None if self.options.bands else other_order(self.source.bands, self.model.card.bands.names)

    @property
    def searches_tissue(self) -> bool:
        """Whether parts without tissue are left out: with models for slides, and on slides with models for anything."""
        return searches_tissue(self.source, self.model, self.options)

    def choices(self) -> list[Choice]:
        """The plan among those that were not chosen."""
        scores = {score.cores: score.mean_iou for score in self.model.card.scores}
        budgets = self.model.network.encoder.config.budgets
        wishes = Wishes(overlap=self.options.overlap, reading=reading_of(self.source))
        size, window = planned_size(self.model, self.options), self.model.card.window
        return choices(size, self.view.size, budgets, scores, self.plan, window, wishes)

    @property
    def blocks(self) -> int:
        """How many blocks the image is cut into."""
        return -(-self.view.size.height // self.plan.block) * -(-self.view.size.width // self.plan.block)

    @property
    def tags(self) -> dict[str, str]:
        """What every export says about where it came from."""
        model, cores = (self.model.card.name, self.model.digest), self.plan.cores
        return export_tags(*model, cores, self.fingerprint, version("veca"))

    def finished(self) -> Bundle | None:
        """The result that is there already, if it is of this very job; of its files, some may be gone."""
        try:
            bundle = Bundle.open(self.folder)
        except RequestError:
            return None
        return bundle if bundle.run.fingerprint == self.fingerprint else None

    def record(
        self,
        resumed: int,
        seconds: dict[str, float],
        outputs: Sequence[str],
        exports: Sequence[str],
        peak: int | None = None,
    ) -> RunRecord:
        """run.json; the peak memory is this process's unless given."""
        source, size = self.source, self.source.levels[0].size
        spacing = source.georef.spacing(size)
        transform = self.view.georef.transform
        return RunRecord(
            image=ImageRecord(
                path=absolute(source.path), kind=source.kind, size=(size.height, size.width), bands=source.bands,
                dtype=str(source.dtype), spacing=str(spacing) if spacing else None,
                fingerprint=self.seen, chosen=self.options.bands,
            ),
            model=ModelRecord(name=self.model.card.name, digest=self.model.digest),
            plan=PlanRecord(**asdict(self.plan)),
            grid=GridRecord(
                size=(self.view.size.height, self.view.size.width),
                spacing=str(self.view.spacing) if self.view.spacing else None,
                transform=(transform.a, transform.b, transform.c, transform.d, transform.e, transform.f),
                note=self.view.note,
            ),
            request=self.request,
            fingerprint=self.fingerprint,
            windows=len(self.grid),
            blocks=self.blocks,
            resumed_blocks=resumed,
            seconds={name: round(value, 3) for name, value in seconds.items()},
            peak_memory=peak_memory(torch.device(self.plan.device)) if peak is None else peak,
            outputs=tuple(outputs),
            exports=tuple(exports),
            warnings=source.warnings,
            damage=damage.records(source),
            versions=versions(),
        )  # fmt: skip


def planned_size(model: Model, options: Options) -> NetworkSize:
    """The numbers that memory planning needs, for a run with these exports."""
    size = network_size(model.network)
    return replace(size, classes=planned_classes(size.classes, options.exports))


def searches_tissue(source: Source, model: Model, options: Options) -> bool:
    """Whether parts of this image without tissue are left out."""
    kind = model.card.kind
    return options.tissue and (kind == "slide" or (kind == "any" and source.kind == "slide"))


def best_first(model: Model) -> tuple[int, ...]:
    """The numbers of cores a model can run with, by the accuracy that its card records, then by their number."""
    recorded = {score.cores: score.mean_iou for score in model.card.scores}
    return tuple(sorted(model.network.encoder.config.budgets, key=lambda c: (recorded.get(c, 0.0), c), reverse=True))


def check_bands(source: Source, model: Model, options: Options) -> None:
    """Raises RequestError where the model cannot read the image's bands or their numbers, or would mistake a band."""
    bands = model.card.bands
    if len(source.bands) != len(bands.names):
        raise RequestError(
            f"{source.path} has {listed(source.bands)}, but {model.card.name} reads {listed(bands.names)}; "
            f"choose them with --bands, by name or by number{_hidden(source, len(bands.names))}"
        )
    if not options.bands and (band := misplaced(source.bands, bands.names)):
        raise RequestError(
            f"{source.path} has {listed(source.bands)}, but {model.card.name} reads {listed(bands.names)}: {band} "
            "would be read as another; choose with --bands what is read as what, by name or by number"
        )
    if str(source.dtype) != bands.dtype:
        raise RequestError(
            f"{source.path} holds {source.dtype} values, but {model.card.name} was trained on {bands.dtype}; "
            f"convert the image, or train a model on such images"
        )


def _hidden(source: Source, wanted: int) -> str:
    """What to do where a band that is marked as alpha may be the one that is missing."""
    alpha = source.provenance.get("alpha")
    if alpha is None or len(source.bands) + 1 != wanted:
        return ""
    return (
        f"; {alpha} is marked as alpha: if it is a band like the others, gdal_edit.py -colorinterp_N undefined says so"
    )


def open_view(source: Source, model: Model, options: Options) -> View:
    """The image at the model's spacing, or as it is where the model or the user says so."""
    if options.spacing == "native" or model.card.spacing is None:
        stated = options.spacing if isinstance(options.spacing, Spacing) else None
        return View.open(source, None, stated)
    wanted = Spacing.square(model.card.spacing.value, model.card.spacing.unit)
    return View.open(source, wanted, options.spacing)


def absolute(path: str) -> str:
    """The path from the root, so that a result finds its image from any folder; what is no path stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else storage.restored(path)


def request(image: str, model: Model, options: Options) -> str:
    """Names what is asked for: the same for the same input, of which `image` is the fingerprint, model and wishes."""
    # On a cluster the device is the workers', and need not be here.
    device = options.device if options.dask else str(choose_device(options.device))
    wishes = (options.cores, options.window, options.overlap, options.bands, device, options.time)
    text = json.dumps([image, model.digest, wishes, repr(options.spacing), options.tissue, version("veca")])
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(asked: str, plan: Plan) -> str:
    """Names a run: what was asked for, and what was chosen for it."""
    chosen = (plan.cores, plan.window, plan.overlap, plan.batch, plan.block, plan.precision, plan.device, plan.chunk)
    return hashlib.sha256(json.dumps([asked, chosen]).encode()).hexdigest()


def remember_plan(job: Job) -> None:
    """Leaves the plan beside an unfinished result: whoever goes on uses it, however much memory is free then."""
    content = json.dumps({"request": job.request, "plan": asdict(job.plan)}) + "\n"
    partial = job.folder / f".{PLAN}.{os.getpid()}"
    partial.write_text(content, encoding="utf-8")
    partial.replace(job.folder / PLAN)


def remembered_plan(folder: Path, asked: str, fresh: Plan) -> Plan:
    """The plan of a result of the same request, or of an interrupted one if it fits; else the fresh one."""
    try:
        run = Bundle.open(folder).run
        plan = Plan(**run.plan.model_dump())
        if run.request == asked and ((folder / LABELS).exists() or _with_memory_of(plan, fresh).fits):
            return plan
    except RequestError:
        pass
    try:
        content = json.loads((folder / PLAN).read_bytes())
        plan = _with_memory_of(Plan(**content["plan"]), fresh)
    except (OSError, ValueError, KeyError, TypeError):
        return fresh
    # Who cannot multiply bfloat16 would go on with other numbers, and slowly.
    able = plan.precision in ("float32", fresh.precision)
    return plan if content["request"] == asked and plan.fits and able else fresh


def _with_memory_of(plan: Plan, fresh: Plan) -> Plan:
    return replace(plan, memory=fresh.memory, host_memory=fresh.host_memory)


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
