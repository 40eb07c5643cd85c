"""Segments images: plan, cut, read, predict, stitch, write. One bundle on disk for each image."""

from __future__ import annotations

import csv
import os
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import damage
from pipelines.bundle import LABELS, Bundle, SeamRecord, remove_result, write_run
from pipelines.choices import describe
from pipelines.confidence import LAYERS, contrast, layer_values, wanted_layers
from pipelines.errors import USER_ERRORS, RequestError, said_by_system
from pipelines.inference import Prediction, Predictor
from pipelines.job import PLAN, Job, Options, absolute, remember_plan
from pipelines.planner import CHUNK, make_plan
from pipelines.progress import Clock, Report, quiet
from pipelines.remote import Store
from tiling import NODATA, Box, ImageError, LabelClass, open_image, storage
from tiling.canvas import Canvas
from tiling.exports import EXPORTS
from tiling.labels import Labels
from tiling.lock import locked
from tiling.readers.opened import short_name
from tiling.seams import seams
from tiling.tissue import tissue_mask
from veca_core import Model
from veca_core.streaming import default_chunk

if TYPE_CHECKING:
    from pipelines.distribute import Team

SUMMARY: Final = "summary.csv"
SUMMARY_COLUMNS: Final = ("image", "status", "result", "cores", "seconds", "reason")
Tick = Callable[[int, int], None]
"""Called with the blocks done and the blocks in all."""


def silent(done: int, total: int) -> None:
    """Shows no progress."""


def segment(
    image: str | Path | NDArray[np.generic],
    model: Model,
    out: str | Path,
    options: Options | None = None,
    *,
    name: str | None = None,
    report: Report = quiet,
    tick: Tick = silent,
    team: Team | None = None,
) -> Bundle:
    """Segments one image, a path, address or array (H, W) or (H, W, bands), into the bundle `out`/`name`; returns that.

    The name is the image's unless given. A finished result of the same image, model and options is returned as it is,
    an interrupted one is finished. With `options.dask` a cluster does the work, or a `team` of it that is hired
    already. Raises ImageError, ModelError or RequestError for what cannot be done; nothing is then left under a final
    name.
    """
    clock = Clock()
    options = options or Options()
    if options.dask and team is None:
        store = Store.of(out)
        with hired(model, store.scratch if store else Path(out), options, [image], report) as team:
            return segment(image, model, out, options, name=name, report=report, tick=tick, team=team)
    if team:
        options = replace(options, device=team.device)
    source = open_image(image, bands=options.bands, strict=options.strict)
    store = Store.of(out)
    here = store.scratch if store else Path(out)
    job = Job.prepare(source, model, here / (name or source.name), options, team.plan if team else make_plan)
    for line in (*source.warnings, job.view.note, describe(job.plan)):
        report(line)
    sent = store.sent(job) if store else None
    earlier = None if options.overwrite else job.finished()
    done = earlier.run if earlier else sent
    if done and options.strict:
        damage.refuse_known(source, done.damage)
    if store and sent and set(options.exports) <= sent.whole:
        report(f"{store.url}/{job.folder.name} holds this very result already; --overwrite makes it again")
        return Bundle(job.folder, sent)
    made = done.exports if done else ()
    if earlier and earlier.complete and set(options.exports) <= earlier.run.whole:
        report(f"{job.folder} holds this very result already; --overwrite makes it again")
        return store.send(earlier) if store else earlier
    refuse_another(job)
    if store:
        store.refuse_another(job)
    exports = tuple(dict.fromkeys((*made, *options.exports)))
    if done and done.partial:
        report(f"{job.folder}: {', '.join(done.partial)}, of which veca convert was asked for a part, is made whole")
    job = replace(job, options=replace(options, exports=exports))
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / "run"):
        bundle = make_bundle(job, clock, report, tick, team)
    source.close()
    return store.send(bundle) if store else bundle


