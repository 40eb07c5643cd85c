"""Runs images on a Dask cluster: pieces of many images interleaved, a bounded number of them in flight.

The client decides, notes finished blocks and publishes; workers predict, store blocks and export (`pipelines.worker`).
Results are those of a local run with the same plan, to the byte.
"""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from distributed import Client

from pipelines import damage, worker
from pipelines.bundle import SeamRecord
from pipelines.cluster import connect
from pipelines.crew import Crew
from pipelines.desk import Desk, Gate
from pipelines.errors import RequestError
from pipelines.job import Job, Options
from pipelines.planner import Plan, Wishes
from pipelines.progress import Clock, Report
from pipelines.worker import Order, Piece
from tiling import Box, ImageError, Size, storage
from tiling.canvas import Canvas
from veca_core import Model
from veca_core.memory import NetworkSize

AHEAD: Final = 2
"""Pieces in flight for each one that the workers do at once: one runs, one waits for it to end."""
SPREAD: Final = 4
"""Pieces that the images left make, at least, for each one that the workers do at once."""
SIDES: Final = (8, 4, 2)
"""Side of a piece in blocks, if not 1. Larger pieces run fewer windows twice, where windows reach over their edges."""
OPEN_IMAGES: Final = 64
"""Images that are under way at once, at most."""
LOOK_EVERY: Final = 1.0
"""Seconds between looks at which workers there are."""
ROUNDS: Final = 3
"""How often blocks are done that were not on the disk afterwards."""
Tick = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def hire(model: Model, options: Options, out: Path, images: Sequence[Any], report: Report) -> Iterator[Team]:
    """The workers at `options.dask`, ready for this model, these images and this folder of results.

    Raises RequestError where there is no cluster, or where none of its workers can take part.
    """
    assert options.dask is not None, "only runs on a cluster hire"
    if options.device.startswith("cuda:"):
        raise RequestError(
            f"{options.device} names a GPU of one machine; with --dask give cuda: each worker uses its own"
        )
    if not all(isinstance(image, str | Path) for image in images):
        raise RequestError("an array cannot be sent to a cluster; save it as an image or a Zarr array first")
    out.mkdir(parents=True, exist_ok=True)
    with connect(options.dask) as client:
        crew = Crew(client, model, options, out, images, report)
        crew.assemble()
        team = Team(client, crew, len(images))
        with team:
            yield team


