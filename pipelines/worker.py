"""What runs on a worker of a Dask cluster: joining a run, planning in its own memory, and doing pieces of an image.

Called by `pipelines.crew` and `pipelines.distribute`. The work itself is that of a local run: the same job, the same
predictor, the same exports.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from distributed import Worker, get_worker
from distributed.utils import sync

from pipelines.bundle import LABELS, SeamRecord
from pipelines.confidence import layer_values
from pipelines.device import choose_device, free_memory, resident
from pipelines.inference import Prediction, fast_precision
from pipelines.job import Job, Options, open_view, versions
from pipelines.peak import peak_memory
from pipelines.planner import Plan, Wishes, make_plan
from pipelines.progress import Clock
from pipelines.segmentation import class_values, export_labels, look_for_seams, open_predictor
from tiling import NODATA, Box, Grid, ImageError, Size, open_image, storage
from tiling.canvas import Canvas
from tiling.damage import Damage
from tiling.labels import Labels
from tiling.tissue import TissueMask, tissue_mask
from veca_core import Model, ModelError, load_model
from veca_core.memory import NetworkSize
from veca_core.weights import CARD, WEIGHTS, ZOO, model_digest

SETTLING: Final = 75.0
"""Seconds that a file written elsewhere may take to be seen here: network file systems keep what they know of a folder
for a minute (`acdirmax` of nfs(5))."""
JOBS: Final = 2
"""Images that a thread keeps open."""
MODELS: Final = 2
"""Models that a process keeps."""


class UnfitError(Exception):
    """Why a worker cannot take part, in one line."""


class NeedsModelError(Exception):
    """The worker does not see the model's folder: its files have to be sent."""


class NotJoinedError(Exception):
    """The worker came later and was not asked yet whether it is what the client expects, or lost the model since."""


@dataclass(frozen=True, slots=True)
class ModelTicket:
    """Names a model, so that a worker finds the very same one."""

    folder: str
    """Where the client has it."""
    digest: str


@dataclass(frozen=True, slots=True)
class Call:
    """What a worker is asked before it takes part."""

    versions: dict[str, str]
    """The client's."""
    ticket: ModelTicket
    device: str
    out: str
    """Folder of the results, which the worker must be able to write."""
    inputs: tuple[str, ...]
    """Folders of the images, which the worker must see."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a worker brings."""

    device: str
    """'cpu' or 'cuda'."""
    precision: str
    threads: int
    """Dask threads, so pieces of images that it does at once."""
    pool: str
    """Names the memory that it draws on: workers that share it name the same."""
    limit: int | None
    """Bytes that Dask allows the process; None where it sets no bound."""
    free: int
    """Bytes that are free in the pool."""
    held: int
    """Bytes that the process holds already, on a CPU."""
    probe: str
    """A file that it left in the folder of the results, for the client to see and remove."""


@dataclass(frozen=True, slots=True)
class Order:
    """One image's work, as it travels: everything that was decided about it, and where it is written."""

    name: str
    """Of this run of this image alone."""
    image: str
    file_size: int
    """Size of the image file, as the client sees it; -1 for a folder."""
    size: Size
    """Of the grid that is predicted."""
    ticket: ModelTicket
    folder: str
    options: Options
    plan: Plan
    request: str
    fingerprint: str
    canvas: bytes
    """Pickled; empty where the labels are finished already."""
    threads: int
    """torch threads of each piece."""
    topic: str
    """Under which the scheduler is told of tasks that are begun, and of finished blocks."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What became of some blocks."""

    stored: dict[Box, int]
    """CRC-32 of the labels of each."""
    peak: int
    """Bytes that the worker used at most until now."""
    seconds: dict[str, float]
    """What the time went into: 'read', 'compute' and 'write'."""
    steps_down: tuple[str, ...]
    """What was given up because memory ran out."""
    damage: tuple[Damage, ...]
    """Tiles of the image that could not be decoded."""


def join(call: Call, worker: Worker) -> Member:
    """Makes this worker ready: checks that it is what the client expects, and loads the model, once.

    Raises UnfitError where it is not, and NeedsModelError where it does not find the model.
    """
    mine = versions()
    other = [f"{name} {mine[name]} (here {theirs})" for name, theirs in call.versions.items() if mine[name] != theirs]
    if other:
        raise UnfitError(f"it has {', '.join(other)}; install the same versions")
    unseen = next((folder for folder in call.inputs if not Path(folder).exists()), None)
    if unseen:
        raise UnfitError(f"it does not see {unseen}; every worker needs the images under the same path")
    try:
        device = choose_device(call.device).type
    except Exception as error:
        raise UnfitError(str(error)) from error
    model = load(call.ticket, device)
    _JOINED.add((call.ticket.digest, device))
    held = resident() if device == "cpu" else 0
    limit = worker.memory_manager.memory_limit if device == "cpu" else None
    pool = socket.gethostname() if device == "cpu" else f"{socket.gethostname()} {_gpu()}"
    precision = str(fast_precision(next(model.network.parameters()).device)).removeprefix("torch.")
    free = free_memory(torch.device(device))
    return Member(device, precision, worker.state.nthreads, pool, limit, free, held, _leave_probe(Path(call.out)))


