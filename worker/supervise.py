"""`crossfade run`: every role as a process of its own, started again with backoff when it ends.

Each serves its metrics on a port of its own: the first role on ``metrics_port``, the next on the one after.
The ports of roles that are left out stay free.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from topics import TopicNames, declare
from worker import exporter
from worker.broker.access import access
from worker.broker.admin import existing_topics
from worker.errors import ConfigurationError, CrossfadeError, UsageError
from worker.mapping import load as load_mapping
from worker.retry import Backoff
from worker.settings import Settings

_log = structlog.get_logger()
ROLES = ("publish", "apply", "reconcile", "reverse", "control")
_NEEDS = {
    "reconcile": ("postgres_reader_dsn",),
    "control": ("postgres_control_dsn", "postgres_reader_dsn"),
}
"""Settings without which a role cannot start, beside those that all have."""
_TOPICS_EVERY = 1.0
STEADY_AFTER = 60.0  # seconds that a process must have run for its next delay to be short again
STOP_WITHIN = 20.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class RoleRefused(UsageError):
    """A process ended with exit code 2: a person must act first."""

    def __init__(self, role: str) -> None:
        super().__init__(f"{role} cannot start", remedy="its own line above says what to do")


def chosen(settings: Settings, only: Sequence[str] = ()) -> list[str]:
    """Return the roles to run: ``only`` these, or CROSSFADE_RUN_ROLES, or all that the settings suffice for.

    `ConfigurationError` for a name that is no role.
    """
    named = list(only) or [name.strip() for name in settings.run_roles.split(",") if name.strip()]
    if unknown := [name for name in named if name not in ROLES]:
        raise ConfigurationError(
            f"CROSSFADE_RUN_ROLES: {unknown[0]} is no role", remedy=f"name some of {', '.join(ROLES)}"
        )
    if named:
        return [role for role in ROLES if role in named]
    roles: list[str] = []
    for role in ROLES:
        lacking = [name for name in _NEEDS.get(role, ()) if getattr(settings, name) is None]
        if lacking:
            _log.warning("not started", process=role, without=f"CROSSFADE_{lacking[0].upper()}")
        else:
            roles.append(role)
    return roles


def runner(only: Sequence[str]) -> Callable[[Settings, asyncio.Event], Awaitable[None]]:
    """Return what runs these roles, or those of the settings."""

    async def run(settings: Settings, stop: asyncio.Event) -> None:
        await run_roles(settings, chosen(settings, only), stop)

    return run


async def run_roles(settings: Settings, names: Sequence[str], stop: asyncio.Event) -> None:
    """Run roles until ``stop`` is set; `RoleRefused` when one says that starting again is no use."""
    ports = {role: exporter.port_of(place, settings.metrics_port) for place, role in enumerate(ROLES)}
    roles = [asyncio.create_task(_keep(role, ports[role], settings)) for role in names]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *roles}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for role in roles:
        role.cancel()
    ended = await asyncio.gather(*roles, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def _topics_are_there(settings: Settings) -> None:
    """Wait for what publish makes at its start; what is wrong, publish tells."""
    while True:
        with suppress(CrossfadeError):
            declared = declare(
                TopicNames(settings.topic_prefix),
                list(load_mapping(settings.mapping).namespaces()),
                partitions=settings.topic_partitions,
                replication=settings.topic_replication,
            )
            wanted = [topic.name for topic in declared]
            if set(wanted) <= set(await existing_topics(await access(settings), wanted)):
                return
        await asyncio.sleep(_TOPICS_EVERY)


async def _keep(role: str, metrics_port: int, settings: Settings) -> None:
    """Start a role again whenever it ends.

    Exit code 2 at its first start ends all: the settings are wrong. Later it means that a service is away
    while the role starts again, which passes.
    """
    if role == "reconcile":
        await _topics_are_there(settings)
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
