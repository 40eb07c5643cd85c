"""Room for the reader in the plan: files without tiles are decoded whole, or a strip as wide as the image at a time."""

from __future__ import annotations

from dataclasses import replace

from pipelines.device import format_bytes
from pipelines.errors import RequestError
from pipelines.planner import READING, Plan, Planner, Reading, Wishes
from tiling import Size, Source
from veca_core.memory import NetworkSize


def reading_of(source: Source) -> Reading:
    """What reading a source takes."""
    return Reading(source.dtype.itemsize, max(0, source.working_bytes - READING))


def plan_with_room(
    source: Source, planner: Planner, network: NetworkSize, image: Size, cores: int, window: int, wishes: Wishes
) -> Plan:
    """What `planner` chooses; where the reader of this source is what leaves too little memory, RequestError says so:
    the file can then only be read after it was converted.
    """
    try:
        return planner(network, image, cores, window, wishes)
    except RequestError as error:
        beyond = wishes.reading.beyond
        if not beyond:
            raise
        # Where the reader is not what is in the way, this says what is.
        light = replace(wishes, reading=replace(wishes.reading, beyond=0))
        without = planner(network, image, cores, window, light)
        allowed = without.memory if without.device == "cpu" else without.host_memory
        raise RequestError(
            f"{source.path} has no small tiles: reading it takes {format_bytes(beyond)} of the "
            f"{format_bytes(allowed)} allowed, and what is left is too little; allow more with --memory, or "
            f"convert it to a tiled TIFF, e.g. vips tiffsave IN OUT --tile --pyramid --compression deflate"
        ) from error
