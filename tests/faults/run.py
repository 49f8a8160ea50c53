"""A run: a world whose roles are started again whenever they end, and what faults need to know of it."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from tests.support.paused import paused
from tests.support.proxy import Proxy
from tests.support.signals import send
from tests.support.wall_clock import WallClocks
from tests.support.world import World
from worker.embedded import Services
from worker.embedded.state import ServiceName, free_port

_PERSON_MUST_ACT = 2
# With the same exit code a role, or a cutover, says at its start that a service is away: it is started again.
_PASSES = (
    "cannot be reached",
    "does not answer",
    "has no primary",
    "begin now (",  # what PostgreSQL does not let begin, and passes
    "does not take the heartbeat",
    "does not list its collections",
)

T = TypeVar("T")


class Failed(AssertionError):
    """The run lost something, or did not come to rest."""


@dataclass(slots=True)
class Report:
    """What a run did."""

    seed: int
    faults: list[str] = field(default_factory=list)
    changes: int = 0
    restarts: int = 0

    def __str__(self) -> str:
        return f"{self.changes} changes, {self.restarts} restarts; {'; '.join(self.faults)}"


class Run:
    """Roles by name, which begins with the role's; proxies by service, clocks by either."""

    def __init__(
        self,
        w: World,
        services: Services,
        seed: int,
        proxies: dict[str, Proxy],
        clocks: WallClocks,
    ) -> None:
        self.w, self.services, self.proxies, self.clocks = w, services, proxies, clocks
        self.rng = Random(seed)
        self.report = Report(seed)
        self.roles: dict[str, asyncio.Task[None]] = {}
        self.armed: dict[str, str] = {}
        """Failpoints for the next start of a role."""
        self.movers: set[str] = set()
        """Processes that move tenants just now, and end by themselves."""
        self.struck: set[str] = set()
        """Those of them that were killed."""
        self._changing: defaultdict[ServiceName, asyncio.Lock] = defaultdict(asyncio.Lock)

    def keep(self, name: str) -> None:
        """Start a role, and again whenever it ends."""
        self.roles[name] = asyncio.create_task(self._keep(name))

    async def _keep(self, name: str) -> None:
        while name in self.roles:
            place = self.armed.pop(name, "")
            port = str(free_port(set()))  # of control
            env = {"CROSSFADE_FAILPOINTS": place, "CROSSFADE_CONTROL_PORT": port, **self.clocks.env(name)}
            await self.w.start(name.split()[0], name, **env)
            code = await self.w.processes[name].wait()
            if name in self.roles:
                self.may_end(name, code)
            self.report.restarts += 1
            await asyncio.sleep(0.2)

    def may_end(self, name: str, code: int) -> None:
        """`Failed` where a process has ended because it wants a person's help."""
        if code == _PERSON_MUST_ACT:
            said = (self.w.directory / f"{name}.log").read_text().splitlines()[-1]
            if not any(text in said for text in _PASSES):
                raise Failed(f"{name} says that a person must act: {said}")

    async def leave(self, name: str) -> None:
        """End a role for good."""
        task = self.roles.pop(name)
        while not task.done():  # it may be starting the process just now
            self.signal(name)
            await asyncio.wait({task}, timeout=0.1)
        self.clocks.forget(name)

    async def end(self) -> None:
        """End every role, and set the services' clocks right again."""
        for name in list(self.roles):
            await self.leave(name)
        for name in self.clocks.names:
            self.clocks.step(name, 0)

    async def tell_stacks(self) -> None:
        """Let every role's process write its threads' stacks to its log, which ends it."""
        for name in self.roles:
            self.signal(name, signal.SIGABRT)
        await asyncio.sleep(1)

    async def together(self, *work: Coroutine[Any, Any, T]) -> list[T]:
        """Do work, unless the keeping of a role ends with an error before."""
        working = asyncio.gather(*work)
        try:
            await asyncio.wait({working, *self.roles.values()}, return_when=asyncio.FIRST_COMPLETED)
            for role in self.roles.values():
                if role.done():
                    role.result()
            return await working
        finally:
            working.cancel()

    def signal(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a role's process a signal, if it runs."""
        process = self.w.processes.get(name)
        if process is not None:
            send(process, number)

    @asynccontextmanager
    async def killed(self, name: ServiceName) -> AsyncIterator[None]:
        """Kill a service, and start it after the block."""
        async with self._changing[name]:
            await self.services.kill(name)
            try:
                yield
            finally:
                await self.services.start(name)

    @asynccontextmanager
    async def paused(self, name: ServiceName) -> AsyncIterator[None]:
        """Stop a service with all its processes while the block runs."""
        async with self._changing[name]:
            with paused(self.services, name):
                yield
