"""Failpoints: what switches them on, and that each is a place in the program."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from worker import failpoints
from worker.errors import CrossfadeError


def _switch_on(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(failpoints, "_active", failpoints._parse(text))


def test_each_takes_effect_once_when_its_count_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    _switch_on(monkeypatch, "apply.before_commit=raise:3,apply.after_commit=hold:1:0.2")
    failpoints.reach(failpoints.APPLY_BEFORE_COMMIT)
    failpoints.reach(failpoints.APPLY_BEFORE_COMMIT)
    with pytest.raises(failpoints.FailpointReached):
        failpoints.reach(failpoints.APPLY_BEFORE_COMMIT)
    failpoints.reach(failpoints.APPLY_BEFORE_COMMIT)
    began = time.monotonic()
    failpoints.reach(failpoints.APPLY_AFTER_COMMIT)
    assert time.monotonic() - began >= 0.2
    assert failpoints._active == {}


@pytest.mark.parametrize("text", ["apply.nowhere=exit", "apply.after_commit=explode", "apply.after_commit"])
def test_what_is_misspelt_is_refused(text: str) -> None:
    with pytest.raises(CrossfadeError):
        failpoints._parse(text)


def test_off_they_cost_nothing() -> None:
    """No failpoint lies in a loop over events, and one that is off takes less than a microsecond."""
    assert failpoints._active == {}
    began = time.process_time()
    for _ in range(100_000):
        failpoints.reach(failpoints.APPLY_BEFORE_COMMIT)
    assert time.process_time() - began < 0.1


def test_each_is_one_place_in_the_program() -> None:
    reached = [
        name
        for path in (Path(__file__).parents[2] / "worker").rglob("*.py")
        for name in re.findall(r"failpoints\.reach\(failpoints\.(\w+)\)", path.read_text())
    ]
    assert sorted(getattr(failpoints, name) for name in reached) == sorted(failpoints.NAMES)
