"""The mask of a slide: a pyramidal OME-TIFF with the size of its pixels, for QuPath, Bio-Formats, OpenSlide ..."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from tiling.exports.files import printable, replacing
from tiling.exports.tiled_tiff import write_pyramid
from tiling.georef import Spacing
from tiling.labels import NODATA, Labels
from tiling.layers import STEPS

_SCHEMA: Final = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_UM_PER_CM: Final = 10_000


def write_ome_tiff(labels: Labels, path: Path, tags: Mapping[str, str], layer: str | None = None) -> Path:
    """Writes `path`: the labels, or a `layer` that lies beside them, a channel a page.

    The same labels and tags give the same bytes. Raises OSError where the disk is full."""
    spacing = labels.georef.spacing(labels.size)
    first: dict[str, Any] = {"description": ome_xml(labels, tags, layer)}
    if spacing is not None:
        um = spacing.to("um")
        first |= {"resolution": (_UM_PER_CM / um.x, _UM_PER_CM / um.y), "resolutionunit": "CENTIMETER"}
    with replacing(path) as temporary:
        write_pyramid(temporary, labels, nested=True, layer=layer, **first)
    return path


def ome_xml(labels: Labels, tags: Mapping[str, str], layer: str | None = None) -> bytes:
    """OME-XML 2016-06 of a plane a channel: size, pixel size, what the values mean. ASCII; no dates, no random ids."""
    ome = ElementTree.Element("OME", {"xmlns": _SCHEMA})
    image = ElementTree.SubElement(ome, "Image", {"ID": "Image:0", "Name": printable(labels.name)})
    about = f"Segmentation mask: each pixel holds the value of its class; {NODATA} is no data."
    if layer:
        about = f"{layer.capitalize()}: 0..{STEPS} stand for 0..1; {NODATA} is no data."
    channels = labels.layers[layer].channels if layer else ("class",)
    ElementTree.SubElement(image, "Description").text = about
    pixels = ElementTree.SubElement(image, "Pixels", _pixels(labels, len(channels)))
    for i, name in enumerate(channels):
        channel = {"ID": f"Channel:0:{i}", "Name": printable(name), "SamplesPerPixel": "1"}
        ElementTree.SubElement(pixels, "Channel", channel)
    for i in range(len(channels)):
        ElementTree.SubElement(pixels, "TiffData", {"IFD": str(i), "FirstC": str(i), "PlaneCount": "1"})
    for i in range(len(channels)):
        if position := _position(labels):
            ElementTree.SubElement(pixels, "Plane", {"TheZ": "0", "TheC": str(i), "TheT": "0"} | position)
    annotations = ElementTree.SubElement(ome, "StructuredAnnotations")
    classes = {str(c.value): f"{c.name} (#{bytes(c.color).hex()})" for c in labels.classes} | {str(NODATA): "no data"}
    for index, (what, rows) in enumerate({"classes": classes, "tags": tags}.items()):
        name = f"Annotation:{index}"
        ElementTree.SubElement(image, "AnnotationRef", {"ID": name})
        annotation = ElementTree.SubElement(annotations, "MapAnnotation", {"ID": name, "Namespace": f"veca/{what}"})
        value = ElementTree.SubElement(annotation, "Value")
        for key, text in rows.items():
            ElementTree.SubElement(value, "M", {"K": printable(key)}).text = printable(text)
    document: bytes = ElementTree.tostring(ome, encoding="us-ascii", xml_declaration=True)
    return document


def _pixels(labels: Labels, channels: int) -> dict[str, str]:
    spacing = labels.georef.spacing(labels.size)
    physical = {} if spacing is None else _physical(spacing.to("um"))
    return {
        "ID": "Pixels:0",
        "DimensionOrder": "XYCZT",
        "Type": "uint8",
        "BigEndian": "false",
        "SizeX": str(labels.size.width),
        "SizeY": str(labels.size.height),
        "SizeC": str(channels),
        "SizeZ": "1",
        "SizeT": "1",
        **physical,
    }


def _position(labels: Labels) -> dict[str, str]:
    """Where the mask's corner lies on a slide that was scanned in part: micrometres from the slide's own; {} at it."""
    t = labels.georef.transform
    if labels.georef.unit != "um" or (t.c, t.f) == (0.0, 0.0):
        return {}
    unit = {"PositionXUnit": "\u00b5m", "PositionYUnit": "\u00b5m"}
    return {"PositionX": repr(float(t.c)), "PositionY": repr(float(t.f))} | unit


def _physical(um: Spacing) -> dict[str, str]:
    """Micrometres: the schema's own unit, so none is written."""
    return {"PhysicalSizeX": repr(float(um.x)), "PhysicalSizeY": repr(float(um.y))}