class Team:
    """Workers that have joined a run, and the images that they are busy with."""

    def __init__(self, client: Client, crew: Crew, images: int) -> None:
        self.client = client
        self.crew = crew
        self.gate = Gate(self._limit())
        self.topic = f"veca-{uuid.uuid4().hex}"
        self.left = images
        """Images that are not done."""
        self.opened = 0
        self.desks: dict[str, Desk] = {}
        self._progress: dict[object, tuple[int, int]] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="veca-watch", daemon=True)

    def __enter__(self) -> Team:
        self.client.subscribe_topic(self.topic, self._hear)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("the run is over")
        self._watcher.join()
        with suppress(Exception):  # the scheduler may be gone, and the client closed: nothing is left to be told
            self.client.unsubscribe_topic(self.topic)

    @property
    def device(self) -> str:
        """'cpu' or 'cuda': what the workers compute on."""
        return self.crew.device

    def plan(self, network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes) -> Plan:
        """`make_plan` within a worker's share."""
        self.gate.check()
        return self.crew.plan(network, image, full_cores, best_window, wishes)

    def voice(self, name: str, report: Report) -> Report:
        """`report` for one of many images that are under way at once: says of which."""
        return lambda line: report(f"{name}: {line}")

    def share_of(self, tick: Tick) -> Tick:
        """A `tick` for one image; the one that is given is told of all images together."""
        image = object()

        def tell(done: int, total: int) -> None:
            with self._lock:
                self._progress[image] = done, total
                sums = [sum(column) for column in zip(*self._progress.values(), strict=True)]
            tick(*sums)

        return tell

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """function(item) for each item, many at once, in threads; the answers in the order of the items."""
        with ThreadPoolExecutor(min(OPEN_IMAGES, max(2, 2 * self.crew.slots)), "veca-image") as pool:
            answers = [pool.submit(self._one, function, item) for item in items]
            try:
                return [answer.result() for answer in answers]
            except BaseException:
                self.stop("the run was stopped")
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def stop(self, why: str) -> None:
        """Takes back what is in flight and wakes whoever waits for it."""
        self._over.set()
        self.gate.close(why)
        for desk in list(self.desks.values()):
            desk.wake()

    def fill(self, job: Job, canvas: Canvas, tick: Tick, stepped_down: Report, clock: Clock) -> int:
        """Has the missing blocks done and the pyramid built; returns the largest peak memory of a worker, in bytes.

        The clock is told how the workers spent their time, all of them together.
        """
        missing = [block for block in canvas.blocks if not canvas.is_done(block)]
        done, total, peak = job.blocks - len(missing), job.blocks, 0
        order, told = self._order(job, canvas), set[str]()

        def note(stored: dict[Box, int]) -> None:
            fresh = {box: crc for box, crc in stored.items() if not canvas.is_done(box)}
            if fresh:
                nonlocal done
                canvas.note(fresh)
                done += len(fresh)
                tick(done, total)

        with self._desk(order, note) as desk:
            for _ in range(ROUNDS):
                pieces = self._cut(missing, job.plan.block)
                for piece in desk.ask([partial(worker.predict_piece, order, blocks) for blocks in pieces]):
                    assert isinstance(piece, Piece)
                    job.source.note_damage(piece.damage)
                    damage.remember(job.source, job.folder, job.fingerprint)
                    note(piece.stored)
                    peak = max(peak, piece.peak)
                    clock.add(piece.seconds)
                    for line in piece.steps_down:
                        if line not in told:  # each piece begins with the whole batch
                            told.add(line)
                            stepped_down(line)
                missing = [box for box in missing if not canvas.is_done(box)]
                if not missing:
                    missing = next(desk.ask([partial(worker.finish_labels, order)], gated=False))
                    if not missing:
                        return peak
                    canvas.forget(missing)
                    done -= len(missing)
        raise ImageError(
            f"{job.folder}: {len(missing)} blocks that workers stored cannot be read back, the first at {missing[0]}; "
            "do all workers share the folder of the results?"
        )

    def look_for_seams(self, job: Job) -> SeamRecord | None:
        """Has the published labels looked at."""
        found: SeamRecord | None = self._ask(job, worker.find_seams)
        return found

    def export(self, job: Job, exports: Sequence[str]) -> list[str]:
        """Has the exports made; returns the names of the files."""
        return list(self._ask(job, worker.export, exports))

    def _ask(self, job: Job, function: Callable[..., Any], *arguments: object) -> Any:
        """The answer to a single task about a job whose labels are published."""
        order = self._order(job, None)
        with self._desk(order, lambda _: None) as desk:
            return next(desk.ask([partial(function, order, *arguments)], gated=False))

    def _one(self, function: Callable[[Item], Result], item: Item) -> Result:
        try:
            return function(item)
        finally:
            with self._lock:
                self.left -= 1

    def _order(self, job: Job, canvas: Canvas | None) -> Order:
        path = storage.absolute(job.source.path)
        size = storage.size(path)
        return Order(
            name=uuid.uuid4().hex,
            image=path,
            file_size=-1 if size is None else size,
            size=job.view.size,
            ticket=self.crew.ticket,
            folder=str(job.folder.absolute()),
            options=job.options,
            plan=job.plan,
            request=job.request,
            fingerprint=job.fingerprint,
            canvas=pickle.dumps(canvas) if canvas else b"",
            threads=self.crew.threads,
            topic=self.topic,
        )

    def _cut(self, missing: Sequence[Box], block: int) -> list[list[Box]]:
        """Squares of blocks, as large as leaves every worker enough to do."""
        for side in SIDES:
            pieces = cut(missing, block * side)
            if len(pieces) * self.left >= SPREAD * self.crew.slots:
                return pieces
        return cut(missing, block)

    @contextmanager
    def _desk(self, order: Order, note: Callable[[dict[Box, int]], None]) -> Iterator[Desk]:
        with self._lock:
            self.opened += 1
            desk = Desk(self.client, self.crew, self.gate, priority=-self.opened, note=note)
            self.desks[order.name] = desk
        try:
            yield desk
        finally:
            desk.close()
            with self._lock:
                del self.desks[order.name]

    def _hear(self, event: tuple[float, tuple[Any, ...]]) -> None:
        """A worker has begun a task or stored a block; runs in the client's event loop, so it only passes that on."""
        name, kind, *what = event[1]
        desk = self.desks.get(name)
        if desk is None:
            return
        if kind == "begun":
            desk.hear_begun(*what)
        else:
            y, x, height, width, crc = what
            desk.hear_stored({Box(y, x, height, width): crc})

    def _watch(self) -> None:
        """Looks who is there, until the run is over; tells everybody where the scheduler is gone."""
        while not self._over.wait(LOOK_EVERY):
            try:
                changed = self.crew.look()
            except RequestError as error:
                self.stop(str(error))
                return
            if changed:
                self.gate.resize(self._limit())
                for desk in list(self.desks.values()):
                    desk.wake()

    def _limit(self) -> int:
        return max(2, AHEAD * self.crew.slots)


def cut(blocks: Sequence[Box], side: int) -> list[list[Box]]:
    """Groups blocks that lie in the same square of `side` pixels; their order stays, row by row."""
    squares: dict[tuple[int, int], list[Box]] = {}
    for box in blocks:
        squares.setdefault((box.y // side, box.x // side), []).append(box)
    return list(squares.values())
