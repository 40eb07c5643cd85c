"""Bands by their names: images that name a model's bands in another order than it reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.errors import RequestError
from tiling import Source
from tiling.readers.opened import listed
from tiling.readers.raster_tags import COLOURS


def other_order(here: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Where each wanted band lies, where an image names them all, whatever their case, and more or in another order.

    None where it has these in order and no others, or other names: then only their number can be told.
    """
    names, read = [name.lower() for name in here], [name.lower() for name in wanted]
    if names == read or not set(read) <= set(names):
        return None
    return tuple(names.index(name) for name in read)


def misplaced(here: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first band that is named as one part of the spectrum and would be read as another; None where there is none.

    Red, green and blue are what formats call any three bands, and prove nothing.
    """
    names, read = [name.lower() for name in here], [name.lower() for name in wanted]
    if names[:3] == ["red", "green", "blue"] or other_order(here, wanted) is not None:
        return None
    pairs = zip(here, names, read, strict=False)
    return next((name for name, one, other in pairs if one != other and {one, other} <= COLOURS), None)


def match_bands(images: Iterable[Source], names: Sequence[str], dtype: str, reader: str = "the model") -> None:
    """Has each image give the bands of these names, in this order.

    Raises RequestError for an image that has other names and another number of bands, or names a band as another part
    of the spectrum than it would be read as, or has numbers of another type.
    """
    for image in images:
        order = other_order(image.bands, names)
        if order is not None:
            image.choose([str(place + 1) for place in order])
        if len(image.bands) != len(names):
            raise RequestError(f"{image.path} has {len(image.bands)} bands; {reader} reads {len(names)}")
        if misplaced(image.bands, names):
            raise RequestError(
                f"{image.path} has {listed(image.bands)}; {reader} reads {listed(names)}; name them alike"
            )
        if str(image.dtype) != dtype:
            raise RequestError(f"{image.path} holds {image.dtype} values; {reader} reads {dtype}")
