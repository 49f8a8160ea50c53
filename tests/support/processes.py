"""The processes that a directory's services and commands left."""

from __future__ import annotations

from pathlib import Path

import psutil


def processes_of(directory: Path) -> list[psutil.Process]:
    """Return the processes that name a directory on their command line."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(directory) in str(one.info["cmdline"])]
