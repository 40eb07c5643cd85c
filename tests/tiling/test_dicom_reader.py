"""Slides in DICOM: levels, optical paths and depth as pydicom's own decoder has them; nothing of the patient."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from tiling import Box, ImageError, Size, open_image


def make(folder: Path, template: Path, pixels: np.ndarray, um: float, series: str, **changes: Any) -> Path:
    """A slide file of one level, (H, W, 3) or (H, W), in frames of 10 x 10 px."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, [(0, -height % 10), (0, -width % 10), *[(0, 0)] * (pixels.ndim - 2)])
    down, across = padded.shape[0] // 10, padded.shape[1] // 10
    frames = padded.reshape(down, 10, across, 10, -1).swapaxes(1, 2)
    slide = copy.deepcopy(pydicom.dcmread(template))
    slide.SOPInstanceUID = slide.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    slide.SeriesInstanceUID = series
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = height, width
    slide.NumberOfFrames = down * across
    slide.PixelData = frames.tobytes()
    slide.ImagedVolumeHeight, slide.ImagedVolumeWidth = height * um / 1e3, width * um / 1e3
    measures = slide.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [um / 1e3, um / 1e3]
    for name, value in changes.items():
        setattr(slide, name, value)
    path = folder / f"{slide.SOPInstanceUID}.dcm"
    slide.save_as(path)
    return path


@pytest.fixture
def colour(shared_data: Path) -> Path:
    return shared_data / "odd/wsi/highdicom_sm_image.dcm"


@pytest.fixture
def grey(shared_data: Path) -> Path:
    return shared_data / "odd/wsi/highdicom_sm_image_grayscale.dcm"


RGB = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)


def test_the_files_of_one_series_are_levels_of_one_slide(tmp_path: Path, colour: Path) -> None:
    series = generate_uid()
    coarse = make(tmp_path, colour, RGB[::4, ::4], 1.0, series)
    fine = make(tmp_path, colour, RGB, 0.25, series)
    make(tmp_path, colour, 255 - RGB, 0.25, generate_uid())
    (tmp_path / "notes.txt").write_text("not an image")
    for path in (fine, coarse):
        with open_image(path) as image:
            assert image.kind == "slide"
            assert [level.size for level in image.levels] == [Size(96, 64), Size(24, 16)]
            assert [level.chunk for level in image.levels] == [Size(10, 10)] * 2
            assert image.georef.world(1, 1) == pytest.approx((0.25, 0.25))
            assert np.array_equal(image.read(Box(0, 0, 96, 64)), RGB)
            assert np.array_equal(image.read(Box(3, 5, 20, 11), 1), RGB[::4, ::4][3:23, 5:16])


def test_a_folder_of_one_slide_is_that_slide_and_one_of_two_is_a_question(tmp_path: Path, colour: Path) -> None:
    make(tmp_path, colour, RGB, 0.25, generate_uid())
    assert np.array_equal(open_image(tmp_path).read(Box(0, 0, 96, 64)), RGB)
    make(tmp_path, colour, RGB, 0.25, generate_uid())
    with pytest.raises(ImageError, match="the folder holds 2 DICOM slides; name one file of the one that is meant"):
        open_image(tmp_path)


def test_greyscale_of_16_bits_keeps_its_values(tmp_path: Path, grey: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (30, 40), dtype=np.uint16)
    with open_image(make(tmp_path, grey, values, 0.5, generate_uid())) as image:
        assert (image.dtype, image.bands) == (np.uint16, ("band 1",))
        assert np.array_equal(image.read(Box(0, 0, 30, 40))[..., 0], values)


def test_an_encoding_that_is_not_known_is_named(tmp_path: Path, grey: Path) -> None:
    values = np.zeros((30, 40), np.uint16)
    path = make(tmp_path, grey, values, 0.5, generate_uid(), PhotometricInterpretation="MONOCHROME1")
    with pytest.raises(ImageError, match=r"its encoding is not known here \(colours MONOCHROME1, Explicit VR Little"):
        open_image(path)


def test_a_spacing_that_nobody_measured_is_unknown(tmp_path: Path, colour: Path) -> None:
    with open_image(make(tmp_path, colour, RGB, 352.8, generate_uid())) as image:
        assert image.georef.unit is None
        assert any("which no slide is: taken as unknown" in warning for warning in image.warnings)


