"""report.html: a folder of results on one page that needs nothing else, to be handed to a colleague."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final
from urllib.parse import quote

from PIL import Image

from pipelines.bundle import Bundle
from pipelines.errors import USER_ERRORS, RequestError
from pipelines.progress import Report, quiet
from pipelines.view import AreaRow, Result, list_files, list_results, read_areas
from tiling import Size
from tiling.exports.files import replacing
from tiling.exports.overlay import coarse_labels, hatched, overlay
from tiling.exports.thumbnail import thumbnail
from tiling.labels import Labels

REPORT: Final = "report.html"
_SIDE: Final = 480
"""Longest side of a picture in pixels."""
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page may show what it holds, and load and run nothing."""
_STYLE: Final = """
body{font:15px/1.5 system-ui,"DejaVu Sans",sans-serif;color:#15191e;background:#f4f6f8;margin:0}
main{max-width:1080px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:0 0 12px;overflow-wrap:anywhere}
p{margin:4px 0}.faint{color:#59636e}a{color:#0757a8}
section{background:#fff;border:1px solid #d5dbe1;border-radius:8px;padding:20px;margin:20px 0;break-inside:avoid}
.pictures{display:flex;gap:12px;flex-wrap:wrap;margin-bottom:12px}
figure{margin:0;flex:1 1 300px;max-width:480px}figcaption{font-size:13px;color:#59636e}
img{max-width:100%;height:auto;border:1px solid #d5dbe1;display:block}
table{border-collapse:collapse;margin:8px 0}th,td{text-align:right;padding:3px 14px 3px 0}
th{font-weight:600;border-bottom:1px solid #d5dbe1}th:first-child,td:first-child{text-align:left}
.swatch{display:inline-block;width:14px;height:14px;border:1px solid #59636e;vertical-align:-2px;margin-right:8px}
.warning{border-left:4px solid #b7791f;padding-left:10px;overflow-wrap:anywhere}
.failed{border-left:4px solid #b3261e;padding-left:10px;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:8px 0}dt{color:#59636e}
dd{margin:0;overflow-wrap:anywhere}
"""


def write_report(folder: Path, *, report: Report = quiet) -> Path:
    """Writes `folder`/report.html: pictures, areas, warnings, plan and links of every result in the folder or below.

    A damaged result, and an image that failed, is there with its reason. The page names images by their file names
    alone, loads nothing and runs nothing; its links lead to files beside it. Memory holds one result at a time. Raises
    RequestError where the folder holds no result.
    """
    results, failures = list_results(folder), list(_failures(folder))
    if not results and not failures:
        raise RequestError(f"{folder} holds no results; give the --out folder of a segmentation")
    path = folder / REPORT
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.write(_head(folder, results, failures))
        for result in results:
            report(result.name)
            file.write(_section(folder, result))
        for image, reason in failures:
            file.write(f'<section><h2>{_text(image)}</h2><p class="failed">Failed: {_text(reason)}</p></section>\n')
        file.write("</main></body></html>\n")
    return path


def _head(folder: Path, results: list[Result], failures: list[tuple[str, str]]) -> str:
    name = _text(folder.resolve().name)
    damaged = sum(result.bundle is None for result in results)
    counts = [f"{len(results) - damaged} done", *([f"{damaged} damaged"] if damaged else [])]
    counts += [f"{len(failures)} failed"] if failures else []
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body><main>\n"
        f'<h1>{name}</h1><p class="faint">Segmented images: {", ".join(counts)}. Areas are what a model said, '
        "to be checked by a person who knows such images; not for diagnosis.</p>\n"
    )


def _section(folder: Path, result: Result) -> str:
    """One result; where something of it is damaged, the rest and what is wrong."""
    if result.bundle is None:
        problem = _text(result.problem.replace(str(folder.resolve()), ""))
        return f'<section><h2>{_text(result.name)}</h2><p class="failed">{problem}</p></section>\n'
    bundle, parts = result.bundle, [f"<section><h2>{_text(result.name)}</h2>"]
    try:
        labels = bundle.labels()
        parts += [_pictures(bundle, labels), _areas(read_areas(bundle.folder), labels)]
    except (*USER_ERRORS, OSError, ValueError, RuntimeError) as error:  # Zarr's, for bytes that it cannot decode
        parts.append(f'<p class="failed">{_text(str(error).replace(str(folder.resolve()), ""))}</p>')
    notes = [*bundle.run.warnings, *bundle.run.steps_down]
    parts += [f'<p class="warning">{_text(_without_path(note, bundle))}</p>' for note in notes]
    parts += [_facts(bundle), _links(folder, bundle), "</section>\n"]
    return "\n".join(parts)


