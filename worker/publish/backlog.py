"""What the copy has given to Kafka and apply has not taken yet, as the time that it will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.publish.pace import Pace

Place = tuple[str, int]
"""Topic and partition."""

_LEAST_PACE = 200.0  # records a second that apply is trusted with before it has shown what it can
_MEMORY = 5.0  # seconds of that
_STUCK = 10.0  # seconds


@dataclass(slots=True)
class Backlog:
    """Records of the copy that wait for apply: the stream's next ones come behind them.

    So they are what apply's lag will be, before the lag itself can show it.
    """

    _ends: dict[Place, int] = field(default_factory=dict)
    _next: dict[Place, int] = field(default_factory=dict)
    _moved_at: dict[Place, float] = field(default_factory=dict)
    _pace: Pace = field(default_factory=lambda: Pace(_MEMORY))
    _rate: float = _LEAST_PACE
    _since: float = 0.0
    """When apply began on what its next move will show: it commits batches, each after all of its time."""

    def sent(self, ends: Mapping[Place, int]) -> None:
        """Take in up to which offsets partitions have records."""
        self._ends.update(ends)

    def look(self, offsets: Mapping[Place, int], now: float) -> None:
        """Take in how far apply has read the partitions, at a moment of the clock."""
        busy, done = self._waiting() > 0, 0
        for place in list(self._ends):
            offset = offsets.get(place, 0)
            moved = offset - self._next.get(place, offset)
            self._next[place] = offset
            if moved or place not in self._moved_at:
                self._moved_at[place] = now
            elif offset >= self._ends[place] or now > self._moved_at[place] + _STUCK:
                # All read; or nobody reads it, as after the topic was made anew. A lag tells the rest.
                del self._ends[place], self._next[place], self._moved_at[place]
            done += max(0, moved)
        if busy and done:
            self._rate = max(_LEAST_PACE, self._pace.add(done, now - self._since))
        if done or not busy:
            self._since = now

    @property
    def seconds(self) -> float:
        """Time that apply will need for what waits, at its pace of late."""
        return self._waiting() / self._rate

    def _waiting(self) -> int:
        return sum(max(0, end - self._next.get(place, end)) for place, end in self._ends.items())
