"""How fast a copy is."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Pace:
    """Documents a second lately. Steady work has its exact rate from the first moment.

    ``memory``: seconds after which what was counts a third.
    """

    memory: float = 60.0
    _documents: float = 0.0
    _seconds: float = 0.0

    def add(self, documents: int, seconds: float) -> float:
        """Take in that documents took seconds; return the rate."""
        kept = math.exp(-seconds / self.memory)
        self._documents = self._documents * kept + documents
        self._seconds = self._seconds * kept + seconds
        return self._documents / self._seconds if self._seconds > 0 else 0.0
