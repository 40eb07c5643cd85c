"""What tests share: where the labelled data and the awkward files lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Two files of tests at once: one thread each, or the threads of both wait for each other. Read when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about what else this machine does than about the code.
settings.register_profile("veca", deadline=None)
settings.load_profile("veca")

SHARED = Path(__file__).parents[2] / "shared"


def _shared(part: str) -> Path:
    path = SHARED / part
    if not path.is_dir():
        pytest.skip(f"{path} is missing: this test reads the shared {part} files that lie beside the checkout")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with aerial/, nuclei/ and odd/."""
    return _shared("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the outputs of the published implementation."""
    return _shared("golden")
