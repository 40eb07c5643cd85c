"""The parts of the page. A panel draws itself where it is called and returns what the rest of the page needs of it."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import streamlit as st

from app import render
from pipelines.bundle import Bundle, RunRecord
from pipelines.errors import USER_ERRORS
from pipelines.view import FILES, AreaRow, LegendEntry, Result, Scene, list_files, read_areas, scene, stamp

FRAME: Final = (1100, 1440)
"""(height, width) in pixels that a picture fits; Streamlit would blur a picture wider than 1460."""
MANY: Final = 12
"""More results than this get a filter."""
DOWNLOAD: Final = 50 * 10**6
"""A download passes through memory, so the page offers files up to this many bytes and the path of larger ones."""
_AREA_UNITS: Final = {
    "um2": (("mm²", 1e-6, 1e5), ("µm²", 1.0, 0.0)),
    "m2": (("km²", 1e-6, 1e6), ("ha", 1e-4, 1e3), ("m²", 1.0, 0.0)),
}
"""For a unit of areas.csv: the units that people read, largest first, their factors, and from what area they serve."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a user wants to see the mask."""

    opacity: float
    """0..1; 0 where the mask is hidden."""
    colors: dict[int, render.Color]
    """Of the class values that are to be seen."""


def empty(folder: Path) -> None:
    """What a folder without results says."""
    st.header("No results yet")
    st.markdown(f"There are no results in **{plain(str(folder))}**. This command makes some:")
    st.code(f"veca segment IMAGE --model aerial-landcover --out {shell_word(str(folder))}", language=None)
    st.markdown("Reload this page when it has finished.")


def choose(results: Sequence[Result]) -> Result:
    """A box with all results; damaged ones say so."""
    problems = {result.name: result.problem for result in results}
    names = list(problems)
    if len(names) > MANY:
        wanted = st.text_input("Filter", placeholder="part of a name", key="filter").strip().lower()
        found = [name for name in names if wanted in name.lower()]
        st.caption(f"{len(found)} of {len(names)} results" if found else "No name has this part: here are all results.")
        names = found or names
    first = next((i for i, name in enumerate(names) if not problems[name]), 0)
    name = st.selectbox(
        "Result",
        names,
        index=first,
        format_func=lambda name: f"{name} (damaged)" if problems.get(name) else name,
        key="result",
    )
    return next(result for result in results if result.name == name)


def damaged(result: Result) -> None:
    """What a damaged result says."""
    st.header(plain(result.name))
    st.error(f"This result is damaged and cannot be shown. {plain(result.problem)}")


def heading(result: Result, run: RunRecord) -> None:
    """Name, size, spacing and model; then what the user should know about this result."""
    st.header(plain(result.name))
    height, width = run.grid.size
    facts = [f"{width:,} × {height:,} px", micro(run.grid.spacing or "pixel size unknown"), f"model {run.model.name}"]
    st.caption("  ·  ".join(plain(fact) for fact in facts))
    for warning in run.warnings:
        st.warning(plain(warning))


def load(bundle: Bundle) -> Scene | None:
    """The pixels to show, kept for the next time; None, with the reason on the page, where they cannot be read."""
    try:
        return _scene(bundle, stamp(bundle))
    except (*USER_ERRORS, OSError) as error:
        st.error(f"The mask cannot be shown. {plain(str(error))}")
        return None


def look(shown: Scene) -> Look:
    """Mask on or off, its opacity, and a switch for each class. Without an image the mask is opaque."""
    visible = st.toggle("Show mask", value=True, key="mask")
    alone = shown.rgb is None
    percent = st.slider("Opacity", 0, 100, 45, format="%d %%", key="opacity", disabled=alone or not visible)
    st.caption("Classes")
    wanted = [
        entry
        for entry in shown.legend
        if st.checkbox(
            named(entry), value=not entry.background, key=f"class {entry.value} {entry.name}", disabled=not visible
        )
    ]
    opacity = 1.0 if alone else percent / 100
    return Look(opacity if visible else 0.0, {entry.value: entry.color for entry in wanted})


def picture(shown: Scene, how: Look, run: RunRecord) -> bytes:
    """The image under its mask, and how much smaller it is than the result; gives the PNG that is on the page."""
    if shown.note:
        st.info(plain(shown.note))
    painted = render.overlay(shown.rgb, shown.values, how.colors, how.opacity)
    png = render.png(render.enlarge(painted, *FRAME))
    st.image(png, output_format="PNG", alt="The image with the colours of its classes")
    reduction = run.grid.size[1] / shown.values.shape[1]
    if reduction > 1.05:
        st.caption(f"The whole result, reduced {reduction:.1f} times to fit: smaller things are not seen here.")
    return png


def areas(bundle: Bundle) -> list[AreaRow]:
    """The rows of areas.csv; none, with the reason on the page, where it is damaged."""
    try:
        return read_areas(bundle)
    except (*USER_ERRORS, OSError) as error:
        st.error(plain(str(error)))
        return []


def legend(entries: Sequence[LegendEntry], rows: Sequence[AreaRow]) -> str:
    """Colours, names and shares; gives the Markdown that is on the page."""
    shares = {row.value: percent_text(row.share) for row in rows}
    lines = [f"| {named(entry)} | {shares.get(entry.value, '')} |" for entry in entries]
    text = "\n".join([f"| Class | {'Share' if shares else ''} |", "|:--|--:|", *lines])
    st.markdown(text)
    return text


