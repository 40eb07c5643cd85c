"""A model's card for people: Markdown, with its elastic curve drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipelines.curves import draw_scores
from pipelines.errors import RequestError
from tiling.exports.files import replacing
from veca_core import load_card
from veca_core.card import Card

COLUMNS: Final = (
    ("mean IoU", "mean_iou"), ("95 %", "interval"), ("mean Dice", "mean_dice"), ("border F1", "boundary_f1"),
    ("ECE", "ece"), ("PQ", "pq"),
)  # fmt: skip


def write_model_page(model: str, out: Path) -> list[Path]:
    """Leaves NAME.md and NAME-cores.png in a folder, for a shipped model's name or a model folder.

    Raises RequestError for a model that was never scored.
    """
    card = load_card(model)
    if not card.scores:
        raise RequestError(f"{card.name} was never scored; run veca evaluate {model} RECIPE --record first")
    out.mkdir(parents=True, exist_ok=True)
    page, picture = out / f"{card.name}.md", out / f"{card.name}-cores.png"
    draw_scores(card.scores, f"{card.name}: IoU for each number of cores", picture)
    with replacing(page) as partial:
        partial.write_text(_page(card, picture.name), encoding="utf-8")
    return [page, picture]


def _page(card: Card, picture: str) -> str:
    spacing = f"{card.spacing.value:g} {card.spacing.unit}" if card.spacing else "unknown; pixels are read as they are"
    shown = [(title, name) for title, name in COLUMNS if any(getattr(s, name) is not None for s in card.scores)]
    names = [c.name for c in card.classes]
    head = ["cores", *(title for title, _ in shown), *names]
    lines = [
        f"# {card.name}", "", card.summary, "", f"![IoU for each number of cores]({picture})", "",
        _row(head), _row(["---:"] * len(head)),
    ]  # fmt: skip
    for score in card.scores:
        values = [*(getattr(score, name) for _, name in shown), *(score.iou.get(name) for name in names)]
        lines.append(_row([str(score.cores), *map(_digits, values)]))
    few, full = card.scores[0], card.scores[-1]
    spans = " 95 % is the interval of the mean IoU, by bootstrap over images." if ("95 %", "interval") in shown else ""
    lines += [
        "",
        f"The columns of classes are IoU.{spans} Measured on what was {card.validation or 'not said'}. With "
        f"{few.cores} cores the mean IoU is {100 * (few.mean_iou - full.mean_iou):+.2f} points from that with "
        f"{full.cores}.",
        "",
        _row(["", ""]), _row(["---", "---"]),
        _row(["classes", ", ".join(f"{c.name} ({c.value})" for c in card.classes)]),
        _row(["bands", f"{', '.join(card.bands.names)}, {card.bands.dtype}"]),
        _row(["pixel size", spacing]), _row(["window", f"{card.window} px"]), _row(["data", card.data]),
        _row(["licence", card.licence]), _row(["made by", f"`{card.recipe}`" if card.recipe else ""]),
    ]  # fmt: skip
    if card.limits:
        lines += ["", "What it cannot do:", "", *(f"- {limit}" for limit in card.limits)]
    return "\n".join(lines) + "\n"


def _digits(value: float | tuple[float, float] | None) -> str:
    """A score, or both ends of an interval."""
    if value is None:
        return ""
    return "-".join(f"{number:.3f}" for number in (value if isinstance(value, tuple) else (value,)))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
