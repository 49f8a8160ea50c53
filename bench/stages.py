"""The stages. Each begins with publish and apply stopped, and ends so, with nothing lost or it fails.

``per_second`` counts from the start of the first batch to the last COMMIT; ``per_second_from_start`` from
the start of the first process, so it holds the interpreter's start and the joining of the consumer group.
CPU of a process that the stage starts counts from the process's start.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bench import check
from bench.changes import Live, count, page_id
from bench.check import Mark
from bench.site import BenchFailed, Site, say
from bench.usage import Reading, figures
from bench.writer import Written
from worker.mapping.ids import row_id

Figures = dict[str, Any]
_SLOWEST = 500  # events a second; less ends a stage as failed


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each stage does."""

    copy: int = 200_000
    changes: int = 100_000
    rate: int = 500
    seconds: int = 30
    copy_rate: int = 3000

    @property
    def steady(self) -> int:
        """The number of changes of the steady stage."""
        return self.rate * self.seconds

    @property
    def least_copy(self) -> int:
        """The pages that must be there: some stay after each stage, and steady changes none of them twice."""
        once = count(self.steady, "update") + count(self.steady, "delete")
        return max(count(self.changes, "delete") + 1, once)


class _Measured:
    """One stage's clock: made before its first process starts."""

    def __init__(self, site: Site, since: Mark, before: Reading) -> None:
        self._site, self.since, self._before = site, since, before
        self._after = before
        self._began = time.time()

    @classmethod
    async def begin(cls, site: Site) -> _Measured:
        return cls(site, await check.mark(site), site.read_usage())

    async def applied(self, events: int) -> None:
        """Wait until so many events are settled; what the processes used is read then."""

        async def reached() -> bool:
            return await check.events(self._site) >= self.since.events + events

        await self._site.until(f"applying {events} events", reached, _within(self._site, events))
        self.read_usage()

    def read_usage(self) -> None:
        """Let what the processes have used until now be what the figures tell."""
        self._after = self._site.read_usage()

    async def end(self, events: int | None, writer: Written | None = None) -> Figures:
        """Return the figures, once all is settled and compared. ``events``: None where it is not known."""
        await check.settle(self._site)
        applied = await check.events(self._site) - self.since.events
        if events not in (None, applied):
            raise BenchFailed(f"{events} events were expected and {applied} were read")
        events = applied
        processes = self._after.since(self._before, events)
        if writer:
            processes["writer"] = figures(writer.cpu_seconds, writer.peak_mb, events)
        await check.nothing_lost(self._site)
        done = await check.batches(self._site, self.since)
        seconds, whole = done.last_committed - done.first_started, done.last_committed - self._began
        return {
            "events": events,
            "per_second": round(events / seconds),
            "seconds": round(seconds, 2),
            "per_second_from_start": round(events / whole),
            "seconds_from_start": round(whole, 2),
            "batches": done.number,
            "events_per_batch": round(events / done.number, 1),
            "load_average": round(os.getloadavg()[0], 2),
            "processes": processes,
        }


async def copy(site: Site, sizes: Sizes) -> Figures:
    """Copy what was loaded. ``per_second`` begins with the copy's first read, before its first record."""
    site.live = Live(0, sizes.copy)
    say(f"copy: loading {sizes.copy} pages")
    loaded = await site.write(site.order(how="load", live=site.live), _within(site, sizes.copy))
    measured, found = await _from_start(site, sizes.copy)
    began: Any = await site.postgres.fetchval(
        "SELECT extract(epoch FROM copy_started_at)::float8 FROM crossfade.collection "
        "WHERE namespace = 'spaces.pages'"
    )
    done = await check.batches(site, measured.since)
    seconds = done.last_committed - began
    found |= {"per_second": round(sizes.copy / seconds), "seconds": round(seconds, 2)}
    found["loaded_per_second"] = round(sizes.copy / (loaded.ended - loaded.began))
    await site.stop_all()
    return found


async def drain(site: Site, sizes: Sizes) -> Figures:
    """Drain a backlog that waits in MongoDB's oplog."""
    say(f"drain: writing {sizes.changes} changes")
    written = await _write_changes(site, sizes.changes)
    _, found = await _from_start(site, sizes.changes)
    # What the writer reaches alone: `live` cannot be faster than it.
    found["written_per_second"] = round(sizes.changes / (written.ended - written.began))
    await site.stop_all()
    return found


async def kafka(site: Site, sizes: Sizes) -> Figures:
    """Drain a backlog that waits in Kafka, by apply alone; before that, by publish alone, from the oplog."""
    say(f"kafka: writing {sizes.changes} changes")
    written = await _write_changes(site, sizes.changes)
    began, before = time.time(), site.read_usage()
    await site.start("publish")
    await _published(site, written, sizes.changes)
    took = time.time() - began
    publish = site.read_usage().since(before, sizes.changes)["publish"]
    await site.stop_all()
    measured = await _Measured.begin(site)
    await site.start("apply")
    await measured.applied(sizes.changes)
    await site.start("publish")  # its heartbeats tell when all is settled
    found = await measured.end(sizes.changes)
    found["publish_per_second_from_start"] = round(sizes.changes / took)
    found["processes"]["publish"] = publish
    await site.stop_all()
    return found


