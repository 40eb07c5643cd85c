"""One image's dealings with a cluster: tasks out, answers and finished blocks in, as many at once as a gate lets in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final
from uuid import uuid4

import cloudpickle
from distributed import CancelledError, Client, Future, KilledWorker

from pipelines.cluster import carried
from pipelines.crew import Crew
from pipelines.errors import RequestError
from pipelines.worker import NotJoinedError, take_turn
from tiling import Box, ImageError

Task = partial[Any]
ATTEMPTS: Final = 20
"""How often a task may land on a worker that has not joined, or be lost with workers that others ended."""

_DEADLY: Final = (
    "workers died at the same blocks, {} in turn; if they ran out of memory, give them less to do at once (--memory, "
    "or fewer threads a worker)"
)


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
    begun: list[bool] = field(default_factory=list)
    """For each worker that began it: whether it was alone there."""
    alone: bool = False
    """Whether nothing may run beside it: it may be what ends workers."""


class Desk:
    """Used by the one thread that looks after an image; `hear_...` and `wake` are called by others."""

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
        self._inbox: SimpleQueue[Future[Any] | dict[Box, int] | _Begun | None] = SimpleQueue()
        self._pending: dict[str, _Sent] = {}

    def hear_stored(self, stored: dict[Box, int]) -> None:
        """A worker has stored blocks."""
        self._inbox.put(stored)

    def hear_begun(self, key: str, alone: bool) -> None:
        """A worker has begun a task, and runs nothing else meanwhile, or may."""
        self._inbox.put(_Begun(key, alone))

    def wake(self) -> None:
        """Something has changed: the workers that are there, or the run is over."""
        self._inbox.put(None)

    def ask(self, tasks: Iterable[Task], *, gated: bool = True) -> Iterator[Any]:
        """The answers to all tasks, as they come; raises what a task raised.

        Where a worker is lost, Dask has another do its task. Of those that are lost with several workers in turn, one
        that was at work alone each time fails; others are sent again.
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
                    try:
                        answer = _answer(future, sent)
                    except Exception as error:
                        self._excuse(sent, error)
                        waiting.append(sent)
                    else:
                        yield answer

    def close(self) -> None:
        """Takes back what nobody waits for any more."""
        futures = [self._taken_back(key).future for key in list(self._pending)]
        if futures:
            with suppress(OSError):  # the scheduler may be gone
                self.client.cancel(futures, force=True)

    def _send(self, sent: _Sent) -> None:
        sent.only, sent.begun = self.crew.only(), []
        name = f"veca-{sent.task.func.__name__}-{uuid4().hex}"
        sent.future = self.client.submit(
            carried(),
            cloudpickle.dumps(partial(take_turn, sent.task, alone=sent.alone)),
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
        for message in came:
            if isinstance(message, _Begun) and message.key in self._pending:
                self._pending[message.key].begun.append(message.alone)
        return [message for message in came if not isinstance(message, dict | _Begun)]

    def _excuse(self, sent: _Sent, error: Exception) -> None:
        """Readies a task for another try; raises what went wrong, where that is no fault of others."""
        if isinstance(error, CancelledError):  # and not by us
            self.gate.check()
            raise RequestError(self.crew.gone) from error
        if isinstance(error, KilledWorker):
            sent.alone = sent.alone or bool(sent.begun)
        if sent.attempts < ATTEMPTS and _is_excused(sent.begun, error):
            sent.attempts += 1
            self.crew.look()
        elif isinstance(error, KilledWorker):
            raise ImageError(_DEADLY.format(error.allowed_failures + 1)) from error
        else:
            raise error

    def _stranded(self) -> list[str]:
        """Tasks that only workers may do which are all gone, while others are there."""
        here = self.crew.only() or frozenset(self.crew.members)
        return [key for key, sent in self._pending.items() if here and sent.only and not sent.only & here]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A worker's word that the turn of a task has come."""

    key: str
    alone: bool
    """Whether nothing runs beside it in that process."""


def _answer(future: Future[Any], sent: _Sent) -> Any:
    """What a task gave; raises what it raised."""
    if future.status == "finished":
        sent.begun = []  # should the answer be lost with a worker, then others ended that
    return future.result()


def _is_excused(begun: Sequence[bool], error: Exception) -> bool:
    """Whether the task need not be what went wrong: the worker had not joined yet, or others may have ended it.

    Dask blames all that lost workers had, also what waited there or ran beside. `begun`: on which of them the task had
    begun, and whether alone.
    """
    if isinstance(error, KilledWorker):
        return len(begun) <= error.allowed_failures or not all(begun)
    return isinstance(error, NotJoinedError | ImportError)
