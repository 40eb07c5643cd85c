"""Images behind http and in an object store: the same pixels, and no more bytes than a window needs."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from PIL import Image
from served import Served, object_store, upload, web_server

from tiling import Box, ImageError, open_image, storage
from tiling.readers.opened import short_name

PIXELS = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
WINDOW = Box(300, 520, 200, 190)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same noise as a COG, a slide, a Zarr array and a picture."""
    place = tmp_path_factory.mktemp("served")
    profile = {"driver": "COG", "count": 3, "height": 1024, "width": 1024, "dtype": "uint8", "crs": "EPSG:32633"}
    transform = rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6)
    with rasterio.open(
        place / "map.tif", "w", **profile, transform=transform, blocksize=256, compress="deflate"
    ) as cog:
        cog.write(PIXELS.transpose(2, 0, 1))
    options: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    tifffile.imwrite(
        place / "slide.tif", PIXELS, **options, resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None
    )
    zarr.create_array(place / "array.zarr", data=PIXELS, chunks=(256, 256, 3))
    Image.fromarray(PIXELS).save(place / "a photo.png")
    return place


NAMES = ["map.tif", "slide.tif", "array.zarr", "a photo.png"]


def check(address: str, local: Path) -> None:
    """An image behind an address is the local one, also where it travelled and where it is read lazily."""
    with open_image(local) as expected, open_image(address) as image:
        assert (image.kind, image.name, image.levels) == (expected.kind, expected.name, expected.levels)
        assert (image.georef, image.bands, image.dtype) == (expected.georef, expected.bands, expected.dtype)
        assert np.array_equal(image.read(WINDOW), PIXELS[WINDOW.slices])
        assert image.valid(WINDOW).all()
        copy = pickle.loads(pickle.dumps(image))
        assert copy.path == image.path
        assert np.array_equal(copy.read(WINDOW), PIXELS[WINDOW.slices])
        assert np.array_equal(image.dask()[WINDOW.slices].compute(scheduler="synchronous"), PIXELS[WINDOW.slices])
        image.close()
        assert np.array_equal(image.read(WINDOW), PIXELS[WINDOW.slices])
        if "?" not in address:
            assert open_image(Path(address)).path == address, "Path takes a slash away"


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[Served]:
    with web_server(folder) as served:
        yield served


@pytest.mark.parametrize("name", NAMES)
def test_an_image_behind_http_is_read_as_the_file(web: Served, folder: Path, name: str) -> None:
    check(f"{web.url}/{name.replace(' ', '%20')}", folder / name)


def test_an_address_may_be_signed(web: Served, folder: Path) -> None:
    for name in ("map.tif", "slide.tif"):
        check(f"{web.url}/{name}?sig=a%2Fb&se=2026", folder / name)


@pytest.mark.parametrize("name", NAMES[:3])
def test_one_window_fetches_no_more_than_its_tiles(web: Served, folder: Path, name: str) -> None:
    before = web.sent
    with open_image(f"{web.url}/{name}") as image:
        opened = web.sent
        image.read(Box(300, 300, 100, 100))  # inside one tile of 256 x 256 px, of 16
        window = web.sent
        image.read(Box(310, 310, 50, 60))
    whole = folder / name
    size = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file()) if whole.is_dir() else whole.stat().st_size
    assert size > 3_000_000
    assert opened - before < 300_000, "opening reads headers only"
    assert window - opened < 1.5 * size / 16
    if name != "array.zarr":
        assert web.sent == window, "a tile that was fetched is kept"


