"""Images whose pixels say where they lie, and a model that reads it: every label then tells if it is in its place."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
import tifffile
import torch
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor
from torch.nn import functional as F

from veca_core import Card, Model, Segmenter, VecaEncoder, build
from veca_core.card import Architecture, Bands, ClassInfo, PixelSize
from veca_core.heads import LinearHead

CLASSES: Final = 23
STEP: Final = 11
"""Class i has the value STEP * i: masks hold values, not indices."""
WINDOW: Final = 64
PATCH: Final = 16
UTM: Final = Affine(2.0, 0.5, 500_000.0, 0.25, -3.0, 5_000_000.0)
"""Of the rasters: sheared, and pixels that are not square, so that no axis can be confused."""


class PlaceModel(Segmenter):
    """Answers for each pixel with the class of the place that its values name; the network itself is never asked."""

    def __init__(self, bands: Bands, cores: int = 64) -> None:
        settings = Architecture(encoder=encoder_settings(len(bands.names), cores)).config
        encoder = VecaEncoder(settings)
        super().__init__(encoder, LinearHead(settings.dim, CLASSES, encoder.stem), bands)
        self.calls = 0

    def forward(self, pixels: Tensor, cores: int | None = None, chunk: int | None = None) -> Tensor:  # noqa: ARG002
        self.encoder.config.check_budget(cores)
        self.calls += 1
        values = pixels.long()
        if values.shape[1] == 2:
            y, x = values[:, 0], values[:, 1]
        else:
            x = values[:, 0] + 256 * (values[:, 2] % 16)
            y = values[:, 1] + 256 * (values[:, 2] // 16)
        return 50.0 * F.one_hot(place_class(y, x), CLASSES).permute(0, 3, 1, 2).float()


def place_class(y: Any, x: Any) -> Any:
    """A class that no shift, flip or turn of the image leaves as it is."""
    return (31 * x * x + 17 * y * y + 7 * x * y + 3 * x + 5 * y) % CLASSES


def expected(height: int, width: int) -> NDArray[np.uint8]:
    """(height, width) the right labels."""
    y, x = np.mgrid[:height, :width]
    return (STEP * place_class(y, x)).astype(np.uint8)


def encoder_settings(bands: int, cores: int = 64) -> dict[str, Any]:
    return {"dim": 48, "layers": 2, "heads": 3, "in_channels": bands, "cores": cores, "patch": PATCH}


@cache
def network(bands: int, cores: int) -> PlaceModel:
    """One for all tests: it learns nothing, and counts its calls."""
    return PlaceModel(place_bands(bands), cores).eval()


def place_bands(count: int) -> Bands:
    names = ("red", "green", "blue") if count == 3 else tuple(f"band {i + 1}" for i in range(count))
    return Bands(names=names, mean=(0.0,) * count, std=(1.0,) * count, dtype="uint8" if count == 3 else "uint16")


def model(bands: int = 3, *, digest: str = "one", spacing: PixelSize | None = None, cores: int = 64) -> Model:
    card = Card(
        name="places",
        architecture=Architecture(encoder=encoder_settings(bands, cores), head="linear"),
        classes=tuple(ClassInfo(value=STEP * i, name=f"place {i}", color=f"#{i:02X}0080") for i in range(CLASSES)),
        bands=place_bands(bands),
        spacing=spacing,
        window=WINDOW,
    )
    return Model(network(bands, cores), card, Path("places"), digest)


def rgb(height: int, width: int) -> NDArray[np.uint8]:
    """(height, width, 3) what the model reads as places."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, x // 256 + 16 * (y // 256)], axis=-1).astype(np.uint8)


def holes(height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) True where there is data: single pixels and a whole area are missing."""
    valid = np.random.default_rng(height * width).random((height, width)) > 0.02
    valid[height // 3 : height // 2, width // 4 :] = False
    return valid


def write_png(path: Path, height: int, width: int, valid: NDArray[np.bool_] | None = None) -> Path:
    """A picture that says nothing of its place or pixel size; invalid pixels are fully transparent."""
    pixels = rgb(height, width)
    if valid is not None:
        pixels = np.concatenate([pixels, np.where(valid, 255, 0).astype(np.uint8)[..., None]], axis=-1)
    Image.fromarray(pixels).save(path)
    return path


def write_raster(path: Path, height: int, width: int, valid: NDArray[np.bool_] | None = None) -> Path:
    """A GeoTIFF of two 16-bit bands, row and column, with a CRS; invalid pixels are masked and hold nonsense."""
    pixels = np.mgrid[:height, :width].astype(np.uint16)
    profile = {"driver": "GTiff", "count": 2, "height": height, "width": width, "dtype": "uint16"}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64} if min(height, width) >= 64 else {}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **profile, **tiles, crs="EPSG:32633", transform=UTM) as dataset,
    ):
        if valid is not None:
            pixels[:, ~valid] = 60_000
            dataset.write_mask(valid)
        dataset.write(pixels)
    return path


def write_slide(path: Path, height: int, width: int, um: float = 0.5, levels: int = 2) -> Path:
    """A tiled, pyramidal OME-TIFF without loss, pixels of `um` micrometres."""
    image = rgb(height, width)
    options: dict[str, Any] = {"tile": (64, 64), "compression": "zlib", "photometric": "rgb"}
    sizes = {"PhysicalSizeX": um, "PhysicalSizeY": um, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(image, subifds=levels - 1, metadata={"axes": "YXS", **sizes}, **options)
        for level in range(1, levels):
            step = 2**level
            smaller = image[: max(1, height // step) * step : step, : max(1, width // step) * step : step]
            tiff.write(smaller, subfiletype=1, **options)
    return path


WRITERS: Final = {"png": write_png, "raster": write_raster, "slide": write_slide}
ENDINGS: Final = {"png": ".png", "raster": ".tif", "slide": ".ome.tif"}


def write_image(folder: Path, kind: str, height: int, width: int, valid: NDArray[np.bool_] | None = None) -> Path:
    path = folder / f"image{ENDINGS[kind]}"
    if kind == "slide":
        return write_slide(path, height, width)
    return WRITERS[kind](path, height, width, valid)


def calls(used: Model) -> int:
    """How often a model was asked until now."""
    assert isinstance(used.network, PlaceModel)
    return used.network.calls


def model_for(kind: str, **changed: Any) -> Model:
    return model(2 if kind == "raster" else 3, **changed)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """(H, W) of a mask.tif, by a reader that is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            band: NDArray[np.uint8] = dataset.read(1)
    return band


def seeded_network(described: Card, seed: int = 0) -> Segmenter:
    """A real network with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return build(described.architecture, described.bands, len(described.classes)).eval()