def _pictures(bundle: Bundle, labels: Labels) -> str:
    image = bundle.image()
    scale = min(1.0, _SIDE / max(labels.size.height, labels.size.width))
    size = Size(max(1, round(labels.size.height * scale)), max(1, round(labels.size.width * scale)))
    if image is None:
        picture = Image.fromarray(overlay(None, coarse_labels(labels, size), labels.classes))
        shown = [(picture, "The classes. The image is gone or has changed since: it is not shown.")]
    else:
        rgb, valid = thumbnail(image, max(size.height, size.width))
        image.source.close()
        size = Size(*rgb.shape[:2])
        laid = overlay(rgb, coarse_labels(labels, size), labels.classes)
        shown = [
            (Image.fromarray(hatched(rgb, valid)), "The image"),
            (Image.fromarray(laid), "The classes laid over it"),
        ]
    figures = [
        f'<figure><img src="{_data_url(p)}" width="{p.width}" height="{p.height}" alt="{_text(words)}">'
        f"<figcaption>{_text(words)}</figcaption></figure>"
        for p, words in shown
    ]
    return f'<div class="pictures">{"".join(figures)}</div>'


def _areas(rows: list[AreaRow], labels: Labels) -> str:
    if not rows:
        return '<p class="faint">Areas were not asked for.</p>'
    colors = {c.value: bytes(c.color).hex() for c in labels.classes}
    unit = next((row.unit for row in rows if row.unit), None)
    large, factor = ("mm²", 1e-6) if unit == "um2" else ("ha", 1e-4)
    head = ["class", "pixels", *([large] if unit else []), "share"]
    lines = ["<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    for row in rows:
        color = colors.get(row.value) if row.value is not None else None
        swatch = f'<span class="swatch" style="background:#{color}"></span>' if color else ""
        cells = [f"{row.pixels:,}"]
        cells += ["" if row.area is None else f"{row.area * factor:,.4f}"] if unit else []
        cells.append("" if row.share is None else f"{100 * row.share:.2f} %")
        lines.append(f"<tr><td>{swatch}{_text(row.name)}</td>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _facts(bundle: Bundle) -> str:
    run = bundle.run
    height, width = run.image.size
    spacing = f", {run.image.spacing}" if run.image.spacing else ""
    facts = {
        "image": f"{Path(run.image.path).name}, {width:,} x {height:,} px{spacing}",
        "read": run.grid.note,
        "model": f"{run.model.name} ({run.model.digest[:12]})",
        "plan": f"{run.plan.cores} cores, window {run.plan.window} px, overlap {run.plan.overlap} px, batch "
        f"{run.plan.batch}, on {run.plan.device} in {run.plan.precision}",
        "why": run.plan.reason,
        "time": f"{sum(run.seconds.values()):.1f} s, peak memory {run.peak_memory / 2**30:.2f} GiB",
        "version": f"veca {run.versions.get('veca', '')}",
    }
    return "<dl>" + "".join(f"<dt>{key}</dt><dd>{_text(text)}</dd>" for key, text in facts.items()) + "</dl>"


def _links(folder: Path, bundle: Bundle) -> str:
    """To the files beside the page."""
    files = [*list_files(bundle.folder), bundle.folder / "run.json"]
    here = folder.resolve()
    inside = [path for path in map(Path.resolve, files) if path.is_file() and path.is_relative_to(here)]
    targets = [quote(path.relative_to(here).as_posix(), errors="replace") for path in inside]
    links = [f'<a href="{target}">{_text(path.name)}</a>' for path, target in zip(inside, targets, strict=True)]
    return f"<p>{' · '.join(links)}</p>"


def _failures(folder: Path) -> Iterator[tuple[str, str]]:
    """File name and reason of each image that failed, as the last batch's summary.csv has it."""
    path = folder / "summary.csv"
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            if row.get("status") == "failed":
                image = row.get("image") or ""
                name = Path(image).name
                yield name, (row.get("reason") or "").replace(image, name)


def _without_path(note: str, bundle: Bundle) -> str:
    """A note that names the image by its file name: where it lay on this machine is nobody's business."""
    return note.replace(bundle.run.image.path, Path(bundle.run.image.path).name)


def _data_url(picture: Image.Image) -> str:
    """JPEG, inside the page."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _text(text: str) -> str:
    """Safe in HTML, in attributes too, and without characters that are no text."""
    return escape("".join(c if c.isprintable() else " " for c in text), quote=True)
