"""A process that is sent signals while it ends keeps its exit code."""

from __future__ import annotations

import asyncio
import signal

from tests.support.signals import send


async def test_a_signal_does_not_cost_the_exit_code() -> None:
    for _ in range(60):
        process = await asyncio.create_subprocess_exec("sh", "-c", "trap '' CONT; exit 7")
        while process.returncode is None:
            send(process, signal.SIGCONT)
            await asyncio.sleep(0)
        assert process.returncode == 7


async def test_one_that_has_ended_is_sent_nothing() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    send(process)
    assert await process.wait() == -signal.SIGKILL
    send(process)
