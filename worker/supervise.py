"""`crossfade run`: every role as a process of its own, started again with backoff when it ends.

Each serves its metrics on a port of its own: the first role on ``metrics_port``, the next on the one after.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time

import structlog

from worker import exporter
from worker.errors import UsageError
from worker.retry import Backoff
from worker.settings import Settings

_log = structlog.get_logger()
ROLES = ("publish", "apply")
STEADY_AFTER = 60.0  # seconds that a process must have run for its next delay to be short again
STOP_WITHIN = 20.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class RoleRefused(UsageError):
    """A process ended with exit code 2: a person must act first."""

    def __init__(self, role: str) -> None:
        super().__init__(f"{role} cannot start", remedy="its own line above says what to do")


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run all roles until ``stop`` is set; `RoleRefused` when one says that starting again is no use."""
    ports = [exporter.port_of(place, settings.metrics_port) for place in range(len(ROLES))]
    roles = [asyncio.create_task(_keep(role, port)) for role, port in zip(ROLES, ports, strict=True)]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *roles}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for role in roles:
        role.cancel()
    ended = await asyncio.gather(*roles, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def _keep(role: str, metrics_port: int) -> None:
    """Start a role again whenever it ends.

    Exit code 2 at its first start ends all: the settings are wrong. Later it means that a service is away
    while the role starts again, which passes.
    """
    ran = False
    while True:
        for delay in Backoff(first=0.5, longest=30).delays():
            began = time.monotonic()
            code = await _once(role, metrics_port)
            if code == UsageError.exit_code and not ran:
                raise RoleRefused(role)
            ran = True
            _log.warning("ended, starting it again", process=role, exit_code=code, seconds=round(delay, 1))
            await asyncio.sleep(delay)
            if time.monotonic() - began > STEADY_AFTER:
                break


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its supervisor dies, even of SIGKILL (prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def _once(role: str, metrics_port: int) -> int:
    # It reads its own settings, which are ours, but two processes cannot listen on one port.
    env = {**os.environ, "CROSSFADE_METRICS_PORT": str(metrics_port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", role, env=env, preexec_fn=_end_with_parent
    )
    _log.info("started", process=role, pid=process.pid)
    try:
        return await process.wait()
    except asyncio.CancelledError:
        await end(process, STOP_WITHIN)
        raise


async def end(process: asyncio.subprocess.Process, within: float) -> None:
    """End a process by SIGTERM, and by SIGKILL when it has not ended ``within`` seconds."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(within):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
