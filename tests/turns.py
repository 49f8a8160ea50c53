"""A pytest plugin: tests marked ``alone`` run while no other test of this directory does, in any process."""

from __future__ import annotations

import fcntl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: its bounds are the program's, not of what else a machine does")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of pytest-timeout: waiting is not the test's time
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    cache: Any = getattr(item.config, "cache", None)
    if cache is None:  # by -p no:cacheprovider
        return (yield)
    with turn(cache.mkdir("turns"), alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def turn(directory: Path, *, alone: bool) -> Iterator[None]:
    """Wait for a turn and hold it: with others, or alone. Whoever dies gives it back.

    Whoever waits to be alone holds the door, so that others cannot pass it by for ever.
    """
    with (directory / "door").open("w") as door, (directory / "room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield  # closing the file gives it back