def _gpu() -> str:
    return str(getattr(torch.cuda.get_device_properties(0), "uuid", os.environ.get("CUDA_VISIBLE_DEVICES", "")))


def _leave_probe(out: Path) -> str:
    probe = out / f".veca-{uuid.uuid4().hex}"
    try:
        probe.touch()
    except FileNotFoundError as error:
        raise UnfitError(f"it does not see {out}; every worker needs the --out folder under the same path") from error
    except OSError as error:
        raise UnfitError(f"it cannot write into {out}: {error.strerror}") from error
    return str(probe)


def remove_probe(probe: str, _: Worker) -> None:
    """For a worker whose folder the client does not share."""
    Path(probe).unlink(missing_ok=True)


def take_model(ticket: ModelTicket, weights: bytes, card: bytes, worker: Worker) -> None:
    """Keeps a model that was sent, as long as this worker lives."""
    folder = Path(worker.local_directory) / "models" / ticket.digest
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((WEIGHTS, weights), (CARD, card)):
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(folder / name)
    _SENT[ticket.digest] = folder


_SENT: Final[dict[str, Path]] = {}
"""Digest -> where this process keeps the model that was sent."""
_MODELS: Final[dict[tuple[str, str], Model]] = {}
"""(digest, device) -> a model of a run that this process takes part in; the last few are kept."""
_JOINED: Final[set[tuple[str, str]]] = set()
"""(digest, device) of all runs that this process has joined."""
_LOADING: Final = threading.Lock()


def load(ticket: ModelTicket, device: str) -> Model:
    """The very model, loaded once a process; raises NeedsModelError where it is nowhere to be found."""
    with _LOADING:
        if (ticket.digest, device) not in _MODELS:
            model = _find(ticket, device)
            while len(_MODELS) >= MODELS:
                del _MODELS[next(iter(_MODELS))]
            _MODELS[ticket.digest, device] = model
        return _MODELS[ticket.digest, device]


def _find(ticket: ModelTicket, device: str) -> Model:
    there = Path(ticket.folder)
    for folder in (there, ZOO / there.name, _SENT.get(ticket.digest)):
        with contextlib.suppress(OSError, ModelError):
            if folder is not None and model_digest(folder) == ticket.digest:
                return load_model(folder, device)
    raise NeedsModelError


def joined(ticket: ModelTicket, device: str) -> Model:
    """The model, on a worker that has joined; loaded again where other runs took its place meanwhile."""
    if (ticket.digest, device) not in _JOINED:
        raise NotJoinedError("the worker was not asked yet whether it fits this run")
    try:
        return load(ticket, device)
    except NeedsModelError:
        raise NotJoinedError("the worker has lost the model that was sent to it") from None


def plan_here(network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes, _: Worker) -> Plan:
    """`make_plan` in this worker's memory and on its device; raises RequestError as it does."""
    return make_plan(network, image, full_cores, best_window, wishes)


def take_turn(task: partial[Any], *, alone: bool) -> Any:
    """Does a task, one of those below; `alone`: while no other runs in this process.

    The client is told before, so that it knows who was at work where a worker dies.
    """
    with _FLOOR.taken(alone=alone):
        _tell_begun(task.args[0], alone=alone)
        return task()


def _tell_begun(order: Order, *, alone: bool) -> None:
    worker = get_worker()
    begun = [order.name, "begun", str(worker.get_current_task()), alone or worker.state.nthreads == 1]
    # Not by Worker.log_event: that waits in a queue for a moment, and would be lost where the worker dies at once.
    with contextlib.suppress(OSError):
        sync(worker.loop, worker.scheduler.log_event, topic=order.topic, msg=begun)


class _Floor:
    """Taken by any number of tasks at once, or by one alone."""

    def __init__(self) -> None:
        self._takers = 0
        self._reserved = False
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, *, alone: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._reserved)
            self._reserved = alone
            self._changed.wait_for(lambda: not (alone and self._takers))
            self._takers += 1
        try:
            yield
        finally:
            with self._changed:
                self._takers -= 1
                self._reserved = self._reserved and not alone
                self._changed.notify_all()


_FLOOR: Final = _Floor()


