"""Scanners' formats that no real file here shows: written as the scanners write them, read as OpenSlide reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tiling import Box, ImageError, Size, open_image

RNG = np.random.default_rng(0)
RGB = np.asarray(Image.fromarray(RNG.integers(0, 256, (20, 25, 3), dtype=np.uint8)).resize((400, 320)))
SCN = "http://www.leica-microsystems.com/scn/2010/10/01"


def scn_image(name: str, size: tuple[int, int], view: tuple[int, int, int, int], pages: range) -> str:
    """An image of these pages, each a quarter of the one before; `view` is its height, width, y and x in nanometres."""
    dimensions = "".join(
        f'<dimension sizeX="{size[1] // 4**level}" sizeY="{size[0] // 4**level}" r="{level}" ifd="{page}"/>'
        for level, page in enumerate(pages)
    )
    height, width, y, x = view
    return (
        f'<image name="{name}" uuid="{name}"><creationDate>2011-02-23T18:51:15.58Z</creationDate>'
        f'<device model="Leica SCN400;Leica SCN" version="1.4"/><pixels sizeX="{size[1]}" sizeY="{size[0]}">'
        f'{dimensions}</pixels><view sizeX="{width}" sizeY="{height}" offsetX="{x}" offsetY="{y}" spacingZ="0"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image>"
    )


def write_scn(path: Path, *corners: tuple[int, int]) -> Path:
    """A macro first, then an image of 0.5 um/px with three levels at each corner (y, x), in nanometres."""
    whole = (76734863, 26564529, 0, 0)
    images = [scn_image("PATIENT-4711", (60, 50), whole, range(1))]
    for n, (y, x) in enumerate(corners):
        images.append(scn_image(f"image_{n}", (320, 400), (160000, 200000, y, x), range(1 + 3 * n, 4 + 3 * n)))
    described = f'<?xml version="1.0"?><scn xmlns="{SCN}" uuid="u"><collection name="c" uuid="u" sizeX="{whole[1]}" '
    described += f'sizeY="{whole[0]}"><barcode>NDcxMQ==</barcode>{"".join(images)}</collection></scn>'
    both: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "zlib"}
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(np.full((60, 50, 3), 9, np.uint8), description=described, tile=(16, 16), **both)
        for n in range(len(corners)):
            for step in (1, 4, 16):
                pixels = np.ascontiguousarray(RGB[::step, ::step]) + n
                fine = (20000 / step, 20000 / step)
                tif.write(pixels, tile=(64, 64), resolution=fine, resolutionunit="CENTIMETER", **both)
    return path


def test_a_leica_slide_lies_where_openslide_finds_it(tmp_path: Path) -> None:
    path = write_scn(tmp_path / "a.scn", (7000000, 6000000))
    with open_image(path) as image, openslide.OpenSlide(path) as slide:
        facts = slide.properties
        corner = [int(facts[f"openslide.bounds-{axis}"]) for axis in "xy"]
        mpp = [float(facts[f"openslide.mpp-{axis}"]) for axis in "xy"]
        assert image.georef.world(0, 0) == pytest.approx((corner[0] * mpp[0], corner[1] * mpp[1]))
        assert [level.scale for level in image.levels] == [(1, 1), (4, 4), (16, 16)]
        expected = np.asarray(slide.read_region((corner[0] + 30, corner[1] + 20), 0, (90, 100)))[..., :3]
        assert np.array_equal(image.read(Box(20, 30, 100, 90)), expected)
        assert any("14000 px above and 12000 px left" in warning for warning in image.warnings)
        assert "4711" not in repr((image, image.provenance, image.warnings, image.bands))


def test_a_leica_slide_of_two_regions_is_read_whole(tmp_path: Path) -> None:
    path = write_scn(tmp_path / "a.scn", (7000000, 6000000), (7000000, 6400000))
    with open_image(path) as image:
        assert image.levels[0].size == Size(320, 1200)
        assert np.array_equal(image.read(Box(0, 0, 320, 400)), RGB)
        assert np.array_equal(image.read(Box(0, 800, 320, 400)), RGB + 1)
        assert not image.valid(Box(0, 400, 320, 400)).any(), "nothing was scanned between them"


def test_a_slide_that_no_reader_knows_does_not_show_its_label_instead(tmp_path: Path) -> None:
    path = tmp_path / "a.bif"
    xmp = b"<EncodeInfo><iScan/></EncodeInfo>"
    both: dict[str, Any] = {"photometric": "rgb", "metadata": None, "extratags": [(700, 1, len(xmp), xmp, True)]}
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(np.full((60, 50, 3), 9, np.uint8), description="Label_Image", **both)
        tif.write(RGB, description="level=0", tile=(64, 64), **both)
    for name in ("a.bif", "a.tif"):
        if name != path.name:
            (tmp_path / name).write_bytes(path.read_bytes())
        with pytest.raises(ImageError) as refused:
            open_image(tmp_path / name)
        assert "Ventana" in str(refused.value) or "ventana" in str(refused.value)


def test_images_that_are_left_out_are_counted(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        for n in range(2):
            tif.write(RGB[: 320 - n], photometric="rgb", tile=(64, 64))
    with open_image(tmp_path / "a.ome.tif") as image:
        assert image.levels[0].size == Size(320, 400)
        assert any("holds 2 images: only the largest is read" in warning for warning in image.warnings)


def write_qptiff(path: Path, pixels: NDArray[Any], names: list[str]) -> Path:
    """(channels, H, W) and a half-size level as PerkinElmer's scanners write them, with thumbnail, macro and label."""

    def told(kind: str, name: str = "") -> bytes:
        named = f"<Name>{name}</Name>" if name else ""
        secret = "<SlideID>PATIENT-4711</SlideID><Barcode>4711</Barcode>"
        return (
            '<?xml version="1.0" encoding="utf-16"?>\r\n<PerkinElmer-QPI-ImageDescription><DescriptionVersion>2'
            f"</DescriptionVersion><ImageType>{kind}</ImageType>{named}{secret}</PerkinElmer-QPI-ImageDescription>"
        ).encode()

    both: dict[str, Any] = {"metadata": None, "software": "PerkinElmer-QPI"}
    level: dict[str, Any] = {"photometric": "minisblack", "tile": (64, 64), "compression": "lzw"}
    with tifffile.TiffWriter(path) as tif:
        for channel, name in zip(pixels, names, strict=True):
            tif.write(
                channel, description=told("FullResolution", name), resolution=(20000, 20000),
                resolutionunit="CENTIMETER", **level, **both,
            )  # fmt: skip
        tif.write(RGB[:40, :50], description=told("Thumbnail"), photometric="rgb", **both)
        for channel, name in zip(pixels, names, strict=True):
            tif.write(channel[::2, ::2], description=told("ReducedResolution", name), subfiletype=1, **level, **both)
        for kind in ("Overview", "Label"):
            tif.write(RGB, description=told(kind), photometric="rgb", **both)
    return path


def test_a_qptiff_has_its_dyes_as_bands_and_nothing_of_the_patient(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (5, 200, 150), dtype=np.uint16)
    path = write_qptiff(tmp_path / "a.qptiff", pixels, ["DAPI", "CD3", "CD8", "PanCK", "AF"])
    with open_image(path) as image:
        assert image.bands == ("DAPI", "CD3", "CD8", "PanCK", "AF")
        assert [level.size for level in image.levels] == [Size(200, 150), Size(100, 75)]
        assert image.georef.world(1, 1) == pytest.approx((0.5, 0.5))
        assert np.array_equal(image.read(Box(10, 20, 100, 90)), pixels[:, 10:110, 20:110].transpose(1, 2, 0))
        assert np.array_equal(image.read(Box(10, 20, 50, 40), 1), pixels[:, 20:120:2, 40:120:2].transpose(1, 2, 0))
        assert "4711" not in repr((image, image.provenance, image.warnings, image.bands))
    with open_image(path, bands=["panck", "1"]) as two:
        assert two.bands == ("PanCK", "DAPI")
        assert np.array_equal(two.read(Box(10, 20, 100, 90)), pixels[[3, 0], 10:110, 20:110].transpose(1, 2, 0))
