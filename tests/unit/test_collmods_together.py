"""collMods that are sent together: whatever becomes of one, all are waited for, and none is forgotten."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from worker.mongo.validators import _all


@pytest.fixture
def forgotten() -> list[dict[str, Any]]:
    """What the loop was told of that nobody had asked for."""
    return []


async def _fails(number: int) -> None:
    await asyncio.sleep(0)
    raise ValueError(number)


async def test_of_several_that_fail_one_is_told_and_none_is_forgotten(
    forgotten: list[dict[str, Any]],
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, told: forgotten.append(told))
    with pytest.raises(ValueError, match=r"\d"):
        await _all(_fails(number) for number in range(3))
    gc.collect()
    assert forgotten == []


async def test_one_who_is_cancelled_waits_for_all_and_forgets_none(forgotten: list[dict[str, Any]]) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, told: forgotten.append(told))
    sent = asyncio.Event()
    ended: list[int] = []

    async def one(number: int) -> None:
        await sent.wait()
        ended.append(number)
        raise ValueError(number)

    waiting = asyncio.create_task(_all(one(number) for number in range(3)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    sent.set()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    del waiting
    gc.collect()
    assert len(ended) == 3 and forgotten == []
