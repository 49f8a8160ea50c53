"""The order of events within one clusterTime, and which resume token may be saved. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

Token = TypeVar("Token")


class OrderCounter(Generic[Token]):
    """Follows the stream's events; times are clusterTimes as one integer (C1).

    ``safe`` is the newest token that lies inside no clusterTime: after resuming from it, every event of a
    clusterTime that comes again comes with all its companions, and so gets the same order as before.
    """

    def __init__(self) -> None:
        self.time = 0
        self.safe: Token | None = None
        self._last: Token | None = None
        self._counts: dict[tuple[str, bytes], int] = {}

    def control(self, time: int, token: Token) -> None:
        """Take note of an event that is no document's."""
        if time > self.time:
            self._begin(time)
        self._last = token

    def next(self, time: int, token: Token, namespace: str, key: bytes) -> int:
        """Return the event's position among the events of its clusterTime for its document."""
        if time > self.time:
            self._begin(time)
        self._last = token
        counts = self._counts
        document = (namespace, key)
        order = counts.get(document, 0)
        counts[document] = order + 1
        return order

    def batch_ended(self, time: int, token: Token) -> None:
        """Take the token after a batch: safe when its clusterTime is past every event's so far."""
        if time > self.time:
            self.safe = self._last = token
            self._counts.clear()

    def _begin(self, time: int) -> None:
        if self._last is not None:
            self.safe = self._last
        self.time = time
        self._counts.clear()