def predict_piece(order: Order, blocks: Sequence[Box]) -> Piece:
    """Labels some blocks and stores them, telling the scheduler of each; blocks that were noted meanwhile are left out.

    Stops early, with what it has, where nobody waits for it any more or its canvas was replaced by another.
    """
    torch.set_num_threads(order.threads)
    worker, key = get_worker(), get_worker().get_current_task()
    job, canvas, clock, steps_down = _job(order), _canvas(order), Clock(), list[str]()
    noted, stored, values = canvas.noted(), dict[Box, int](), class_values(job)
    missing = [block for block in blocks if block not in noted]
    tissue = _tissue(order, job) if job.searches_tissue and missing else None

    def store(block: Box, prediction: Prediction) -> bool:
        if _given_up(worker, key) or not canvas.is_current():
            return False
        stored[block] = canvas.store(block, prediction.labels(values, NODATA), layer_values(prediction, canvas.layers))
        if not job.source.damage:  # which has to be told first: then the block waits for the end of the piece
            worker.log_event(
                order.topic, [order.name, "stored", block.y, block.x, block.height, block.width, stored[block]]
            )
        return True

    predictor = open_predictor(job, steps_down.append)
    with closing(predictor.predict_blocks(job.view, job.grid, missing, store, tissue=tissue, clock=clock)) as stores:
        all(stores)
    peak = peak_memory(torch.device(order.plan.device))
    return Piece(stored, peak, clock.seconds, tuple(steps_down), job.source.damage)


def finish_labels(order: Order) -> list[Box]:
    """Checks every block and adds the coarser levels; or says which blocks are not on the disk as they were stored."""
    canvas = _canvas(order)
    give_up_at = time.monotonic() + SETTLING
    damaged = canvas.damaged()
    while damaged:
        if time.monotonic() > give_up_at:
            return damaged
        time.sleep(1)
        damaged = canvas.damaged(damaged)
    canvas.finish()
    return []


def find_seams(order: Order) -> SeamRecord | None:
    """Whether the borders of windows show in the published labels."""
    return look_for_seams(_job(order), _labels(order))


def export(order: Order, exports: Sequence[str]) -> list[str]:
    """Makes exports from the published labels; returns the names of the files."""
    return export_labels(_job(order), _labels(order), exports)


def _labels(order: Order) -> Labels:
    """The published labels, as soon as they are seen here."""
    path = Path(order.folder) / LABELS
    give_up_at = time.monotonic() + SETTLING
    while True:
        with contextlib.suppress(ImageError):
            labels = Labels.open(path)
            if labels.fingerprint == order.fingerprint:
                return labels
        if time.monotonic() > give_up_at:
            raise ImageError(f"{path}: a worker does not see the labels that were published; look at the file system")
        time.sleep(1)


def _given_up(worker: Worker, key: Any) -> bool:
    """Whether the scheduler has taken this task back while it ran: cancelled, or its client is gone."""
    task = worker.state.tasks.get(key)
    return task is None or task.state != "executing"


def _canvas(order: Order) -> Canvas:
    canvas: Canvas = pickle.loads(order.canvas)  # written by our own client, like every task of Dask
    return canvas


class _Open(threading.local):
    """The images that a thread has open: readers are not shared between pieces that run at once."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}


_OPEN: Final = _Open()


def _job(order: Order) -> Job:
    """The client's job, put together again from the files that this worker sees."""
    jobs = _OPEN.jobs
    if order.name not in jobs:
        while len(jobs) >= JOBS:
            jobs.pop(next(iter(jobs))).source.close()
        jobs[order.name] = _reopened(order)
    return jobs[order.name]


def _reopened(order: Order) -> Job:
    path = order.image
    if not storage.is_url(path) and not Path(path).exists():
        raise ImageError(f"{path}: worker {socket.gethostname()} does not see it; every worker needs the same path")
    found = storage.size(path)
    if found is not None and found != order.file_size:
        raise ImageError(f"{path}: worker {socket.gethostname()} sees another file there, of {found} bytes")
    model = joined(order.ticket, torch.device(order.plan.device).type)
    source = open_image(order.image, bands=order.options.bands, strict=order.options.strict)
    view = open_view(source, model, order.options)
    if view.size != order.size:
        raise ImageError(f"{path}: worker {socket.gethostname()} reads it as {view.size}, the client as {order.size}")
    plan = order.plan
    grid = Grid.over(view.size, plan.window, plan.overlap, model.network.encoder.config.patch)
    return Job(source, model, view, plan, grid, Path(order.folder), order.options, order.request, order.fingerprint)


_TISSUE: Final[dict[str, TissueMask]] = {}
_LOOKING: Final = threading.Lock()


def _tissue(order: Order, job: Job) -> TissueMask:
    """Found once a process for each image; the last few are kept."""
    with _LOOKING:
        if order.name not in _TISSUE:
            while len(_TISSUE) >= 2 * JOBS:
                del _TISSUE[next(iter(_TISSUE))]
            _TISSUE[order.name] = tissue_mask(job.view)
        return _TISSUE[order.name]
