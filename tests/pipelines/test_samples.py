"""Samples: fetched, checked and kept, or drawn without a network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio
import tifffile

from pipelines.errors import RequestError
from pipelines.fetch import WheelFile, cache_folder, fetch
from pipelines.samples import SAMPLES, draw_slide, samples
from tiling import Box, open_image

CONTENT = b"a picture, of sorts"


def wheel_file(content: bytes = CONTENT, member: str = "veca_sample/picture.bin", version: str = "1.0") -> WheelFile:
    return WheelFile("veca-sample", version, member, hashlib.sha256(content).hexdigest(), "kept.bin")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one small wheel, which pip takes for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "veca_sample-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("veca_sample/picture.bin", CONTENT)
        wheel.writestr("veca_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: veca-sample\nVersion: 1.0\n")
        wheel.writestr(
            "veca_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("veca_sample-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_file_is_fetched_once_checked_and_kept(index: Path, tmp_path: Path) -> None:
    kept = fetch(wheel_file(), tmp_path / "cache")
    assert kept == tmp_path / "cache" / "kept.bin"
    assert kept.read_bytes() == CONTENT
    assert [p.name for p in kept.parent.iterdir()] == ["kept.bin"]
    (index / "veca_sample-1.0-py3-none-any.whl").unlink()
    assert fetch(wheel_file(), tmp_path / "cache") == kept
    kept.write_bytes(b"damaged")
    with pytest.raises(RequestError, match=r"pip cannot download veca-sample==1\.0"):
        fetch(wheel_file(), tmp_path / "cache")


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (wheel_file(b"another"), r"picture\.bin of veca-sample 1\.0 has sha256 [0-9a-f]{64}, not [0-9a-f]{64}"),
        (wheel_file(member="veca_sample/none.bin"), r"veca-sample 1\.0 has no readable veca_sample/none\.bin"),
    ],
    ids=["another hash", "no such file"],
)
def test_what_is_not_the_file_that_was_expected_is_refused(tmp_path: Path, wanted: WheelFile, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        fetch(wanted, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_without_a_network_the_way_to_a_drawn_slide_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RequestError, match=r"is there a network.*`veca samples --synthetic` draws a slide") as caught:
        samples(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "veca"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "veca"


def test_a_drawn_slide_is_one_that_every_reader_takes(tmp_path: Path) -> None:
    (path,) = samples(tmp_path, synthetic=True)
    image = open_image(path)
    assert image.kind == "slide"
    assert [(level.size.height, level.size.width) for level in image.levels] == [(2048,) * 2, (1024,) * 2, (512,) * 2]
    spacing = image.georef.spacing(image.levels[0].size)
    assert spacing is not None
    assert (spacing.y, spacing.x, spacing.unit) == (0.5, 0.5, "um")
    assert image.warnings == ()
    box = Box(700, 900, 300, 200)
    mine = image.read(box)
    with tifffile.TiffFile(path) as file:
        assert np.array_equal(file.series[0].asarray()[box.slices], mine)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (2048, 2048)
        theirs = np.asarray(slide.read_region((box.x, box.y), 0, (box.width, box.height)))[..., :3]
    # Two JPEG decoders may round differently.
    assert np.abs(mine.astype(int) - theirs).max() <= 3
    glass, tissue = image.read(Box(0, 0, 100, 100)), image.read(Box(974, 974, 100, 100))
    assert glass.mean() > 235
    assert tissue.mean() < 215
    assert np.ptp(tissue, axis=(0, 1)).min() > 40


def test_a_drawn_slide_is_the_same_every_time(tmp_path: Path) -> None:
    one, other = draw_slide(tmp_path / "a.tif", side=512), draw_slide(tmp_path / "b.tif", side=512)
    assert np.array_equal(tifffile.imread(one), tifffile.imread(other))
    assert {p.name for p in tmp_path.iterdir()} == {"a.tif", "b.tif"}


def fetched(out: Path) -> list[Path]:
    """The real samples from the cache or the network, or a skip that says so; a wrong file is an error."""
    try:
        return samples(out)
    except RequestError as error:
        if "is there a network" not in str(error):
            raise
        return pytest.skip(f"the samples are not in {cache_folder()} and cannot be fetched: {error}")


def test_the_real_samples_are_a_slide_and_a_raster_at_their_published_pixel_sizes(tmp_path: Path) -> None:
    slide, raster = fetched(tmp_path)
    assert [slide.name, raster.name] == [sample.name for sample in SAMPLES.values()]
    opened = open_image(slide)
    spacing = opened.georef.spacing(opened.levels[0].size)
    assert spacing is not None
    assert spacing.x == pytest.approx(0.499)
    with openslide.OpenSlide(slide) as theirs:
        assert theirs.dimensions == (opened.levels[0].size.width, opened.levels[0].size.height)
        region = np.asarray(theirs.read_region((500, 600), 0, (100, 100)))[..., :3]
    assert np.abs(opened.read(Box(600, 500, 100, 100)).astype(int) - region).max() <= 3
    ground = open_image(raster)
    with rasterio.open(raster) as file:
        assert np.array_equal(ground.read(ground.levels[0].size.box), file.read().transpose(1, 2, 0))
        assert ground.georef.transform.almost_equals(file.transform)
    spacing = ground.georef.spacing(ground.levels[0].size)
    assert spacing is not None
    assert spacing.x == pytest.approx(0.1, rel=0.01)
