"""Numbers and names as the page writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from app import words
from pipelines.view import AreaRow


def row(area: float | None, unit: str | None) -> AreaRow:
    return AreaRow("stroma", 1, 10, area, unit, 0.5)


@pytest.mark.parametrize(
    ("areas", "unit", "expected", "texts"),
    [
        ((2.5e6, 0.0), "um2", "mm²", ["2.5", "0.0"]),
        ((2.5e6, 3.1e4, None), "um2", "mm²", ["2.500", "0.031", ""]),
        ((99.0, 0.25), "um2", "µm²", ["99.00", "0.25"]),
        ((4.4e4, 250.0), "m2", "ha", ["4.400", "0.025"]),
        ((3.2e9, 1e8), "m2", "km²", ["3,200", "100"]),
        ((0.0, None), "m2", "", ["", ""]),
        ((None, None), None, "", ["", ""]),
    ],
)
def test_areas_share_a_readable_unit_and_their_decimals(
    areas: tuple[float | None, ...], unit: str | None, expected: str, texts: list[str]
) -> None:
    assert words.area_texts([row(area, unit) for area in areas]) == (expected, texts)


def test_no_areas_have_no_unit() -> None:
    assert words.area_texts([]) == ("", [])


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (6 * 2**30, "6.0 GiB")]
)
def test_bytes_are_written_in_units_that_people_read(size: int, text: str) -> None:
    assert words.bytes_text(size) == text.replace(" ", "\u00a0")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (83.2, "1 min 23 s"), (7500, "2 h 5 min")]
)
def test_seconds_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert words.seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"), [(None, ""), (0.0, "0.0 %"), (1e-5, "<0.1 %"), (0.1234, "12.3 %"), (1.0, "100.0 %")]
)
def test_a_trace_of_a_class_is_not_written_as_nothing(share: float | None, text: str) -> None:
    assert words.percent_text(share).replace("\u00a0", " ") == text


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=30))
def test_any_text_is_shown_by_markdown_as_it_is(text: str) -> None:
    shown = MarkdownIt("commonmark").parseInline(words.plain(text))
    letters = "".join(child.content for token in shown for child in token.children or [])
    assert letters == " ".join(text.split())
