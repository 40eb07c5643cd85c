"""Tiles of an image that could not be decoded: remembered beside an unfinished result, and told in a finished one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipelines.bundle import Bundle, DamageRecord
from pipelines.errors import RequestError
from tiling import Box, ImageError, Source
from tiling.damage import Damage

FILE: Final = "damage.json"
"""Of a run that is not finished."""


def remember(source: Source, folder: Path, fingerprint: str) -> None:
    """Leaves what was found damaged beside an unfinished result: whoever goes on does not read those blocks again."""
    if not source.damage:
        return
    content = {"fingerprint": fingerprint, "damage": [record.model_dump(mode="json") for record in records(source)]}
    partial = folder / f".{FILE}.{os.getpid()}"
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    partial.replace(folder / FILE)


def recall(source: Source, folder: Path, fingerprint: str) -> None:
    """Tells the image what an interrupted or a finished run of the same job found damaged."""
    found: list[DamageRecord] = []
    try:
        run = Bundle.open(folder).run
        found += run.damage if run.fingerprint == fingerprint else ()
    except RequestError:
        pass
    try:
        content = json.loads((folder / FILE).read_bytes())
        if content["fingerprint"] == fingerprint:
            found += [DamageRecord.model_validate(record) for record in content["damage"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    source.note_damage(Damage(record.level, Box(*record.box), record.reason) for record in found)


def forget(folder: Path) -> None:
    """Removes what `remember` left, once run.json tells it."""
    (folder / FILE).unlink(missing_ok=True)


def records(source: Source) -> tuple[DamageRecord, ...]:
    """For run.json."""
    return tuple(
        DamageRecord(level=d.level, box=(d.box.y, d.box.x, d.box.height, d.box.width), reason=d.reason)
        for d in source.damage
    )


def refuse_known(source: Source, known: Sequence[DamageRecord]) -> None:
    """Raises ImageError where an earlier run found damage: for a run that asks for none."""
    if known:
        box, reason = Box(*known[0].box), known[0].reason
        raise ImageError(
            f"{source.path}: cannot read {box} of level {known[0].level}: {reason}; found by an earlier run"
        )


def refuse_all_damaged(source: Source, level: int) -> None:
    """Raises ImageError where not a single tile of the level that is read can be decoded."""
    damaged = [damage for damage in source.damage if damage.level == level]
    if sum(damage.box.pixels for damage in damaged) >= source.levels[level].size.pixels:
        raise ImageError(f"{source.path}: none of its tiles can be decoded ({damaged[0].reason}); copy it again")
