"""live.json: what a region that was segmented in the viewer is, and how it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import RequestError
from veca_core.card import first_problem

RECORD: Final = "live.json"


class LiveRecord(BaseModel):
    """live.json, whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["veca-live/1"] = "veca-live/1"
    title: str
    """For lists: model, cores and time."""
    image: str
    """Its path."""
    fingerprint: str
    """Of the image's file."""
    model: str
    digest: str
    """sha256 of the model's weights and card."""
    cores: int
    window: int
    overlap: int
    corners: tuple[tuple[float, float], ...]
    """What was drawn, (y, x) in level-0 pixels of the image."""
    finished: bool
    """False where it was stopped: what is missing is no data."""
    seconds: float
    peak_memory: int
    """Largest resident size of the process that computed it, in bytes."""
    plan: str
    """In one line."""

    @classmethod
    def read(cls, folder: Path) -> LiveRecord:
        """Raises RequestError where the folder holds none."""
        try:
            return cls.model_validate_json((folder / RECORD).read_bytes())
        except OSError as error:
            raise RequestError(f"{folder} is no segmented region: it has no {RECORD}") from error
        except ValidationError as error:
            raise RequestError(f"{folder / RECORD}: {first_problem(error)}") from error

    def write(self, folder: Path) -> None:
        """By a rename: with it, the region is finished."""
        partial = folder / f".{RECORD}.{os.getpid()}"
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(folder / RECORD)
