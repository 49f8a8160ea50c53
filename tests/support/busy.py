"""Whether the machine has so much else to do that a time says nothing of the program."""

from __future__ import annotations

import os


def busy(processes: int = 2) -> bool:
    """Whether more than so many processes of each core want to run."""
    return os.getloadavg()[0] > processes * (os.cpu_count() or 1)
