"""What the pause of a move is made of, and how the move ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID


class Steps:
    """A clock of steps that follow each other. ``seconds``: what each took, by its name."""

    def __init__(self) -> None:
        self._began = self._last = 0.0
        self.seconds: dict[str, float] = {}

    def begin(self) -> None:
        """Let the pause begin."""
        self._began = self._last = time.monotonic()

    def ended(self, name: str) -> None:
        """Note that a step has ended, and the next begins."""
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now

    @property
    def pause(self) -> float | None:
        """Seconds since the pause began; None: it has not."""
        return time.monotonic() - self._began if self._began else None

    def told(self, under_way: str = "") -> dict[str, Any]:
        """Return the pause so far and its steps as they are noted with a transition; no pause: none began.

        ``under_way``: the step that ends with the transition.
        """
        seconds = dict(self.seconds)
        if under_way:
            seconds[under_way] = time.monotonic() - self._last
        steps = {name: round(one * 1000, 1) for name, one in seconds.items()}
        pause = self.pause
        return {"steps_ms": steps} | ({} if pause is None else {"pause_ms": round(pause * 1000, 1)})

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in self.seconds.items())


@dataclass(slots=True)
class Result:
    """How a move ended. ``pause``: seconds in which the tenants could write nowhere; ``steps``: of them."""

    tenants: Sequence[UUID]
    phase: str
    pause: float | None = None
    steps: dict[str, float] = field(default_factory=dict)
    why: str = ""
    looked_at: int = 0
    settled: bool = True
    """False: the other database is away and is yet to follow, which `crossfade control` sees to."""

    @property
    def writable(self) -> bool:
        """Whether they can write there now: MongoDB has decided, but PostgreSQL may not have followed."""
        return self.settled or self.phase != "postgres"
