"""What `crossfade check` makes of its answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from worker.check import exit_code, lines, progress
from worker.clock import SystemClock
from worker.prechecks import Check, valid_mapping
from worker.settings import Settings

TRUE, FALSE, UNKNOWN = Check("a", True, "yes"), Check("bb", False, "no\nline", "mend"), Check("c", None, "?")


@pytest.mark.parametrize(
    ("made", "code"),
    [([TRUE], 0), ([TRUE, FALSE], 1), ([TRUE, UNKNOWN], 2), ([FALSE, UNKNOWN], 2)],
)
def test_the_exit_code_says_whether_all_was_asked_and_all_was_true(made: list[Check], code: int) -> None:
    assert exit_code(made) == code


def test_lines_for_people_are_aligned_and_end_with_what_to_do() -> None:
    assert lines([TRUE, FALSE, UNKNOWN]) == [
        "ok       a   yes",
        "FALSE    bb  no",
        "               line",
        "             -> mend",
        "unknown  c   ?",
    ]


class _Clock(SystemClock):
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def test_progress_is_told_of_long_work_and_not_too_often() -> None:
    clock, told = _Clock(), list[str]()
    tell = progress(clock, told.append)
    for second in range(1, 8):
        clock.seconds = float(second)
        tell(str(second))
    assert told == ["2", "4", "6"]


def test_collections_that_cannot_be_fenced_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mapping.yaml"
    file.write_text(
        "version: 1\ndatabase: d\ncollections:\n  things: {table: t, tenant: null, rest: r, columns: {}}\n"
    )
    secret = SecretStr("")
    settings = Settings(mongo_uri=secret, postgres_dsn=secret, kafka_bootstrap="", mapping=file)
    _, checks = valid_mapping(settings)
    assert [(one.name, one.ok) for one in checks] == [("mapping", True), ("fences", True)]
    assert [finding["collection"] for finding in checks[1].findings] == ["things"]
    assert "things: its documents have no tenant" in checks[1].detail