def area_table(rows: Sequence[AreaRow]) -> str:
    """areas.csv in units that people read; gives the Markdown that is on the page."""
    unit, amounts = area_texts(rows)
    lines = [f"| Class | Share | {f'Area ({unit}) | ' if unit else ''}Pixels |", f"|:--|--:|{'--:|' * bool(unit)}--:|"]
    for row, amount in zip(rows, amounts, strict=True):
        area = f"{amount} | " if unit else ""
        lines.append(f"| {plain(row.name)} | {percent_text(row.share)} | {area}{row.pixels:,} |")
    text = "\n".join(lines)
    st.markdown(text)
    return text


def story(run: RunRecord) -> None:
    """How the result was made."""
    with st.expander("How it was made"):
        columns = st.columns(3)
        for column, facts in zip(columns, (made_by(run), memory_and_time(run), image_facts(run)), strict=True):
            column.markdown("\n\n".join(f":gray[{plain(name)}]  \n{plain(value)}" for name, value in facts.items()))


def downloads(bundle: Bundle) -> None:
    """A button for each file that is small enough, the path of each that is not."""
    files = list_files(bundle)
    for path in files:
        size = path.stat().st_size
        if size <= DOWNLOAD:
            st.download_button(
                f"{path.name}, {bytes_text(size)}", path.read_bytes, path.name, FILES[path.name],
                on_click="ignore", key=f"download {path}", width="stretch",
            )  # fmt: skip
        else:
            st.caption(f"{path.name} is large ({bytes_text(size)}); it lies at")
            st.code(str(path), language=None)


def made_by(run: RunRecord) -> dict[str, str]:
    plan = run.plan
    return {
        "Model": f"{run.model.name} ({run.model.digest[:12]})",
        "Attention cores": f"{plan.cores}",
        "Window": f"{plan.window:,} px, overlapping by {plan.overlap:,} px",
        "Device": f"{plan.device}, {plan.precision}, {plan.batch} at a time",
        "Why this plan": plan.reason,
    }


def memory_and_time(run: RunRecord) -> dict[str, str]:
    resumed = f", {run.resumed_blocks:,} of them from an interrupted run" if run.resumed_blocks else ""
    return {
        "Memory allowed": bytes_text(run.plan.memory),
        "Peak memory": f"{bytes_text(run.plan.predicted)} predicted, {bytes_text(run.peak_memory)} measured",
        "Work": f"{run.windows:,} windows in {run.blocks:,} blocks{resumed}",
        "Time": ", ".join(f"{name} {seconds_text(value)}" for name, value in run.seconds.items()),
    }


def image_facts(run: RunRecord) -> dict[str, str]:
    height, width = run.image.size
    return {
        "Image": run.image.path,
        "Size": f"{width:,} × {height:,} px",
        "Bands": f"{', '.join(run.image.bands)}; {run.image.dtype}",
        "Pixel size": micro(run.image.spacing or "not stated in the file"),
        "How it was read": micro(run.grid.note),
        "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }


def area_texts(rows: Sequence[AreaRow]) -> tuple[str, list[str]]:
    """A unit that people read and each row's area in it, all with as many decimals; ('', empty texts) without areas.

    The largest area chooses the unit; the smallest keeps two digits, as far as six decimals reach.
    """
    known = [row.area for row in rows if row.area]
    units = _AREA_UNITS.get(rows[0].unit or "") if rows else None
    if not known or units is None:
        return "", [""] * len(rows)
    unit, factor = next((name, factor) for name, factor, least in units if max(known) >= least)
    decimals = min(6, max(0, 1 - math.floor(math.log10(min(known) * factor))))
    return unit, ["" if row.area is None else f"{row.area * factor:,.{decimals}f}" for row in rows]


def percent_text(share: float | None) -> str:
    if share is None:
        return ""
    return "<0.1\u00a0%" if 0 < share < 0.001 else f"{share * 100:.1f}\u00a0%"


def bytes_text(size: int) -> str:
    """Like '1.4 GiB'."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.{0 if units[0] == 'bytes' else 1}f}\u00a0{units[0]}"


def seconds_text(seconds: float) -> str:
    """Like '12.3 s', '4 min 10 s' or '2 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def named(entry: LegendEntry) -> str:
    """Markdown: a class's colour and name."""
    return f"![]({render.swatch(entry.color)})\u2002{plain(entry.name)}"


def micro(text: str) -> str:
    """'0.5 um/px' with its Greek letter."""
    return re.sub(r"\bum\b", "µm", text)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line: names come from files and may hold anything."""
    line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in string.punctuation else letter for letter in line)


def shell_word(text: str) -> str:
    """A path as it is typed: in quotes where it has spaces."""
    return f'"{text}"' if re.search(r"\s", text) else text


@st.cache_data(max_entries=16, show_spinner="Reading the image …")
def _scene(_bundle: Bundle, stamp: str) -> Scene:  # noqa: ARG001 - the key under which it is kept
    return scene(_bundle, *FRAME)
