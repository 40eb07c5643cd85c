"""The README's commands, typed as a new user would, on the real samples: the demo itself."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile

README = Path(__file__).parents[1] / "README.md"
VECA = Path(sys.executable).with_name("veca")


def shown(language: str) -> str:
    """What the README shows as code of a language."""
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Types one line that starts with `veca`."""
    words = shlex.split(command, comments=True)
    words = [str(VECA) if word.endswith("veca") else word for word in words]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the first commands of the README were run."""
    folder = tmp_path_factory.mktemp("readme")
    lines = re.findall(
        r"^    \.venv/bin/(veca (?:samples|segment).*)$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(lines) == 3, "the README fetches the samples and segments both"
    for line in lines:
        done = run(line, folder)
        if done.returncode and "is there a network?" in done.stderr:
            pytest.skip(f"the real samples cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    return folder


def test_the_demo_leaves_a_mask_of_the_slide_at_the_right_size(demo: Path) -> None:
    bundle = demo / "demo" / "results" / "CMU-1-Small-Region"
    with tifffile.TiffFile(bundle / "mask.tif") as tif:
        mask = tif.asarray()
        assert 'PhysicalSizeX="0.499"' in (tif.ome_metadata or "")
    assert mask.shape == (2967, 2220)
    assert set(np.unique(mask)) <= {0, 1, 255}
    # H&E of skin: some nuclei, and far from everywhere.
    assert 0.01 < (mask == 1).sum() / (mask != 255).sum() < 0.3
    assert (bundle / "preview.png").stat().st_size > 10_000


def test_the_demo_leaves_a_mask_of_the_scene_in_its_place(demo: Path) -> None:
    source = demo / "demo" / "samples" / "OSBS_029.tif"
    with rasterio.open(source) as image, rasterio.open(demo / "demo/results/OSBS_029/mask.tif") as mask:
        assert mask.crs == image.crs
        assert mask.bounds == image.bounds
        values = mask.read(1)
    assert set(np.unique(values)) <= {1, 2, 3, 4, 5, 255}
    # Woodland: open ground and vegetation, no roads and next to no roofs.
    assert ((values == 5) | (values == 2)).mean() > 0.5
    assert ((values == 3) | (values == 4)).mean() < 0.05


@pytest.mark.parametrize("command", [line for line in shown("bash").splitlines() if line.strip()])
def test_a_command_of_the_readme_works(command: str, demo: Path) -> None:
    done = run(command, demo)
    assert done.returncode == 0, done.stderr
    if "--json" in command:
        assert json.loads(done.stdout)[0]["run"]["plan"]["window"] == 256


def test_the_python_of_the_readme_works(demo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", shown("python")], cwd=demo, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("64 {'class': 'water'")
