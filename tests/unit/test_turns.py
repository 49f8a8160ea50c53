"""Tests that must run alone do, and others still run beside each other."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.turns import turn

_CODE = """
import sys
from pathlib import Path
from tests.turns import turn
with turn(Path(sys.argv[1]), alone=sys.argv[2] == "alone"):
    print("in", flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process that wants a turn; it keeps it until `end`."""

    def __init__(self, directory: Path, how: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(directory), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> None:
        """Wait until it has its turn."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "in\n"

    def waits_at(self, file: Path) -> bool:
        """Whether it waits for a lock on this file."""
        number = f":{file.stat().st_ino} "
        lines = Path("/proc/locks").read_text().splitlines()
        return any("->" in line and number in line and f" {self._process.pid} " in line for line in lines)

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def other(directory: Path, how: str) -> Iterator[Other]:
    one = Other(directory, how)
    try:
        yield one
    finally:
        one.end()


def until_it_waits(one: Other, file: Path) -> None:
    until = time.monotonic() + 30
    while not one.waits_at(file):
        assert time.monotonic() < until, "it does not wait"
        time.sleep(0.01)


def test_others_run_beside_each_other(tmp_path: Path) -> None:
    with turn(tmp_path, alone=False), other(tmp_path, "with others") as one:
        one.wait()


@pytest.mark.parametrize(("mine", "its"), [(True, "with others"), (True, "alone"), (False, "alone")])
def test_one_alone_waits_for_others_and_they_for_it(tmp_path: Path, mine: bool, its: str) -> None:
    with ExitStack() as stack:
        with turn(tmp_path, alone=mine):
            one = stack.enter_context(other(tmp_path, its))
            until_it_waits(one, tmp_path / "room")
        one.wait()


def test_who_waits_to_be_alone_is_not_passed_by(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with turn(tmp_path, alone=False):
            alone = stack.enter_context(other(tmp_path, "alone"))
            until_it_waits(alone, tmp_path / "room")
            late = stack.enter_context(other(tmp_path, "with others"))
            until_it_waits(late, tmp_path / "door")
        alone.wait()
        until_it_waits(late, tmp_path / "room")
        alone.end()  # killed, it gives its turn back
        late.wait()
