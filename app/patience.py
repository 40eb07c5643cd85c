"""Waiting for the network's process without holding the page up: whatever the visitor does meanwhile goes first."""

from __future__ import annotations

from typing import Final

import streamlit as st

from pipelines.live.engine import Task

LONGEST: Final = 300.0
"""Seconds: a first start loads torch, on a machine that may be busy."""
STEP: Final = 0.4


def wait_for(task: Task, words: str) -> bool:
    """Whether a task ended; tells `words` while it goes on. Each step gives Streamlit the chance to begin anew."""
    if task.ended.wait(STEP):
        return True
    place = st.empty()
    waited = STEP
    while not task.ended.wait(STEP) and waited < LONGEST:
        waited += STEP
        place.caption(f"{words} ({waited:.0f} s)" if waited > 3 else words)
    place.empty()
    return task.ended.is_set()
