"""Choosing what is shown: an image, its mask, and one to compare it with. What is chosen also stands in the address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import streamlit as st

from app.desk import Desk, can_be_mapped
from pipelines.display.catalog import Contents, ImageEntry, LayerEntry
from pipelines.display.masks import MaskTiles
from pipelines.display.tiles import ImageTiles
from pipelines.errors import USER_ERRORS
from pipelines.live.corrected import CorrectedTiles
from pipelines.live.engine import Task

MANY: Final = 12
"""More images than this get a filter."""
Compare = Literal["off", "swipe", "side", "difference"]
MODES: Final[dict[str, Compare]] = {"Swipe": "swipe", "Side by side": "side", "Difference": "difference"}
NOTHING: Final = "none"


@dataclass(frozen=True, slots=True)
class Shown:
    """What lies on the image."""

    layer: LayerEntry | None
    other: LayerEntry | None
    """To compare with."""
    compare: Compare


def image(contents: Contents) -> ImageEntry | None:
    """The image to look at; None where there is none."""
    entries = list(contents.images.values())
    if not entries:
        return None
    names = {entry.id: entry.name for entry in entries}
    if len(entries) > MANY:
        part = st.text_input("Filter", placeholder="part of a name", key="filter").strip().lower()
        found = [entry for entry in entries if part in entry.name.lower()]
        st.caption(f"{len(found)} of {len(entries)} images" if found else "No name has this part: here are all.")
        entries = found or entries
    # One may come here by a link, by the box, or by a thumbnail.
    options = [entry.id for entry in entries]
    first = _place_of(options, "image", entries[0].id)
    _forget_what_is_gone("image", options, first)
    chosen = st.selectbox("Image", options, first, format_func=names.__getitem__, key="image")
    _put_into_address("image", chosen)
    return contents.images[chosen]


def masks(desk: Desk, contents: Contents, of: ImageEntry) -> Shown:
    """The mask on the image, and what it is compared with."""
    layers = short_names(contents.layers_of(of.id), Path(of.name).name.partition(".")[0])
    made = st.session_state.pop("made", None)
    if made is not None and made[0] == of.id and made[1] in layers:
        st.session_state[f"mask {of.id}"] = made[1]  # a region that was finished just now
    if not layers:
        _put_into_address("mask", None)
        _put_into_address("with", None)
        _put_into_address("compare", None)
        return Shown(None, None, "off")
    options = [NOTHING, *layers]
    first = _choose("Mask", "mask", options, next(iter(layers)), layers, of)
    if len(layers) < 2 or first == NOTHING:
        _put_into_address("with", None)
        _put_into_address("compare", None)
        return Shown(layers.get(first), None, "off")
    others = [NOTHING, *(name for name in layers if name != first)]
    second = _choose("Compare with", "with", others, NOTHING, layers, of)
    if second == NOTHING:
        _put_into_address("compare", None)
        return Shown(layers[first], None, "off")
    alike = _classes(desk, first) == _classes(desk, second)
    modes = [mode for mode, compare in MODES.items() if alike or compare != "difference"]
    first_mode = _place_of(modes, "compare", modes[0])
    how = st.radio("How", modes, first_mode, horizontal=True, key="compare", label_visibility="collapsed")
    if not alike:
        st.caption("Their classes are not the same: no difference can be drawn.")
    _put_into_address("compare", how if how != next(iter(MODES)) else None)
    return Shown(layers[first], layers[second], MODES[how])


def short_names(layers: Sequence[LayerEntry], image: str) -> dict[str, LayerEntry]:
    """By opaque name, each called without the image's name at the end of its own, as long as no two are alike then."""
    short = [re.sub(rf"/{re.escape(image)}(?=$|, corrected$)", "", layer.name) for layer in layers]
    names = short if len(set(short)) == len(short) else [layer.name for layer in layers]
    return {layer.id: replace(layer, name=name) for layer, name in zip(layers, names, strict=True)}


def on_map(desk: Desk, tiles: ImageTiles) -> bool:
    """Whether the image is shown on a map: offered where there is a base map, for what lies somewhere on Earth."""
    if desk.base_map is None or not can_be_mapped(tiles):
        return False
    chosen = st.toggle("On the map", st.query_params.get("map") == "1", key="map")
    _put_into_address("map", "1" if chosen else None)
    return chosen


def task_of(desk: Desk, of: ImageEntry) -> Task | None:
    """The region of this image that this visitor had segmented last, while its tiles are here."""
    name = st.session_state.get("task")
    task = desk.engine.tasks.get(name) if name else None
    return task if task is not None and task.wish.image == str(of.path) else None


def _classes(desk: Desk, layer: str) -> dict[int, str] | None:
    """Names of a mask's classes by their numbers; None where it cannot be read."""
    try:
        tiles = desk.mask(layer)
    except USER_ERRORS:
        return None
    return {c.value: c.name for c in tiles.labels.classes} if isinstance(tiles, MaskTiles | CorrectedTiles) else None


def _choose(label: str, key: str, options: list[str], first: str, layers: dict[str, LayerEntry], of: ImageEntry) -> str:
    place = _place_of(options, key, first)
    _forget_what_is_gone(f"{key} {of.id}", options, place)
    chosen = st.selectbox(
        label,
        options,
        place,
        format_func=lambda name: layers[name].name if name in layers else "–",
        key=f"{key} {of.id}",
    )
    _put_into_address(key, chosen if chosen != first else None)
    return str(chosen)


def _place_of(options: list[str], key: str, first: str) -> int:
    """Where the choice begins: with what the address says. A choice that a browser remembers goes before it, also
    where the server was started again meanwhile."""
    asked = st.query_params.get(key)
    return options.index(asked if asked in options else first)


def _forget_what_is_gone(key: str, options: list[str], first: int) -> None:
    """A choice that is no longer offered, because it was deleted, gives way to another."""
    if st.session_state.get(key, options[first]) not in options:
        st.session_state[key] = options[first]


def _put_into_address(key: str, value: str | None) -> None:
    if value is None:
        st.query_params.pop(key, None)
    elif st.query_params.get(key) != value:
        st.query_params[key] = value
