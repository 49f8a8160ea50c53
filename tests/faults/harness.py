"""One seeded run: real processes under live writes, faults from a list, then every document compared.

All choices come from the seed; when each thing happens comes from the machine too, so a failing seed may have
to be run more than once.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

from tests.support.proxy import Proxy, proxy
from tests.support.world import World, world
from worker import failpoints
from worker.embedded import Services
from worker.embedded.state import ServiceName

WRITE_SECONDS = 20.0
SETTLE_SECONDS = 150.0
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
    """A world whose roles are started again whenever they end, and the faults done to it."""

    def __init__(self, w: World, services: Services, rng: Random, proxies: dict[str, Proxy]) -> None:
        self.w, self.services, self.rng, self.proxies = w, services, rng, proxies
        self.report = Report(0)
        self.roles: dict[str, asyncio.Task[None]] = {}
        self._armed: dict[str, str] = {}
        self._away = 0
        self._changing: defaultdict[ServiceName, asyncio.Lock] = defaultdict(asyncio.Lock)

    def keep(self, name: str) -> None:
        """Start a role, and again whenever it ends; its name begins with the role's."""
        self.roles[name] = asyncio.create_task(self._keep(name))

    async def _keep(self, name: str) -> None:
        role = name.split()[0]
        while True:
            place = self._armed.pop(name, "")
            await self.w.start(role, name, CROSSFADE_FAILPOINTS=place)
            code = await self.w.processes[name].wait()
            if code == _PERSON_MUST_ACT and not self._away:
                raise Failed(f"{name} says that a person must act")
            self.report.restarts += 1
            await asyncio.sleep(0.2)

    async def leave(self, name: str) -> None:
        """End a role for good."""
        self.roles.pop(name).cancel()
        await self.w.kill(name)

    def check(self) -> None:
        """Raise what ended the keeping of a role."""
        for task in self.roles.values():
            if task.done():
                task.result()

    # The faults. Each is told with its parameters, and is over when it returns.

    async def kill_role(self) -> str:
        name = self.rng.choice(sorted(self.roles))
        self._signal(name, signal.SIGKILL)
        return f"kill {name}"

    async def die_at_failpoint(self) -> str:
        name = self.rng.choice(sorted(self.roles))
        role = name.split()[0]
        place = self.rng.choice([p for p in sorted(failpoints.NAMES) if p.startswith(role)])
        kind = self.rng.choice(["exit", "raise", f"hold:1:{self.rng.uniform(0.5, 4):.1f}"])
        count = self.rng.randint(1, 5)
        armed = f"{place}={kind}" if ":" in kind else f"{place}={kind}:{count}"
        self._armed[name] = armed
        self._signal(name, signal.SIGKILL)
        return f"start {name} with {armed}"

    async def pause_role(self) -> str:
        name, seconds = self.rng.choice(sorted(self.roles)), self.rng.uniform(0.5, 6)
        self._signal(name, signal.SIGSTOP)
        process = self.w.processes.get(name)
        await asyncio.sleep(seconds)
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        return f"pause {name} for {seconds:.1f} s"

    async def restart_service(self) -> str:
        name: ServiceName = self.rng.choice(["mongod", "kafka", "postgres"])
        seconds = self.rng.uniform(0, 4)
        self._away += 1
        async with self._changing[name]:
            await self.services.kill(name)
            await asyncio.sleep(seconds)
            await self.services.start(name)
        await asyncio.sleep(1)
        self._away -= 1
        return f"kill {name}, start it after {seconds:.1f} s"

    async def pause_service(self) -> str:
        name: ServiceName = self.rng.choice(["mongod", "kafka", "postgres"])
        seconds = self.rng.uniform(0.5, 5)
        async with self._paused(name):
            await asyncio.sleep(seconds)
        return f"pause {name} for {seconds:.1f} s"

    async def kill_while_it_waits(self) -> str:
        """Kill a role with work in flight: what it has handed over is known to nobody."""
        service: ServiceName
        service, role = self.rng.choice([("kafka", "publish"), ("kafka", "publish"), ("postgres", "apply")])
        seconds = self.rng.uniform(1.5, 4)
        async with self._paused(service):
            await asyncio.sleep(seconds)
            self._signal(role, signal.SIGKILL)
            await asyncio.sleep(0.2)
        return f"pause {service}, and kill {role} after {seconds:.1f} s"

    @asynccontextmanager
    async def _paused(self, name: ServiceName) -> AsyncIterator[None]:
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

    async def cut(self) -> str:
        name = self.rng.choice(sorted(self.proxies))
        self.proxies[name].cut()
        return f"cut connections to {name}"

    async def half_close(self) -> str:
        name = self.rng.choice(sorted(self.proxies))
        self.proxies[name].half_close()
        return f"half-close connections to {name}"

    async def delay(self) -> str:
        name, delay = self.rng.choice(sorted(self.proxies)), self.rng.uniform(0.005, 0.05)
        self.proxies[name].delay = delay
        await asyncio.sleep(3)
        self.proxies[name].delay = 0.0
        return f"delay {name} by {delay * 1000:.0f} ms"

    async def silence(self) -> str:
        name, seconds = self.rng.choice(sorted(self.proxies)), self.rng.uniform(0.5, 5)
        self.proxies[name].open.clear()
        await asyncio.sleep(seconds)
        self.proxies[name].open.set()
        return f"silence to {name} for {seconds:.1f} s"

    async def refuse(self) -> str:
        name, seconds = self.rng.choice(sorted(self.proxies)), self.rng.uniform(0.5, 4)
        self._away += 1
        self.proxies[name].refuses = True
        self.proxies[name].cut()
        await asyncio.sleep(seconds)
        self.proxies[name].refuses = False
        await asyncio.sleep(1)
        self._away -= 1
        return f"no connections to {name} for {seconds:.1f} s"

    async def join_and_leave(self) -> str:
        seconds, name = self.rng.uniform(1, 5), f"apply passing {len(self.report.faults)}"
        self.keep(name)
        await asyncio.sleep(seconds)
        await self.leave(name)
        return f"another apply for {seconds:.1f} s"

    async def send_again(self) -> str:
        sent = await self.w.send_again(seed=self.rng.randint(0, 99))
        return f"send all {sent} records again, in random order"

    def _signal(self, name: str, number: int) -> None:
        process = self.w.processes.get(name)
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)


