"""The models that a user may choose from, without loading torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import veca_core
from pipelines.errors import USER_ERRORS
from veca_core.card import Card, parse_card

_CARD = "model.json"


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that may be chosen."""

    name: str
    """What `load_model` takes: a shipped model's name, or a folder."""
    card: Card

    @property
    def budgets(self) -> tuple[int, ...]:
        """Numbers of cores that it can run with."""
        return self.card.architecture.config.budgets


def shipped() -> list[Choice]:
    """The models that come with the package, by name."""
    zoo = Path(veca_core.__file__).with_name("zoo")
    return [Choice(place.parent.name, _card(place)) for place in sorted(zoo.glob(f"*/{_CARD}"))]


def found_in(roots: Sequence[Path]) -> list[Choice]:
    """Models that lie in these folders or one folder below; damaged ones are left out."""
    found = []
    for root in roots:
        for place in sorted([*root.glob(f"*/{_CARD}"), *root.glob(f"*/*/{_CARD}")]):
            try:
                found.append(Choice(str(place.parent.resolve()), _card(place)))
            except USER_ERRORS:
                continue
    return found


def suits(choice: Choice, kind: str, bands: int, dtype: str) -> bool:
    """Whether a model is meant for such an image: its kind, and as many bands of the same numbers."""
    meant = choice.card.kind in ("any", kind) or kind == "array"
    return meant and len(choice.card.bands.names) == bands and choice.card.bands.dtype == dtype


def _card(place: Path) -> Card:
    return parse_card(place.read_bytes(), str(place))
