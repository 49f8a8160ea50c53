"""A run: a world whose roles are started again whenever they end, and what faults need to know of it."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from random import Random

import psutil

from tests.support.proxy import Proxy
from tests.support.wall_clock import WallClocks
from tests.support.world import World
from worker.embedded import Services
from worker.embedded.state import ServiceName

_PERSON_MUST_ACT = 2


class Failed(AssertionError):
    """The run lost something, or did not come to rest."""


@dataclass(slots=True)
class Report:
    """What a run did."""

    seed: int
    faults: list[str] = field(default_factory=list)
    changes: int = 0
    restarts: int = 0


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
        self._away = 0
        self._changing: defaultdict[ServiceName, asyncio.Lock] = defaultdict(asyncio.Lock)

    def keep(self, name: str) -> None:
        """Start a role, and again whenever it ends."""
        self.roles[name] = asyncio.create_task(self._keep(name))

    async def _keep(self, name: str) -> None:
        while name in self.roles:
            place = self.armed.pop(name, "")
            await self.w.start(name.split()[0], name, CROSSFADE_FAILPOINTS=place, **self.clocks.env(name))
            code = await self.w.processes[name].wait()
            if name in self.roles and code == _PERSON_MUST_ACT and not self._away:
                raise Failed(f"{name} says that a person must act")
            self.report.restarts += 1
            await asyncio.sleep(0.2)

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

    def check(self) -> None:
        """Raise what ended the keeping of a role."""
        for task in self.roles.values():
            if task.done():
                task.result()

    def signal(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a role's process a signal, if it runs."""
        process = self.w.processes.get(name)
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    @contextmanager
    def away(self) -> Iterator[None]:
        """While a service is away, a role that starts may say that a person must act."""
        self._away += 1
        try:
            yield
        finally:
            self._away -= 1

    @asynccontextmanager
    async def killed(self, name: ServiceName) -> AsyncIterator[None]:
        """Kill a service, and start it after the block."""
        with self.away():
            async with self._changing[name]:
                await self.services.kill(name)
                try:
                    yield
                finally:
                    await self.services.start(name)
            await asyncio.sleep(1)

    @asynccontextmanager
    async def paused(self, name: ServiceName) -> AsyncIterator[None]:
        """Stop a service with all its processes while the block runs."""
        async with self._changing[name]:
            process = self.services.process(name)
            assert process is not None
            family = [process, *process.children(recursive=True)]
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.suspend()
            try:
                yield
            finally:
                for one in family:
                    with suppress(psutil.NoSuchProcess):
                        one.resume()
