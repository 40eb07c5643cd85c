"""Runs a function in a process whose peak of memory is its own."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any


def apart(function: Callable[..., Any], *given: Any) -> Any:
    """What a function returns, as JSON has it, in a fresh copy of this process: its peak starts at what that holds.

    Copies share the imports. Threads are not copied, so torch must have one only.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.write(writing, json.dumps(function(*given)).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    os.wait()
    if not said:
        raise RuntimeError("the process that measures died")
    return json.loads(said)