FAULTS: list[Callable[[Run], Coroutine[Any, Any, str]]] = [
    Run.kill_role,
    Run.die_at_failpoint,
    Run.die_at_failpoint,
    Run.pause_role,
    Run.restart_service,
    Run.pause_service,
    Run.kill_while_it_waits,
    Run.cut,
    Run.half_close,
    Run.delay,
    Run.silence,
    Run.refuse,
    Run.join_and_leave,
    Run.send_again,
]


@asynccontextmanager
async def _proxied(w: World) -> AsyncIterator[dict[str, Proxy]]:
    """Put proxies before MongoDB and PostgreSQL. Kafka's clients follow what the broker advertises."""
    async with AsyncExitStack() as stack:
        proxies: dict[str, Proxy] = {}
        for name, setting in (("mongod", "CROSSFADE_MONGO_URI"), ("postgres", "CROSSFADE_POSTGRES_DSN")):
            match = re.search(r"127\.0\.0\.1:(\d+)", w.env[setting])
            assert match is not None
            one = proxies[name] = await stack.enter_async_context(proxy(int(match[1])))
            w.env[setting] = w.env[setting].replace(match[0], f"127.0.0.1:{one.port}")
        w.env["CROSSFADE_MONGO_URI"] = re.sub(
            r"/\?.*", "/?directConnection=true", w.env["CROSSFADE_MONGO_URI"]
        )
        yield proxies


async def run_seed(
    services: Services,
    directory: Path,
    seed: int,
    *,
    code: Path | None = None,
    seconds: float = WRITE_SECONDS,
) -> Report:
    """Run one seed; `Failed` or an assertion says what went wrong. ``code``: the program's folder."""
    rng = Random(seed)
    async with world(services, directory) as w, _proxied(w) as proxies:
        w.code = code or w.code
        w.env["CROSSFADE_COPY_CHUNK"] = str(rng.choice([20, 100, 500]))
        w.env["CROSSFADE_REPLICATION_ROLE"] = rng.choice(["replica", "replica", "origin"])
        run = Run(w, services, rng, proxies)
        run.report.seed = seed
        await w.load(rng.choice([200, 600, 2000]), tenants=rng.randint(2, 8), seed=seed)
        try:
            await _under_faults(run, seconds)
            await _at_rest(run)
        finally:
            for name in list(run.roles):
                await run.leave(name)
        return run.report


async def _under_faults(run: Run, seconds: float) -> None:
    rng, loop = run.rng, asyncio.get_running_loop()
    for name in ("publish", "apply", *(["apply second"] if rng.random() < 0.4 else [])):
        run.keep(name)
    async with run.w.writes(rng.choice([40, 80, 150]), seed=run.report.seed) as writer:
        until, least = loop.time() + seconds, rng.randint(3, 6)
        while loop.time() < until or len(run.report.faults) < least:
            await asyncio.sleep(rng.uniform(0.2, 2.5))
            together = rng.sample(FAULTS, 2 if rng.random() < 0.4 else 1)
            run.report.faults += await asyncio.gather(*(fault(run) for fault in together))
            run.check()
    run.report.changes = writer.counters.changes


async def _at_rest(run: Run) -> None:
    await run.w.settled(SETTLE_SECONDS)
    run.check()
    await run.w.assert_nothing_lost()
    applied = "SELECT sum(applied) FROM crossfade.partition_progress"
    before = await run.w.value(applied)
    await run.w.send_again(seed=run.report.seed)  # whatever arrives twice, and late, changes nothing
    await run.w.settled(SETTLE_SECONDS)
    await run.w.assert_nothing_lost()
    if (again := await run.w.value(applied) - before) > 0:
        raise Failed(f"{again} events were applied that had been applied before")
    for log in run.w.directory.glob("*.log"):
        if "Traceback" in log.read_text():
            raise Failed(f"{log.stem} told a traceback")