@pytest.mark.parametrize("kind", ["LABEL", "OVERVIEW", "THUMBNAIL"])
def test_label_and_overview_are_neither_opened_nor_taken_for_levels(tmp_path: Path, colour: Path, kind: str) -> None:
    series = generate_uid()
    specimen = make(tmp_path, colour, RGB, 0.25, series)
    other = make(tmp_path, colour, RGB[:20, :20], 0.25, series, ImageType=["ORIGINAL", "PRIMARY", kind, "NONE"])
    assert len(open_image(specimen).levels) == 1
    with pytest.raises(ImageError, match="it is a slide's label, overview or thumbnail"):
        open_image(other)


def test_nothing_that_an_opened_slide_tells_names_the_patient(tmp_path: Path, colour: Path) -> None:
    secrets = {"PatientName": "Doe^Jane", "PatientID": "MRN-4711", "DeviceSerialNumber": "SN-0815"}
    path = make(tmp_path, colour, RGB, 0.25, generate_uid(), **secrets)
    with open_image(path) as image:
        told = repr((image, image.provenance, image.warnings, image.bands, image.georef, image.name))
    assert not any(secret in told for secret in secrets.values())


def test_a_damaged_neighbour_is_left_alone(tmp_path: Path, colour: Path) -> None:
    path = make(tmp_path, colour, RGB, 0.25, generate_uid())
    (tmp_path / "broken.dcm").write_bytes(path.read_bytes()[:200])
    assert np.array_equal(open_image(path).read(Box(0, 0, 96, 64)), RGB)
    with pytest.raises(ImageError) as refused:
        open_image(tmp_path / "broken.dcm")
    assert "\n" not in str(refused.value)


def frames_of(path: Path) -> tuple[pydicom.Dataset, np.ndarray]:
    slide = pydicom.dcmread(path)
    return slide, np.frombuffer(slide.PixelData, np.uint8).reshape(-1, 10, 10, 3)


def test_a_level_in_several_files_is_read_from_all_of_them(tmp_path: Path, colour: Path) -> None:
    path = make(tmp_path, colour, RGB, 0.25, generate_uid())
    whole, frames = frames_of(path)
    path.unlink()
    for part, (start, stop) in enumerate(((0, 40), (40, 70)), 1):
        slide = copy.deepcopy(whole)
        slide.SOPInstanceUID = slide.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slide.NumberOfFrames, slide.PixelData = stop - start, frames[start:stop].tobytes()
        slide.ConcatenationUID, slide.SOPInstanceUIDOfConcatenationSource = whole.SOPInstanceUID, whole.SOPInstanceUID
        slide.InConcatenationNumber, slide.InConcatenationTotalNumber = part, 2
        slide.ConcatenationFrameOffsetNumber = start
        slide.save_as(tmp_path / f"{part}.dcm")
    for part in ("1.dcm", "2.dcm"):
        with open_image(tmp_path / part) as image:
            assert np.array_equal(image.read(Box(0, 0, 96, 64)), RGB)


def test_frames_that_a_slide_leaves_out_are_no_data(tmp_path: Path, colour: Path) -> None:
    path = make(tmp_path, colour, RGB, 0.25, generate_uid())
    slide, frames = frames_of(path)
    kept = [frame for frame in range(70) if frame % 3]
    places = []
    for frame in kept:
        place, group, optics = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        place.RowPositionInTotalImagePixelMatrix = frame // 7 * 10 + 1
        place.ColumnPositionInTotalImagePixelMatrix = frame % 7 * 10 + 1
        place.XOffsetInSlideCoordinateSystem = place.YOffsetInSlideCoordinateSystem = "0"
        place.ZOffsetInSlideCoordinateSystem, optics.OpticalPathIdentifier = "0", "1"
        group.PlanePositionSlideSequence, group.OpticalPathIdentificationSequence = [place], [optics]
        places.append(group)
    slide.DimensionOrganizationType, slide.PerFrameFunctionalGroupsSequence = "TILED_SPARSE", places
    slide.NumberOfFrames, slide.PixelData = len(kept), frames[kept].tobytes()
    slide.save_as(path)
    there = np.isin(np.arange(70), kept).reshape(10, 7).repeat(10, 0).repeat(10, 1)[:96, :64]
    with open_image(path) as image:
        assert np.array_equal(image.valid(Box(0, 0, 96, 64)), there)
        assert np.array_equal(image.valid(Box(13, 17, 50, 31)), there[13:63, 17:48])
        assert np.array_equal(image.read(Box(0, 0, 96, 64))[there], RGB[there])


def test_two_images_of_one_place_in_a_series_are_told(tmp_path: Path, colour: Path) -> None:
    series = generate_uid()
    make(tmp_path, colour, RGB, 0.25, series)
    path = make(tmp_path, colour, 255 - RGB, 0.25, series)
    with open_image(path) as image:
        assert any("two images of the same place and kind" in warning for warning in image.warnings)
