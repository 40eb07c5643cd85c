"""Reading ahead: in order, bounded, and honest about errors."""

from __future__ import annotations

import threading

import pytest

from pipelines.ahead import ahead


def test_results_come_in_order() -> None:
    assert list(ahead(lambda n: n * n, range(20), depth=3)) == [n * n for n in range(20)]


def test_no_more_than_the_depth_is_started_before_it_is_asked_for() -> None:
    started: list[int] = []
    results = ahead(started.append, range(100), depth=2)
    next(results)
    for _ in range(50):
        threading.Event().wait(0.001)
    assert len(started) <= 3
    results.close()  # type: ignore[attr-defined]
    assert len(started) <= 3


def test_an_error_is_raised_where_its_result_is_asked_for() -> None:
    results = ahead(lambda n: 1 // n, [2, 1, 0, 5], depth=1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
