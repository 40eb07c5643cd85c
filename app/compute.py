"""What the network is asked for from the page: a drawn region, with its plan; and what the cores look at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import viewer
from app.choose import task_of
from app.desk import Desk
from app.patience import wait_for
from app.words import micro, plain
from pipelines.display.catalog import ImageEntry
from pipelines.display.tiles import ImageTiles
from pipelines.live.engine import Task, Wish
from pipelines.shipped import Choice, found_in, shipped, suits

PATIENCE: Final = 20.0
"""Seconds for which a region is awaited that has been started: its process may be busy with another one."""
GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class Segmenting:
    """What is set up for the drawn region, and the region that is being segmented."""

    wish: Wish | None
    """None where no model suits."""
    corners: Sequence[tuple[float, float]] | None
    task: Task | None
    place: DeltaGenerator
    """Where the plan and the button go, once the viewer has been drawn."""

    def show_plan(self, desk: Desk) -> None:
        """The plan for what is drawn, and the button that starts it; or how far it is, and the button that ends it."""
        with self.place.container():
            if self.task is not None and not self.task.ended.is_set():
                st.button("Cancel", on_click=desk.engine.stop, args=(self.task,), key="cancel", width="stretch")
                return
            if self.wish is None:
                return
            if self.corners is None:
                st.caption("Draw a rectangle or a polygon on the image (D or P), then segment it here.")
                return
            plan = _plan(desk, self.wish, self.corners)
            st.button(
                "Segment", type="primary", on_click=_start, args=(desk, self.wish, self.corners), key="segment",
                disabled=plan.state != "finished", width="stretch",
            )  # fmt: skip
            if plan.state == "finished":
                for line in plan.answer["lines"]:
                    st.caption(plain(micro(line)))
                with st.popover("What else could be chosen", width="stretch"):
                    st.code("\n".join(plan.answer["table"]), language=None)
            else:
                st.error(plain(plan.reason or "The network's process does not answer; try again in a moment."))


def segment_panel(desk: Desk, image: ImageEntry, tiles: ImageTiles) -> Segmenting:
    """Model, cores and memory for the drawn region."""
    with st.expander("Segment", expanded=True):
        wish = _wishes(desk, image, tiles)
        corners = viewer.region(image)
        task = task_of(desk, image)
        if task is not None:
            _settle(desk, image, task)
            task = task_of(desk, image)
        place = st.empty()
    points = [(float(y), float(x)) for y, x in corners] if corners else None
    return Segmenting(wish, points, task, place)


def attention_panel(desk: Desk, image: ImageEntry, segmenting: Segmenting) -> dict[str, Any] | None:
    """What each core of the chosen model looks at, around what is drawn or the middle of the view."""
    with st.expander("Where the cores look"):
        if segmenting.wish is None:
            st.caption("No model suits, or there is no image.")
            return None
        st.caption(
            "The network's own attention, in one window at what is drawn or in the middle of the view: "
            "clear where a core looks least, bright where it looks most."
        )
        st.button("Look here", on_click=_attend, args=(desk, segmenting.wish, image, segmenting.corners), key="attend")
        task = desk.engine.tasks.get(st.session_state.get("attention", ""))
        if task is None or task.wish.image != str(image.path):
            return None
        if not wait_for(task, "Looking …") or task.state != "finished":
            st.error(plain(task.reason or "The network's process does not answer; try again in a moment."))
            return None
        layers, cores, height, width = task.answer["shape"]
        layer = st.slider("Layer", 1, layers, layers, key="attention layer")
        core = st.slider("Core", 1, cores, 1, key=f"attention core of {cores}")
        if not st.toggle("Show", value=True, key="attention on"):
            return None
        covers = task.answer["covers"]
        return {"id": task.id, "layer": layer - 1, "core": core - 1, "shape": [height, width], "covers": covers}


def models_for(desk: Desk, tiles: ImageTiles) -> list[Choice]:
    """Models that suit an image: shipped ones, and those in the folders that are shown."""
    source, known = tiles.source, [*shipped(), *found_in(desk.catalog.roots)]
    return [choice for choice in known if suits(choice, source.kind, len(source.bands), str(source.dtype))]


def _wishes(desk: Desk, image: ImageEntry, tiles: ImageTiles) -> Wish | None:
    source = tiles.source
    if image.alone:
        st.caption("There is no image here to segment.")
        return None
    choices = {choice.name: choice for choice in models_for(desk, tiles)}
    if not choices:
        st.caption(f"No model is here for a {source.kind} with {len(source.bands)} bands of {source.dtype}.")
        return None
    name = st.selectbox("Model", list(choices), format_func=lambda n: choices[n].card.name, key="model")
    choice = choices[name]
    budgets = list(choice.budgets)
    cores = st.select_slider("Attention cores", budgets, budgets[-1], key=f"cores of {name}")
    memory = st.number_input(
        "Memory (GiB)", 0.5, 1024.0, None, 0.5, key="memory", placeholder="automatic",
        help="The most that may be used; automatic takes four fifths of what is free.",
    )  # fmt: skip
    spacing = None
    if choice.card.spacing is not None and source.georef.spacing(source.levels[0].size) is None:
        spacing = st.text_input(
            "Size of a pixel", "native", key=f"spacing {image.id}",
            help="The file does not say it: 0.25um, 0.3m, or native to read pixels as they are.",
        )  # fmt: skip
    if st.session_state.get("warm") != name:
        st.session_state["warm"] = name
        desk.engine.warm(name)
    bound = int(memory * GIB) if memory else None
    return Wish(str(image.path), name, None if cores == budgets[-1] else cores, bound, spacing)


def _plan(desk: Desk, wish: Wish, corners: Sequence[tuple[float, float]]) -> Task:
    """The plan for a region, asked for once."""
    key = (wish, tuple(map(tuple, corners)))
    known = st.session_state.get("plan")
    if known is None or known[0] != key or known[1].state == "failed":
        known = (key, desk.engine.plan(wish, corners))
        st.session_state["plan"] = known
    task: Task = known[1]
    wait_for(task, "Planning …")
    return task


def _start(desk: Desk, wish: Wish, corners: Sequence[tuple[float, float]]) -> None:
    task = desk.engine.segment(wish, corners)
    st.session_state["task"] = task.id
    # The viewer can show the region from the moment on when its board is laid out, which is soon.
    deadline = time.monotonic() + PATIENCE
    while desk.board(task) is None and not task.ended.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)


def _settle(desk: Desk, image: ImageEntry, task: Task) -> None:
    """A region that has ended becomes the mask that is shown, with those that were there before."""
    if not task.ended.is_set():
        return
    st.session_state["task"] = None
    if task.state == "failed":
        st.error(f"The region was not segmented: {plain(task.reason)}")
        return
    contents = desk.catalog.look(fresh=0)
    made = next((e for e in contents.layers.values() if task.folder and e.folder == task.folder.resolve()), None)
    if made is not None:
        st.session_state["made"] = (image.id, made.id)
        st.rerun()


def _attend(desk: Desk, wish: Wish, image: ImageEntry, corners: Sequence[tuple[float, float]] | None) -> None:
    st.session_state["attention"] = desk.engine.attention(wish, _centre(desk, image, corners)).id


def _centre(desk: Desk, image: ImageEntry, corners: Sequence[tuple[float, float]] | None) -> tuple[float, float]:
    if corners:
        return sum(y for y, _ in corners) / len(corners), sum(x for _, x in corners) / len(corners)
    try:
        y, x, _, _ = (float(part) for part in st.query_params.get("view", "").split(","))
        return y, x
    except ValueError:
        tiles = desk.image(image.id)
        assert tiles is not None, "the page shows this image"
        size = tiles.source.levels[0].size
        return size.height / 2, size.width / 2