def make_bundle(job: Job, clock: Clock, report: Report, tick: Tick, team: Team | None) -> Bundle:
    """Labels, a look for seams, exports, and at last run.json. For whoever holds the lock of the folder."""
    source, exports = job.source, job.options.exports
    told = len(source.warnings)
    with clock("predict"):
        job, predicted = predict_in_memory(job, tick, report, team)
    for line in source.warnings[told:]:
        report(line)
    with clock("check"):
        seam_record = team.look_for_seams(job) if team else look_for_seams(job, predicted.labels)
    with clock("export"):
        outputs = team.export(job, exports) if team else export_labels(job, predicted.labels, exports)
    record = job.record(predicted.resumed, clock.seconds, (LABELS, *outputs), exports, predicted.peak)
    found = {"shares": predicted.shares, "steps_down": predicted.steps_down, "seams": seam_record}
    record = record.model_copy(update=found)
    write_run(job.folder, record)
    (job.folder / PLAN).unlink(missing_ok=True)
    damage.forget(job.folder)
    return Bundle(job.folder, record)


def refuse_another(job: Job) -> None:
    """Raises RequestError where the folder holds the result of another image, unless that may be overwritten."""
    try:
        there = Bundle.open(job.folder).run.image.path
    except RequestError:
        return
    if there != absolute(job.source.path) and not job.options.overwrite:
        raise RequestError(f"{job.folder} holds the result of {there}; choose another --out, or --overwrite")


@dataclass(frozen=True, slots=True)
class Failure:
    """An image of a batch that could not be segmented."""

    image: Path
    reason: str
    """One line."""


def segment_all(
    images: Sequence[Path],
    model: Model,
    out: str | Path,
    options: Options | None = None,
    *,
    report: Report = quiet,
    tick: Tick = silent,
) -> list[Bundle | Failure]:
    """Segments many images, then writes `out`/summary.csv; one that fails is reported and the rest go on.

    Raises ModelError or RequestError, before the first image, for what none of them could be run with.
    """
    options = options or Options()
    options.check(model)
    named = list(zip(images, bundle_names(images), strict=True))
    store = Store.of(out)
    here = store.scratch if store else Path(out)
    here.mkdir(parents=True, exist_ok=True)
    with hired(model, here, options, images, report) if options.dask else nullcontext() as team:

        def one(number: int) -> Bundle | Failure:
            image, name = named[number]
            report(f"[{number + 1}/{len(images)}] {image}")
            say, move = (team.voice(name, report), team.share_of(tick)) if team else (report, tick)
            run = partial(segment, image, model, out, options, name=name, report=say, tick=move, team=team)
            return attempt(image, run, say)

        numbers = range(len(images))
        results = team.map(one, numbers) if team else [one(number) for number in numbers]
    if store:
        store.fetch(SUMMARY)
    write_summary(images, results, here / SUMMARY)
    if store:
        storage.send(here / SUMMARY, f"{store.url}/{SUMMARY}")
    return results


def attempt(image: Path, run: Callable[[], Bundle], report: Report) -> Bundle | Failure:
    """One image of a batch: whatever goes wrong is reported, and is its failure alone."""
    try:
        return run()
    except USER_ERRORS as error:
        reason = str(error)
        report(f"failed: {reason}")
    except OSError as error:
        reason = said_by_system(error)
        report(f"failed: {reason}")
    except Exception as error:  # One bad image never ends a batch.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        report(f"failed: {error}\n{traceback.format_exc()}")
    return Failure(image, reason)


def hired(
    model: Model, out: Path, options: Options, images: Sequence[Any], report: Report
) -> AbstractContextManager[Team]:
    """The workers of `options.dask`."""
    from pipelines.distribute import hire  # loads Dask's scheduler, which few runs need

    return hire(model, options, out, images, report)


def bundle_names(images: Sequence[Path]) -> list[str]:
    """A folder name for each image: its own name, with ending, parent folder, or all folders below the one that they
    have in common, where it shares that with another.

    Raises RequestError where even that does not tell two images apart.
    """
    names = [short_name(str(path)) for path in images]
    for longer in (lambda p: p.name, lambda p: f"{p.resolve().parent.name}-{p.name}", partial(_way_to, images)):
        seen = Counter(names)
        names = [longer(path) if seen[name] > 1 else name for path, name in zip(images, names, strict=True)]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is None:
        return names
    raise RequestError(f"two images would both be written to {twice!r}; segment them into different folders")


