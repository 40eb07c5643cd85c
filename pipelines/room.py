"""Room for the reader in the plan: files without tiles are decoded whole, or a strip as wide as the image at a time."""

from __future__ import annotations

from dataclasses import replace

from pipelines.device import format_bytes
from pipelines.errors import RequestError
from pipelines.planner import READING, Plan, Planner, Wishes
from tiling import Size, Source
from veca_core.memory import NetworkSize


def plan_with_room(
    source: Source, planner: Planner, network: NetworkSize, image: Size, cores: int, window: int, wishes: Wishes
) -> Plan:
    """What `planner` chooses, where the memory must also hold what the source needs beyond what every plan allows it.

    Raises RequestError where that leaves too little: the file can then only be read after it was converted.
    """
    plan = planner(network, image, cores, window, wishes)
    reading = max(0, source.working_bytes - READING)
    if not reading or plan.device != "cpu":
        return plan
    if plan.predicted + reading > plan.memory:
        try:
            left = planner(network, image, cores, window, replace(wishes, memory=max(1, plan.memory - reading)))
        except RequestError as error:
            raise RequestError(
                f"{source.path} has no small tiles: reading it takes {format_bytes(reading)} of the "
                f"{format_bytes(plan.memory)} allowed, and what is left is too little; allow more with --memory, or "
                f"convert it to a tiled TIFF, e.g. vips tiffsave IN OUT --tile --pyramid --compression deflate"
            ) from error
        plan = replace(left, memory=plan.memory)
    return replace(plan, predicted=plan.predicted + reading)