@pytest.mark.parametrize("name", NAMES)
def test_an_image_in_an_object_store_is_read_as_the_file(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store(monkeypatch) as client:
        check(upload(client, folder / name, f"deep/er/{name}"), folder / name)


def test_what_cannot_be_read_from_elsewhere_is_one_line(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, reason in [
        (f"{web.url}/none.tif", "no such file"),
        ("ftp://here/a.tif", "cannot be reached; addresses start with http://, https://, s3://, gs://, az://"),
    ]:
        with pytest.raises(ImageError) as refused:
            open_image(address)
        assert str(refused.value) == f"{address}: {reason}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(ImageError, match=r"s3://unreachable-bucket/a\.tif: cannot be reached: ") as refused:
        open_image("s3://unreachable-bucket/a.tif")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a b.tif", "ä+b.tif", "a%20b.tif", "a#b.tif"])
def test_a_name_behind_an_address_may_be_any(tmp_path: Path, folder: Path, name: str) -> None:
    for number, original in enumerate(("map.tif", "slide.tif")):
        shutil.copy(folder / original, tmp_path / f"{number}{name}")
    with web_server(tmp_path) as served:
        for number in range(2):
            check(f"{served.url}/{quote(f'{number}{name}')}", tmp_path / f"{number}{name}")
            if "#" not in name and "%" not in name:
                check(f"{served.url}/{number}{name}", tmp_path / f"{number}{name}")


def test_a_server_that_sends_no_parts_is_told_from_a_damaged_file(folder: Path) -> None:
    with web_server(folder, parts=False) as served, pytest.raises(ImageError, match="sends whole files only, no parts"):
        open_image(f"{served.url}/map.tif")


def test_a_format_of_several_files_is_asked_for_on_a_disk(web: Served, folder: Path) -> None:
    (folder / "slide.mrxs").write_bytes(b"not empty")
    with pytest.raises(ImageError, match="slides in this format are read from a disk only"):
        open_image(f"{web.url}/slide.mrxs")


def test_a_store_is_written_listed_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with object_store(monkeypatch):
        for name in ("out/x/run.json", "out/x/labels.zarr/0/c/0/0", "out/xy/run.json"):
            storage.send(tmp_path / "a", f"s3://images/{name}")
        assert storage.names("s3://images/out/x") == ["labels.zarr/0/c/0/0", "run.json"]
        assert storage.read_all("s3://images/out/x/run.json") == b"abc"
        storage.delete("s3://images/out/x/run.json")
        storage.delete("s3://images/out/x/run.json")
        assert storage.size("s3://images/out/x/run.json") is None
        with pytest.raises(ImageError, match="s3://no-such-bucket/a: cannot be written: "):
            storage.send(tmp_path / "a", "s3://no-such-bucket/a")


@pytest.mark.parametrize(
    ("path", "restored"),
    [
        ("s3:/b/k.tif", "s3://b/k.tif"),
        ("https:/h/k.tif?a=b", "https://h/k.tif?a=b"),
        ("s3://b/k.tif", "s3://b/k.tif"),
        ("C:/images/a.tif", "C:/images/a.tif"),
        ("/data/s3:/a.tif", "/data/s3:/a.tif"),
    ],
)
def test_an_address_that_went_through_a_path_is_restored(path: str, restored: str) -> None:
    assert storage.restored(path) == restored


def test_an_address_has_a_short_name() -> None:
    assert short_name("https://h/deep/a%20b.ome.tif?sig=x.y/z") == "a b"
    assert short_name("s3:/b/k.tif") == "k"


def test_gdal_is_told_of_the_environments_store_and_never_of_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    options = storage.gdal_options("s3://b/k.tif")
    assert (options["AWS_S3_ENDPOINT"], options["AWS_HTTPS"]) == ("127.0.0.1:9000", "NO")
    assert "very-secret" not in str(options)
    assert storage.gdal_options("/data/a.tif") == {}
    paths = ["/data/a.tif", "s3://b/k", "gs://b/k", "az://c/k", "https://h/k?x=y"]
    assert [storage.gdal_path(path) for path in paths] == [
        "/data/a.tif", "/vsis3/b/k", "/vsigs/b/k", "/vsiaz/c/k", "/vsicurl/https://h/k?x=y",
    ]  # fmt: skip
