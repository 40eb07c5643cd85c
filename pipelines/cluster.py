"""Reaching a Dask cluster: an address, a scheduler file or processes of this machine become a client."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from distributed import Client, LocalCluster

from pipelines.errors import RequestError

PATIENCE: Final = 10.0
"""Seconds that a scheduler has to answer."""
_ADDRESS: Final = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?(?:[\w.-]+|\[[0-9a-fA-F:.%]+\]):\d{1,5}/?")
_HOW: Final = "write tcp://host:8786, the path of a scheduler file, or local:4 for four processes of this machine"


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """A client of the cluster at `address`: 'tcp://host:port', a scheduler file, or 'local:N' for N processes here.

    Processes of this machine end with it; a cluster that was there before is left as it was found. Raises RequestError,
    in one line, where no scheduler can be reached.
    """
    if address.partition(":")[0] == "local":
        with _local(_count(address)) as client:
            yield client
        return
    place = address if _ADDRESS.fullmatch(address) else _scheduler_file(address)
    with _quiet():
        client = _open(place, address)
    try:
        yield client
    finally:
        with _quiet():
            client.close()


def local_processes(address: str) -> int | None:
    """How many processes of this machine an address asks for; None for any other cluster."""
    return _count(address) if address.partition(":")[0] == "local" else None


# What follows is made inside functions, so that it travels by value; and carries everything else as bytes. So the
# scheduler, which unpickles what it passes on, needs no veca.


def carried() -> Callable[[bytes], Any]:
    """A function for `Client.submit`: runs a pickled task."""

    def carry(task: bytes) -> Any:
        import pickle

        return pickle.loads(task)()

    return carry


def called() -> Callable[[bytes, Any], Any]:
    """A function for `Client.run`: runs a pickled task with the worker, beside the worker's own event loop.

    Its answer is pickled, and is the exception where the task raised one.
    """

    async def call(task: bytes, dask_worker: Any) -> bytes:
        import asyncio
        import pickle

        def run() -> bytes:
            try:
                return pickle.dumps(pickle.loads(task)(dask_worker))
            except Exception as error:
                return pickle.dumps(error)

        return await asyncio.to_thread(run)

    return call


def _count(address: str) -> int:
    number = address.partition(":")[2]
    if not number.isdecimal() or int(number) == 0:
        raise RequestError(f"cannot read {address!r} as a number of processes; write local:4")
    return int(number)


@contextmanager
def _local(count: int) -> Iterator[Client]:
    """One Dask thread a process; nothing listens but on 127.0.0.1. Memory is bounded by the plan, not by Dask."""
    with tempfile.TemporaryDirectory(prefix="veca-", ignore_cleanup_errors=True) as scratch:
        with _quiet():
            try:
                cluster = LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    memory_limit=0,
                    local_directory=scratch,
                    silence_logs=logging.CRITICAL,
                )
            except (OSError, RuntimeError) as error:
                why = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise RequestError(f"cannot start {count} processes here ({why}); ask for fewer") from error
            client = Client(cluster, name="veca")
        try:
            client.run(_leave_interrupts_to_the_client)
            yield client
        finally:
            with _quiet():
                client.close()
                cluster.close()


def _leave_interrupts_to_the_client() -> None:
    """A Ctrl-C in a terminal reaches every process; only the one that was called may act on it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _scheduler_file(path: str) -> str:
    """The address in a file that `dask scheduler --scheduler-file` wrote."""
    if not Path(path).is_file():
        raise RequestError(f"--dask {path!r} is neither a file nor an address; {_HOW}")
    try:
        address = json.loads(Path(path).read_bytes())["address"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path} is no scheduler file; give the one that `dask scheduler --scheduler-file` writes"
        ) from error
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise RequestError(f"{path} names no address of a scheduler, but {address!r}; start the scheduler again")
    return address


def _open(place: str, asked: str) -> Client:
    try:
        return Client(place, timeout=PATIENCE, name="veca")
    except (OSError, ValueError, TypeError) as error:
        where = place if place == asked else f"{place} (from {asked})"
        raise RequestError(
            f"no Dask scheduler answers at {where}; is it running, and can this machine reach it?"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Dask's own words about versions and ports: what matters of them is checked and said by us."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"distributed\b.*")
        warnings.filterwarnings("ignore", category=ResourceWarning)
        yield
