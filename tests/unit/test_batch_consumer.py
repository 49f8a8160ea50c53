"""An assignment whose seek takes too long ends the worker: Faust would go on as if it had been done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from worker.broker import batch_consumer
from worker.broker.batch_consumer import BatchConsumer


class _Slow(BatchConsumer):
    def __init__(self) -> None:
        self.told = 0
        self._read_offset: dict[Any, int | None] = {}

    async def seek_to_committed(self) -> Mapping[Any, int]:
        await asyncio.sleep(60)
        return {}

    def too_slow(self) -> None:
        self.told += 1


async def test_a_seek_that_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_consumer, "SEEK_WITHIN", 0.05)
    consumer = _Slow()
    with pytest.raises(TimeoutError):
        await consumer.perform_seek()
    assert consumer.told == 1


def test_the_worker_gives_up_before_faust_does() -> None:
    from worker.apply.worker import OFFSETS_WITHIN

    assert OFFSETS_WITHIN < batch_consumer.SEEK_WITHIN < 30