async def live(site: Site, sizes: Sizes) -> Figures:
    """Follow a writer at full speed."""
    await _running(site)
    say(f"live: {sizes.changes} changes at full speed")
    measured = await _Measured.begin(site)
    written = await _write_changes(site, sizes.changes)
    await measured.applied(sizes.changes)
    found = await measured.end(sizes.changes, written)
    found["written_per_second"] = round(sizes.changes / (written.ended - written.began))
    await site.stop_all()
    return found


async def steady(site: Site, sizes: Sizes) -> Figures:
    """Follow a steady writer: lag from before each write to its COMMIT, in ms, its write included."""
    await _running(site)
    say(f"steady: {sizes.rate} changes a second for {sizes.seconds} s")
    measured = await _Measured.begin(site)
    order = site.order(how="steady", live=site.live, changes=sizes.steady, rate=sizes.rate)
    written = await site.write(order, _within(site, sizes.steady) + sizes.seconds)
    site.live = site.live.after(sizes.steady)
    await measured.applied(sizes.steady)
    found = await measured.end(sizes.steady, written)
    found |= _lags(written, await check.commit_times(site, measured.since))
    await site.stop_all()
    return found


async def beside(site: Site, sizes: Sizes) -> Figures:
    """Follow a steady writer as `steady` does, while everything is copied again at a rate.

    Events are those of the whole copy, which goes on at full speed once the writer has ended.
    """
    await _running(site)
    say(f"beside: {sizes.rate} changes a second for {sizes.seconds} s, {sizes.copy_rate} copied a second")
    await site.command("copy", "throttle", "--rate", str(sizes.copy_rate))
    measured = await _Measured.begin(site)
    await site.command("copy", "start", "--collection", "pages", "--yes")
    await site.until("beginning the copy", lambda: _copying(site, sizes.copy_rate), site.patience)
    order = site.order(how="steady", live=site.live, changes=sizes.steady, rate=sizes.rate)
    written = await site.write(order, _within(site, sizes.steady) + sizes.seconds)
    site.live = site.live.after(sizes.steady)
    if not await _copying(site, 1):
        raise BenchFailed("the copy ended before the writer: lower --copy-rate or --seconds")
    measured.read_usage()
    await check.settle(site)
    lags = _lags(written, await check.commit_times(site, measured.since))
    await site.command("copy", "throttle", "--rate", "none")
    await site.until("copying the rest", lambda: _copied(site), _within(site, sizes.copy))
    found = await measured.end(None, written) | lags
    await site.stop_all()
    return found


async def _copying(site: Site, least: int) -> bool:
    return await site.postgres.fetchval(  # pyright: ignore[reportReturnType]
        "SELECT copy_state = 'copying' AND copied >= $1 FROM crossfade.collection "
        "WHERE namespace = 'spaces.pages'",
        least,
    )


async def _copied(site: Site) -> bool:
    return await site.postgres.fetchval(  # pyright: ignore[reportReturnType]
        "SELECT copy_state = 'copied' FROM crossfade.collection WHERE namespace = 'spaces.pages'"
    )


def _lags(written: Written, committed: dict[Any, float]) -> Figures:
    """Return the lag of each change that is still its document's newest event."""
    timed = [(committed.get(row_id(page_id(number))), at) for number, at in written.times]
    lags = sorted((commit - at) * 1000 for commit, at in timed if commit is not None)
    first, last = written.times[0][1], written.times[-1][1]
    return {
        "written_per_second": round((len(timed) - 1) / (last - first)),
        "timed": len(lags),
        "lag_ms": _spread(lags),
        "write_ms": _spread(sorted(written.write_ms)),
    }


STAGES: dict[str, Callable[[Site, Sizes], Awaitable[Figures]]] = {
    stage.__name__: stage for stage in (copy, drain, kafka, live, steady, beside)
}
"""In their order. ``copy`` always runs: the others need what it has copied."""


async def _from_start(site: Site, events: int) -> tuple[_Measured, Figures]:
    """Start both roles, and measure until what waits for them is applied."""
    measured = await _Measured.begin(site)
    for role in ("publish", "apply"):
        await site.start(role)
    await measured.applied(events)
    return measured, await measured.end(events)


async def _write_changes(site: Site, changes: int) -> Written:
    order = site.order(how="bulk", live=site.live, changes=changes)
    written = await site.write(order, _within(site, changes))
    site.live = site.live.after(changes)
    return written


async def _published(site: Site, written: Written, changes: int) -> None:
    async def reached() -> bool:
        saved = await site.postgres.fetchval("SELECT max(token_time) FROM crossfade.checkpoint")
        return saved is not None and saved >= written.cluster_time

    await site.until(f"publishing {changes} changes", reached, _within(site, changes))


async def _running(site: Site) -> None:
    for role in ("publish", "apply"):
        await site.start(role)
    await check.settle(site)
    await asyncio.sleep(1.0)  # for what a start leaves to do


def _within(site: Site, events: int) -> float:
    return site.patience + events / _SLOWEST


def _spread(ordered: list[float]) -> dict[str, float]:
    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1)

    return {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)}
