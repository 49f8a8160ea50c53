"""What the integrity checks bring back, whichever of them looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at and is to be told; ``data`` is the same for programs."""

    told: str
    wrong: bool
    rows: int
    data: dict[str, Any]


@dataclass(slots=True)
class Findings:
    """What one check found, how many things it looked at, and what it could not look at, each with why."""

    looked_at: int = 0
    found: list[Finding] = field(default_factory=list[Finding])
    not_looked_at: list[str] = field(default_factory=list[str])
    remedies: list[str] = field(default_factory=list[str])

    def wrong(self) -> bool:
        """Whether anything is."""
        return any(one.wrong for one in self.found)

    def rows(self) -> int:
        """Return how many rows are wrong."""
        return sum(one.rows for one in self.found if one.wrong)


def some(rows: int, ids: Sequence[str]) -> str:
    """Return a number of rows, with those that are named."""
    named = f": {', '.join(ids)}{', ...' if rows > len(ids) else ''}" if ids else ""
    return f"{rows:,} rows{named}"
