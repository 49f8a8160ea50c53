"""What is in flight: sends that the broker has not acknowledged, and the token that each would make safe."""

from __future__ import annotations

import time
from asyncio import Future
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from worker.broker.producer import acknowledged

Mark = TypeVar("Mark")


class _Sent(NamedTuple, Generic[Mark]):
    acknowledgements: Sequence[Future[Any]]
    mark: Mark
    at: float


class Window(Generic[Mark]):
    """Sends in order, at most ``size`` unacknowledged; ``durable`` follows whole prefixes only (C6)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sent: deque[_Sent[Mark]] = deque()
        self.durable: Mark | None = None

    async def add(self, acknowledgements: Sequence[Future[Any]], mark: Mark) -> None:
        """Take a send; wait while too many are in flight. ``mark`` becomes durable after all before it."""
        self._sent.append(_Sent(acknowledgements, mark, time.monotonic()))
        while len(self._sent) > self._size:
            await self._settle_first()
        await self.settle()

    @property
    def waiting(self) -> float:
        """Seconds that the oldest unacknowledged send has been waiting."""
        return time.monotonic() - self._sent[0].at if self._sent else 0.0

    async def settle(self) -> None:
        """Move on over what is acknowledged already; `Fatal` when a send failed."""
        while self._sent and all(future.done() for future in self._sent[0].acknowledgements):
            await self._settle_first()

    async def drain(self) -> None:
        """Wait for every acknowledgement."""
        while self._sent:
            await self._settle_first()

    async def _settle_first(self) -> None:
        first = self._sent[0]
        await acknowledged(first.acknowledgements)
        if self._sent and self._sent[0] is first:
            self._sent.popleft()
            self.durable = first.mark