def _way_to(images: Sequence[Path], path: Path) -> str:
    """The folders from the one that all images lie in to an image, and its name."""
    try:
        common = os.path.commonpath([image.resolve().parent for image in images])
    except ValueError:  # on different drives
        common = path.resolve().anchor
    return "-".join(path.resolve().relative_to(common).parts)


def write_summary(images: Sequence[Path], results: Sequence[Bundle | Failure], path: Path) -> None:
    """A line for each image that was ever segmented into this folder: what became of it and where it is."""
    lines = {line["image"]: line for line in _read_summary(path)}
    for image, result in zip(images, results, strict=True):
        line = dict.fromkeys(SUMMARY_COLUMNS, "") | {"image": _summary_name(image)}
        if isinstance(result, Failure):
            line |= {"status": "failed", "reason": result.reason}
        else:
            run = result.run
            seconds = round(sum(run.seconds.values()), 1)
            line |= {"status": "done", "result": result.folder.name, "cores": str(run.plan.cores)}
            line |= {"seconds": str(seconds)}
        lines[line["image"]] = line
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = csv.DictWriter(file, SUMMARY_COLUMNS)
        rows.writeheader()
        rows.writerows(lines.values())
    partial.replace(path)


def _summary_name(image: Path) -> str:
    """The image's address or path from the root, the same whether it is there or not, as the file will hold it."""
    name = storage.restored(str(image))
    name = name if storage.is_url(name) else str(image.resolve())
    return name.encode(errors="backslashreplace").decode()


def _read_summary(path: Path) -> list[dict[str, str]]:
    """The lines of an earlier summary; none where there is none, or something else under its name."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file, suppress(csv.Error):
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) == SUMMARY_COLUMNS:  # a line may be longer, or shorter, where a hand was at it
            return [{name: row.get(name) or "" for name in SUMMARY_COLUMNS} for row in rows]
    return []


@dataclass(frozen=True, slots=True)
class Predicted:
    """The labels of a job, and how they came about."""

    labels: Labels
    resumed: int
    """Blocks that were found finished."""
    shares: dict[str, float]
    """Of the time that predicting took: waiting for pixels, computing, waiting for what is written."""
    steps_down: tuple[str, ...] = ()
    """What was given up because memory ran out."""
    peak: int | None = None
    """Largest peak memory of a team's workers, in bytes."""


def predict_in_memory(job: Job, tick: Tick, report: Report, team: Team | None = None) -> tuple[Job, Predicted]:
    """`predict_labels`; with half the window, anew, as often as even one window at a time is too much for the device.

    Returns what was done with the job that it was done for in the end. Raises RequestError where nothing smaller is
    left, or allowed.
    """
    steps: list[str] = []

    def note(line: str) -> None:
        steps.append(line)
        report(line)

    while True:
        try:
            return job, replace(predict_labels(job, tick, note, team), steps_down=tuple(steps))
        except torch.OutOfMemoryError:
            smaller = job.with_half_the_window()
        # Here, not in the handler: its traceback would hold on to what did not fit.
        note(
            f"out of memory on {job.plan.device}: window {job.plan.window} px -> {smaller.plan.window} px, started anew"
        )
        job = smaller


def predict_labels(job: Job, tick: Tick, stepped_down: Report = quiet, team: Team | None = None) -> Predicted:
    """Fills the canvas block by block and publishes it.

    What was there before stays whole until then. Labels of this very job that are there already are taken as they are.
    """
    if not job.options.overwrite:
        damage.recall(job.source, job.folder, job.fingerprint)
        if job.options.strict:
            damage.refuse_known(job.source, damage.records(job.source))
    if not job.options.overwrite and (labels := published_labels(job)):
        return Predicted(labels, job.blocks, {})
    remember_plan(job)
    # Absolute, because the canvas may travel to other processes.
    with open_canvas(job, job.folder.absolute() / f"{LABELS}.partial") as canvas:
        resumed = sum(canvas.is_done(block) for block in canvas.blocks)
        clock, peak = Clock(), None
        tick(resumed, job.blocks)
        if team:
            peak = team.fill(job, canvas, tick, stepped_down, clock)
        else:
            fill(job, canvas, tick, stepped_down, clock)
        damage.refuse_all_damaged(job.source, job.view.level)
        remove_result(job.folder)
        labels = canvas.publish(job.folder / LABELS)
    return Predicted(labels, resumed, clock.shares("read", "compute", "write"), peak=peak)


