"""The parts of the page around the viewer. A panel draws itself where it is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import streamlit as st

from app.choose import Shown
from app.desk import Desk
from app.export import export_panel
from app.patience import wait_for
from app.sign_in import who
from app.words import area_texts, bytes_text, micro, percent_text, plain, seconds_text, shell_word
from pipelines.bundle import RUN, Bundle, RunRecord
from pipelines.describe import info
from pipelines.display.catalog import Contents, ImageEntry, LayerEntry
from pipelines.errors import USER_ERRORS
from pipelines.live.record import LiveRecord
from pipelines.view import FILES, AreaRow, list_files, read_areas

DOWNLOAD: Final = 50 * 10**6
"""A download passes through memory, so the page offers files up to this many bytes and the path of larger ones."""


def welcome() -> None:
    """What somebody sees who has not signed in: a way to do so, and nothing else."""
    st.header("VECA")
    st.write("Sign in to look at images.")
    st.button("Sign in", on_click=st.login, type="primary")


def visitor() -> None:
    """Who is signed in, and the way out."""
    name = who()
    if name:
        st.caption(plain(name))
        st.button("Sign out", on_click=st.logout, key="sign out", width="stretch")


def empty(desk: Desk, contents: Contents) -> None:
    """What folders without images say."""
    st.header("No images here")
    places = ", ".join(str(root) for root in desk.catalog.roots)
    st.markdown(f"There is no slide, GeoTIFF or other image in **{plain(places)}**.")
    st.code("veca view FOLDER", language=None)
    damaged(contents)


def unreadable(image: ImageEntry, reason: str) -> None:
    """What an image that cannot be opened says."""
    st.header(plain(image.name))
    st.error(f"This image cannot be shown. {plain(reason)}")


def alone(desk: Desk, contents: Contents, image: ImageEntry) -> None:
    """Why a mask has no image under it, and what shows both."""
    layer = next(layer for layer in contents.layers.values() if layer.image == image.id)
    place = Path(layer.image_path)
    if place.exists() and not desk.catalog.holds(place):
        st.info(f"The image lies in {plain(str(place.parent))}, which is not shown: here is the mask alone. Both with:")
        folders = " ".join(shell_word(str(p)) for p in [*desk.catalog.roots, place.parent])
        st.code(f"veca view {folders}", language=None)
    else:
        st.info(f"The image {plain(str(place))} is gone or has changed since this was made: here is the mask alone.")


def damaged(contents: Contents) -> None:
    """Results that cannot be shown."""
    if contents.damaged:
        with st.expander(f"{len(contents.damaged)} damaged results"):
            for result in contents.damaged:
                st.markdown(f"**{plain(result.name)}**: {plain(result.problem)}")


def below(desk: Desk, image: ImageEntry, shown: Shown) -> None:
    """Tables, files and facts under the viewer."""
    finding(desk)
    layers = [layer for layer in (shown.layer, shown.other) if layer is not None]
    if layers:
        names = ["Areas", "Export", "Files", "How it was made", "Image"]
        areas_tab, export_tab, files_tab, story_tab, image_tab = st.tabs(names)
        with areas_tab:
            area_table([(layer, areas(layer)) for layer in layers])
        with export_tab:
            export_panel(desk, image, layers[0], download)
        with files_tab:
            for layer in layers:
                downloads(layer)
        with story_tab:
            for layer in layers:
                story(layer)
    else:
        (image_tab,) = st.tabs(["Image"])
    with image_tab:
        facts(image)


def areas(layer: LayerEntry) -> list[AreaRow]:
    """The rows of areas.csv; none, with the reason on the page, where it is damaged."""
    if not layer.written:
        return []
    try:
        return read_areas(layer.folder)
    except (*USER_ERRORS, OSError) as error:
        st.error(plain(str(error)))
        return []


def area_table(tables: Sequence[tuple[LayerEntry, list[AreaRow]]]) -> str:
    """areas.csv of one mask, or of two beside each other, in units that people read; gives the Markdown."""
    parts = []
    for layer, rows in tables:
        if not rows:
            reason = "has no areas.csv" if layer.written else "was corrected since its files were written"
            parts.append(f"**{plain(layer.name)}** {reason}.")
            continue
        unit, amounts = area_texts(rows)
        lines = [
            f"**{plain(layer.name)}**, {plain(layer.model)}, {layer.cores} cores\n",
            f"| Class | Share | {f'Area ({unit}) | ' if unit else ''}Pixels |",
            f"|:--|--:|{'--:|' * bool(unit)}--:|",
        ]
        for row, amount in zip(rows, amounts, strict=True):
            area = f"{amount} | " if unit else ""
            lines.append(f"| {plain(row.name)} | {percent_text(row.share)} | {area}{row.pixels:,} |")
        parts.append("\n".join(lines))
    for column, part in zip(st.columns(max(2, len(parts))), parts, strict=False):
        column.markdown(part)
    return "\n\n".join(parts)


def finding(desk: Desk) -> None:
    """Waits for regions that are being found, and then has them shown."""
    task = desk.engine.tasks.get(st.session_state.get("finding", ""))
    if task is None:
        return
    wait_for(task, "Finding regions …")
    st.session_state["finding"] = ""
    if task.state == "failed":
        st.error(plain(task.reason))
    else:
        st.rerun()


def downloads(layer: LayerEntry) -> None:
    """A button for each file that is small enough, the path of each that is not."""
    st.caption(f"{plain(layer.name)}, in")
    st.code(str(layer.folder), language=None)
    for path in list_files(layer.folder):
        download(path, f"download {path}")


def download(path: Path, key: str) -> None:
    """A button where the file is small enough, its name and size where it is not."""
    size = path.stat().st_size
    if size <= DOWNLOAD:
        words = f"{path.name}, {bytes_text(size)}"
        st.download_button(words, path.read_bytes, path.name, FILES[path.name], on_click="ignore", key=key)
    else:
        st.caption(f"{path.name} is large ({bytes_text(size)}); it lies in the folder above.")


def story(layer: LayerEntry) -> None:
    """How a mask was made, and what one should know about it."""
    st.markdown(f"**{plain(layer.name)}**")
    if layer.mask is not None:
        st.caption("Corrected by hand. The mask below was made so:")
    folder = layer.mask or layer.folder
    try:
        if (folder / RUN).is_file():
            run = Bundle.open(folder).run
            groups, warnings = [made_by(run), memory_and_time(run), image_facts(run)], run.warnings
        else:
            groups, warnings = [region_facts(LiveRecord.read(folder))], ()
    except USER_ERRORS as error:
        st.error(plain(str(error)))
        return
    for warning in warnings:
        st.warning(plain(warning))
    for column, group in zip(st.columns(3), groups, strict=False):
        column.markdown(_listed(group))


def facts(image: ImageEntry) -> None:
    """What the image's file says of itself."""
    known = info(image.path)
    height, width = known["size"]
    shown = {
        "File": image.name,
        "Size": f"{width:,} × {height:,} px",
        "Bands": f"{', '.join(known['bands'])}; {known['dtype']}",
        "Pixel size": micro(known["spacing"] or "not stated in the file"),
        "Levels": ", ".join(f"{w:,} × {h:,}" for h, w in known["levels"]),
        **({"CRS": known["crs"]} if known["crs"] else {}),
        **{name.capitalize(): value for name, value in known["details"].items()},
    }
    for warning in known["warnings"]:
        st.warning(plain(warning))
    st.markdown(_listed(shown))


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


def region_facts(record: LiveRecord) -> dict[str, str]:
    return {
        "Model": f"{record.model} ({record.digest[:12]})",
        "Attention cores": f"{record.cores}",
        "Window": f"{record.window:,} px, overlapping by {record.overlap:,} px",
        "Plan": record.plan,
        "Time": seconds_text(record.seconds),
        "Peak memory": bytes_text(record.peak_memory),
        **({} if record.finished else {"Stopped": "what is missing is no data"}),
    }


def _listed(group: dict[str, Any]) -> str:
    return "\n\n".join(f":gray[{plain(name)}]  \n{plain(str(value))}" for name, value in group.items())
