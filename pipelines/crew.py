"""Which workers of a cluster take part in a run: each is asked before it gets work, and those that cannot are told."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import cloudpickle
import torch
from distributed import Client

from pipelines import worker
from pipelines.cluster import called, local_processes
from pipelines.device import format_bytes, resident
from pipelines.errors import RequestError
from pipelines.job import Options, versions
from pipelines.planner import SHARE, Plan, Wishes
from pipelines.progress import Report
from pipelines.worker import Call, Member, ModelTicket, NeedsModelError, UnfitError
from tiling import Size, storage
from veca_core import Model, ModelError
from veca_core.memory import NetworkSize
from veca_core.weights import CARD, WEIGHTS, model_digest

DASK_SHARE: Final = 0.7
"""Of a worker's memory limit: Dask gives it no more work at 0.8 (`distributed.worker.memory.pause`)."""
WAIT: Final = 600.0
"""Seconds to wait for the first worker."""


class Crew:
    """The workers that are there, as far as they have been asked."""

    def __init__(
        self, client: Client, model: Model, options: Options, out: Path, images: Sequence[str | Path], report: Report
    ) -> None:
        self.client = client
        self.options = options
        self.report = report
        self.address = str(options.dask)
        self.local = local_processes(self.address)
        self.threads = options.threads or (max(1, torch.get_num_threads() // self.local) if self.local else 1)
        """torch threads of each piece of work."""
        self.ticket = ModelTicket(str(model.folder.absolute()), model.digest)
        self.members: dict[str, Member] = {}
        """By address: the workers that take part."""
        self.unfit: dict[str, str] = {}
        """By address: the workers that do not, and why."""
        self._call = Call(
            versions=versions(),
            ticket=self.ticket,
            device=options.device,
            out=str(out.absolute()),
            inputs=_folders(images),
        )
        self._looking = threading.Lock()

    @property
    def device(self) -> str:
        """'cpu' or 'cuda'; the same for all, because their results would differ otherwise."""
        return self._call.device

    @property
    def slots(self) -> int:
        """Pieces of work that are done at once."""
        return sum(member.threads for member in self.members.values())

    @property
    def gone(self) -> str:
        """What to say where the scheduler is gone."""
        command = "the same command without --overwrite" if self.options.overwrite else "the same command"
        return f"the Dask scheduler at {self.address} is gone; {command} goes on from here when it is back"

    def assemble(self) -> None:
        """Waits for the first workers; raises RequestError where none come, or none of them can take part."""
        started = told = time.monotonic()
        while not self._addresses():
            if time.monotonic() - started > WAIT:
                raise RequestError(f"no worker has joined the scheduler at {self.address} for {WAIT / 60:.0f} minutes")
            if told == started:
                told = time.monotonic()
                self.report(f"waiting for a worker to join the scheduler at {self.address}")
            time.sleep(0.2)
        self.look()
        if not self.members:
            reason, count = Counter(self.unfit.values()).most_common(1)[0]
            among = f"{count} of its {len(self.unfit)} workers say" if count < len(self.unfit) else "each says"
            raise RequestError(f"no worker of {self.address} can take part; {among}: {reason}")
        self.report(
            f"{len(self.members)} workers take part, {self.slots} pieces at once on {self.device}, "
            f"{format_bytes(min(map(self._room, self.members)))} each"
        )

    def look(self) -> bool:
        """Asks workers that are new, forgets those that are lost; whether anything changed.

        Raises RequestError where the scheduler is gone.
        """
        with self._looking:
            here = self._addresses()
            lost = [address for address in (*self.members, *self.unfit) if address not in here]
            for address in lost:
                if self.members.pop(address, None):
                    self.report(f"worker {address} is lost; its work goes to others")
                self.unfit.pop(address, None)
            new = [address for address in here if address not in self.members and address not in self.unfit]
            if new:
                self._ask(new)
            return bool(new or lost)

    def only(self) -> frozenset[str] | None:
        """The workers that may be given work; None where all may."""
        return frozenset(self.members) if self.unfit and self.members else None

    def plan(self, network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes) -> Plan:
        """`make_plan` on the worker that has least, so that all can follow it."""
        while True:
            with self._looking:
                rooms = {address: self._room(address) for address in self.members}
                # bfloat16 and float32 give different results; every device has float32.
                slow = [address for address in rooms if self.members[address].precision == "float32"]
            if not rooms:
                self._wait_for_members()
                continue
            planner = min(slow or rooms, key=lambda address: rooms[address])
            memory = max(1, self.members[planner].held + min(rooms.values()))
            asked = replace(wishes, device=self.device, memory=memory)
            answer = self._run(worker.plan_here, network, image, full_cores, best_window, asked, among=[planner])
            plan = answer.get(planner)
            if isinstance(plan, Plan):
                return plan
            if isinstance(plan, Exception) and not isinstance(plan, OSError):
                raise plan
            self.look()

    def _wait_for_members(self) -> None:
        self.report("no worker is left; waiting for one")
        while not self.members:
            time.sleep(0.5)
            self.look()

    def _addresses(self) -> list[str]:
        try:
            if self.client.status not in ("running", "connecting"):
                raise OSError
            return list(self.client.nthreads())
        except (OSError, ValueError, TimeoutError) as error:
            raise RequestError(self.gone) from error

    def _ask(self, addresses: list[str]) -> None:
        answers = self._run(worker.join, self._call, among=addresses)
        needy = [address for address, answer in answers.items() if isinstance(answer, NeedsModelError)]
        if needy:
            self._send_model(needy)
            answers |= self._run(worker.join, self._call, among=needy)
        for address, answer in answers.items():
            if isinstance(answer, Member) and self._sees(answer.probe):
                self.members[address] = answer
            elif isinstance(answer, Member):
                self._run(worker.remove_probe, answer.probe, among=[address])
                self._refuse([address], f"its {self._call.out} is another folder; every worker must share it")
            elif not isinstance(answer, OSError):  # which says that it has gone meanwhile
                self._refuse([address], _reason(answer))
        self._agree_on_device()

    def _agree_on_device(self) -> None:
        """GPUs where there are any: a result must not depend on who made it."""
        if self._call.device == "auto" and self.members:
            found = {member.device for member in self.members.values()}
            self._call = replace(self._call, device="cuda" if "cuda" in found else "cpu")
        others = [address for address, member in self.members.items() if member.device != self._call.device]
        for address in others:
            del self.members[address]
        self._refuse(others, "it has no GPU, as others have; give --device cpu to use all of them without")

    def _refuse(self, addresses: Iterable[str], reason: str) -> None:
        for address in addresses:
            self.unfit[address] = reason
            self.report(f"worker {address} does not take part: {reason}")

    def _sees(self, probe: str) -> bool:
        """Whether a file that a worker left is seen here; removes it."""
        try:
            Path(probe).unlink()
        except FileNotFoundError:
            return False
        return True

    def _send_model(self, addresses: list[str]) -> None:
        folder = Path(self.ticket.folder)
        try:
            if model_digest(folder) != self.ticket.digest:
                raise ModelError(f"{folder} has changed since the model was loaded; start again")
            weights, card = ((folder / name).read_bytes() for name in (WEIGHTS, CARD))
        except OSError as error:
            raise RequestError(
                f"a model goes to workers as its folder, but {folder} holds none; save the model there first"
            ) from error
        self._run(worker.take_model, self.ticket, weights, card, among=addresses)

    def _room(self, address: str) -> int:
        """Bytes that a piece of work may take on a worker, beyond what the process holds."""
        member = self.members[address]
        sharing = sum(other.pool == member.pool for other in self.members.values())
        if self.options.memory and self.local:
            share = (self.options.memory - resident()) // self.local
        elif self.options.memory:
            share = self.options.memory
        elif member.limit:
            share = int(DASK_SHARE * member.limit)
        else:
            share = member.held + int(SHARE * member.free) // sharing
        return (share - member.held) // member.threads

    def _run(self, function: Any, *arguments: Any, among: list[str]) -> dict[str, Any]:
        """Calls a function on some workers at once, outside the queue of tasks; an answer may be an exception.

        The function gets the worker itself as its last argument.
        """
        task = cloudpickle.dumps(partial(function, *arguments))
        try:
            answers = self.client.run(called(), task, workers=among, on_error="return")
        except (OSError, ValueError, KeyError) as error:  # a worker or the scheduler went meanwhile
            return dict.fromkeys(among, OSError(str(error)))
        return {at: pickle.loads(answer) if isinstance(answer, bytes) else answer for at, answer in answers.items()}


def _reason(answer: Any) -> str:
    """Why a worker cannot take part, in one line."""
    if isinstance(answer, ModuleNotFoundError):
        return f"it has no {answer.name}; install veca there, the same version as here"
    if isinstance(answer, NeedsModelError):
        return "it cannot keep the model that was sent to it"
    words = " ".join(str(answer).split())
    return words if isinstance(answer, UnfitError) else f"{type(answer).__name__}: {words}"


def _folders(images: Sequence[str | Path]) -> tuple[str, ...]:
    """Where the images lie: only what is seen here can be asked of workers. An image elsewhere fails by itself."""
    folders = {Path(image).absolute().parent for image in images if not _is_address(image)}
    return tuple(sorted(str(folder) for folder in folders if folder.exists()))


def _is_address(image: object) -> bool:
    return storage.is_url(storage.restored(str(image)))