def fill(job: Job, canvas: Canvas, tick: Tick, stepped_down: Report, clock: Clock) -> None:
    """Does the blocks that are missing, in this process."""
    done = sum(canvas.is_done(block) for block in canvas.blocks)
    missing = (block for block in canvas.blocks if not canvas.is_done(block))
    predictor = open_predictor(job, stepped_down)
    tissue = tissue_mask(job.view) if job.searches_tissue and done < job.blocks else None
    written = predictor.predict_blocks(
        job.view, job.grid, missing, block_writer(job, canvas), tissue=tissue, clock=clock
    )
    with closing(written):
        for number, _ in enumerate(written, start=done + 1):
            tick(number, job.blocks)


def open_predictor(job: Job, stepped_down: Report = quiet) -> Predictor:
    """The job's network on its device, run as its plan says."""
    device = torch.device(job.plan.device)
    return Predictor(
        job.model.network.to(device),
        job.plan.cores,
        job.plan.batch,
        device,
        getattr(torch, job.plan.precision),
        bands=job.bands,
        contrast=contrast(job.model, job.plan.cores) if "uncertainty" in job.options.exports else None,
        stepped_down=stepped_down,
        chunk=job.plan.chunk if job.plan.chunk < default_chunk(device.type) else None,
    )


def block_writer(job: Job, canvas: Canvas) -> Callable[[Box, Prediction], None]:
    """What is done with the prediction of a block: its labels go into the canvas, NODATA where nothing was seen, and
    what was asked for beside them.
    """
    values = class_values(job)

    def write(block: Box, prediction: Prediction) -> None:
        damage.remember(job.source, job.folder, job.fingerprint)
        canvas.write(block, prediction.labels(values, NODATA), layer_values(prediction, canvas.layers))

    return write


def class_values(job: Job) -> NDArray[np.uint8]:
    """(classes,) what stands for each class in the labels."""
    return np.array([c.value for c in job.model.card.classes], dtype=np.uint8)


def look_for_seams(job: Job, labels: Labels) -> SeamRecord | None:
    """Whether the borders of windows show in the labels."""
    seam = seams(labels, job.grid)
    return SeamRecord(across=seam.across, elsewhere=seam.elsewhere) if seam else None


def export_labels(job: Job, labels: Labels, exports: Sequence[str]) -> list[str]:
    """Makes exports from the published labels; returns the names of the files."""
    return [path.name for row in exports for path in EXPORTS[row](labels, job.folder, job.view, job.tags)]


def published_labels(job: Job) -> Labels | None:
    """The labels of a run of this job that ended before its exports did."""
    try:
        labels = Labels.open(job.folder / LABELS)
    except ImageError:
        return None
    wanted = {name for name in LAYERS if name in job.options.exports}
    return labels if labels.fingerprint == job.fingerprint and wanted <= set(labels.layers) else None


def open_canvas(job: Job, path: Path) -> Canvas:
    """The canvas of a job, with the blocks that an interrupted run of the same job has finished."""
    return Canvas.create(
        path,
        size=job.view.size,
        block=job.plan.block,
        chunk=CHUNK,
        classes=[LabelClass(c.value, c.name, c.rgb) for c in job.model.card.classes],
        georef=job.view.georef,
        kind=job.source.kind,
        name=job.folder.name,
        fingerprint=job.fingerprint,
        scale=job.view.scale,
        layers=wanted_layers(job.model, job.plan.cores, job.options.exports),
        anew=job.options.overwrite,
    )
