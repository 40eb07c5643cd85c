"""One image's dealings with a cluster: tasks out, answers and finished blocks in, as many at once as a gate lets in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final
from uuid import uuid4

import cloudpickle
from distributed import Client, Future, KilledWorker

from pipelines.cluster import carried
from pipelines.crew import Crew
from pipelines.errors import RequestError
from pipelines.worker import NotJoinedError
from tiling import Box, ImageError

Task = partial[Any]
ATTEMPTS: Final = 20
"""How often a task may land on a worker that has not joined."""


class Gate:
    """Lets a bounded number in; whoever comes later waits until another leaves."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self.closed: str | None = None
        """Why nobody is let in any more."""
        self._turn = threading.Condition()

    def enter(self, *, wait: bool) -> bool:
        """Whether one was let in; raises RequestError where the gate is closed."""
        with self._turn:
            self._turn.wait_for(lambda: self.closed or not wait or self.inside < self.limit)
            self.check()
            if self.inside >= self.limit:
                return False
            self.inside += 1
            return True

    def leave(self) -> None:
        with self._turn:
            self.inside -= 1
            self._turn.notify()

    def resize(self, limit: int) -> None:
        with self._turn:
            self.limit = limit
            self._turn.notify_all()

    def close(self, why: str) -> None:
        """Wakes all who wait; the first reason stays."""
        with self._turn:
            self.closed = self.closed or why
            self._turn.notify_all()

    def check(self) -> None:
        """Raises RequestError where the gate is closed."""
        if self.closed:
            raise RequestError(self.closed)


@dataclass(slots=True)
class _Sent:
    """A task on its way."""

    task: Task
    gated: bool
    future: Future[Any] | None = None
    only: frozenset[str] | None = None
    """The workers that may do it; None: any."""
    attempts: int = 0


class Desk:
    """Used by the one thread that looks after an image; `hear` and `wake` are called by others."""

    def __init__(
        self, client: Client, crew: Crew, gate: Gate, priority: int, note: Callable[[dict[Box, int]], None]
    ) -> None:
        self.client = client
        self.crew = crew
        self.gate = gate
        self.priority = priority
        """Of its tasks: those of images that were opened earlier come first."""
        self.note = note
        """Called with the blocks that workers have stored."""
        self._inbox: SimpleQueue[Future[Any] | dict[Box, int] | None] = SimpleQueue()
        self._pending: dict[str, _Sent] = {}

    def hear(self, stored: dict[Box, int]) -> None:
        """A worker has stored blocks."""
        self._inbox.put(stored)

    def wake(self) -> None:
        """Something has changed: the workers that are there, or the run is over."""
        self._inbox.put(None)

    def ask(self, tasks: Iterable[Task], *, gated: bool = True) -> Iterator[Any]:
        """The answers to all tasks, as they come; raises what a task raised.

        Where a worker is lost, Dask has another do its task.
        """
        waiting = [_Sent(task, gated) for task in tasks][::-1]
        while waiting or self._pending:
            while waiting and (not gated or self.gate.enter(wait=not self._pending)):
                self._send(waiting.pop())
            for future in self._news():
                if future is None:
                    self.gate.check()
                    waiting += [self._taken_back(key) for key in self._stranded()]
                elif future.key in self._pending:
                    sent = self._taken_back(future.key)
                    if self._failed_to_start(future, sent):
                        waiting.append(sent)
                    else:
                        yield future.result()

    def close(self) -> None:
        """Takes back what nobody waits for any more."""
        futures = [self._taken_back(key).future for key in list(self._pending)]
        if futures:
            with suppress(OSError):  # the scheduler may be gone
                self.client.cancel(futures, force=True)

    def _send(self, sent: _Sent) -> None:
        sent.only = self.crew.only()
        name = f"veca-{sent.task.func.__name__}-{uuid4().hex}"
        sent.future = self.client.submit(
            carried(),
            cloudpickle.dumps(sent.task),
            key=name,
            pure=False,
            priority=self.priority,
            workers=sorted(sent.only) if sent.only else None,
        )
        self._pending[name] = sent
        sent.future.add_done_callback(self._inbox.put)

    def _taken_back(self, key: str) -> _Sent:
        sent = self._pending.pop(key)
        if sent.gated:
            self.gate.leave()
        return sent

    def _news(self) -> list[Future[Any] | None]:
        """What has come in, at least one thing; blocks are noted together."""
        came = [self._inbox.get()]
        with suppress(Empty):
            while True:
                came.append(self._inbox.get_nowait())
        stored = {box: crc for message in came if isinstance(message, dict) for box, crc in message.items()}
        if stored:
            self.note(stored)
        return [message for message in came if not isinstance(message, dict)]

    def _failed_to_start(self, future: Future[Any], sent: _Sent) -> bool:
        """Whether a task met a worker that has not joined; it may by now. Raises what else went wrong."""
        if future.status == "error":
            error = future.exception()
            if isinstance(error, NotJoinedError | ImportError) and sent.attempts < ATTEMPTS:
                sent.attempts += 1
                self.crew.look()
                return True
            if isinstance(error, KilledWorker):
                raise ImageError(
                    "several workers in turn died at the same blocks; if they ran out of memory, give them less to do "
                    "at once (--memory, or fewer threads a worker)"
                )
            raise error
        if future.status != "finished":  # cancelled, and not by us
            self.gate.check()
            raise RequestError(self.crew.gone)
        return False

    def _stranded(self) -> list[str]:
        """Tasks that only workers may do which are all gone, while others are there."""
        here = self.crew.only() or frozenset(self.crew.members)
        return [key for key, sent in self._pending.items() if here and sent.only and not sent.only & here]
