"""What tests of the pipelines share: models on disk, and the `veca` command in this process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from places import model, seeded_network

from veca_core import save_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: RGB, four classes, random weights, window 64 px."""
    described = model().card
    described = described.model_copy(update={"name": "tiny-model", "classes": described.classes[:4]})
    folder = tmp_path_factory.mktemp("models") / "tiny-model"
    save_model(folder, seeded_network(described), described)
    return folder


@dataclass(frozen=True, slots=True)
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """All of stderr, which must be one line that is no traceback."""
        assert "Traceback" not in self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


Veca = Callable[..., Said]


@pytest.fixture
def veca(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Veca]:
    """Runs the command as the console script does, without the seconds that a new process takes to import torch."""
    from pipelines.cli import main

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["veca", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    yield run
    logging.disable(logging.NOTSET)
