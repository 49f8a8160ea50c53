"""The reconciler as a process: one leads, others stand by; it goes on until it is told to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from itertools import product

import structlog
from pymongo.errors import PyMongoError

from worker import metrics
from worker.broker.changes import Lost
from worker.errors import Fatal, ServiceUnavailable, Transient
from worker.mongo.client import describe as describe_mongo
from worker.mongo.client import transient
from worker.postgres import batches, mismatches, proof, reconciliation
from worker.postgres.faults import FAULTS, Action, action_for, describe
from worker.postgres.leadership import Leadership, leads
from worker.postgres.reconciliation import Generation
from worker.reconcile.reconciler import SWEEP_EVERY, NotWanted, Reconciler, opened
from worker.reconcile.self_repair import SelfRepair
from worker.reconcile.walk import Step
from worker.repair import send
from worker.retry import Backoff
from worker.settings import Settings

_log = structlog.get_logger()
_CHANGES_GENERATION = 10.0  # seconds
_IDLE_GENERATION = 60.0  # seconds; nothing was changed, and that is told
_TELL_EVERY = 5.0  # seconds


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Reconcile until ``stop`` is set. Raises `CrossfadeError` when a person or a restart is needed."""
    leadership = Leadership(settings.postgres_dsn.get_secret_value(), f"reconcile {settings.publisher}")
    try:
        if not await leads(leadership, stop):
            return
        holding = asyncio.create_task(leadership.hold())
        stopping = asyncio.create_task(stop.wait())
        working = asyncio.create_task(_again_and_again(settings))
        await asyncio.wait({holding, stopping, working}, return_when=asyncio.FIRST_COMPLETED)
        for task in (holding, working):
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(holding, working, return_exceptions=True)
    finally:
        leadership.release()
    _log.info("reconciler stopped")


async def _again_and_again(settings: Settings) -> None:
    """Go on where it was left, whenever a service was away."""
    async with opened(settings, "reconcile"):
        pass  # at the start a person may have to act
    delays = Backoff().delays()
    while True:
        began, reason = time.monotonic(), ""
        try:
            async with AsyncExitStack() as stack:
                reconciler = await stack.enter_async_context(opened(settings, "reconcile"))
                mend: SelfRepair | None = None
                if settings.repair_after is not None:
                    sender = await stack.enter_async_context(
                        send.opened(settings, reconciler.mapping, "reconcile")
                    )
                    repair = reconciler.repair(sender, settings.repair_limit)
                    mend = SelfRepair(repair, settings.repair_after)
                await _Turns(settings, reconciler, mend).run()
        except PyMongoError as error:
            if not transient(error):
                raise Fatal(f"MongoDB refuses to be read ({describe_mongo(error)})") from None
            reason = describe_mongo(error)
        except (ServiceUnavailable, Transient) as error:
            reason = error.message
        except FAULTS as error:
            action, why = action_for(error)
            if action is not Action.RETRY:
                raise Fatal(f"PostgreSQL refuses: {describe(error)}", remedy=why) from None
            reason = describe(error)
        _log.warning("reconciling interrupted, going on soon", reason=reason)
        if time.monotonic() - began > 60:
            delays = Backoff().delays()
        await asyncio.sleep(next(delays))


class _Turns:
    """Full generations and sweeps by turns."""

    def __init__(self, settings: Settings, reconciler: Reconciler, mend: SelfRepair | None) -> None:
        self._settings, self._reconciler, self._mend = settings, reconciler, mend
        self._full: Generation | None = None
        self._steps: AsyncIterator[Step] | None = None
        self._full_at = 0.0
        self._may_begin = False
        self._changes: Generation | None = None
        self._changes_at = 0.0
        self._looked_at = 0
        self._swept_at = 0.0
        self._told_at = 0.0

    async def run(self) -> None:
        """Work for ever."""
        self._changes, anew = await self._reconciler.go_on()
        self._changes_at = time.monotonic()
        self._full_at = await self._due()
        if anew:
            _log.warning("what was changed before is not known; everything is looked at anew")
        _log.info("reconciling", generation=self._changes.number)
        while True:
            now = time.monotonic()
            if now >= self._swept_at + SWEEP_EVERY:
                await self._sweep()
            if not await self._step():
                await asyncio.sleep(max(0.0, self._swept_at + SWEEP_EVERY - time.monotonic()))

    async def _due(self) -> float:
        """Return when a full generation is due, by the monotonic clock."""
        ended = await reconciliation.last_full(self._reconciler.store, self._settings.publisher)
        if ended is None:
            return 0.0
        age = (datetime.now(UTC) - ended).total_seconds()
        return time.monotonic() + self._settings.reconcile_full_every - age

    async def _step(self) -> bool:
        """Take one step of a full generation; False when none is due, or it waits for a sweep."""
        reconciler = self._reconciler
        if self._steps is None:
            if not self._may_begin or time.monotonic() < self._full_at:
                return False
            self._full = await reconciler.begin_full()
            self._steps = reconciler.steps(self._full)
            _log.info("full generation", generation=self._full.number, place=self._full.place or None)
        assert self._full is not None
        try:
            if await anext(self._steps, None) is not None:
                return True
            # What was changed while it walked must have been looked at.
            if not await self._sweep() or self._full is None:
                return False
            ended = await reconciler.finish(self._full)
            _log.info("full generation ended", generation=self._full.number, **ended._asdict())
        except NotWanted:
            _log.warning("the generation proves nothing any more, beginning anew")
        self._full, self._steps = None, None
        self._full_at = await self._due()
        return True

    async def _sweep(self) -> bool:
        """Look at what was changed or did not fit; return whether all that apply has read was looked at."""
        reconciler = self._reconciler
        assert self._changes is not None
        try:
            swept = await reconciler.sweep(self._changes.number)
        except Lost:
            _log.warning("Kafka no longer has all that was changed; everything is looked at anew")
            await reconciler.begin_anew(self._changes)
            self._full, self._steps, self._full_at = None, None, 0.0
            return False
        finally:
            self._swept_at = time.monotonic()  # however long it took, the walk has its share
        if self._mend is not None:
            await self._mend.run()
        self._looked_at += swept.looked_at
        self._may_begin = not swept.copying
        wanted = await reconciler.note_changes(self._changes, swept.looked_at)
        every = _CHANGES_GENERATION if self._looked_at else _IDLE_GENERATION
        over = swept.complete and time.monotonic() >= self._changes_at + every
        if not wanted or over:
            if wanted:
                with suppress(NotWanted):
                    await reconciler.finish(self._changes)
            self._looked_at, self._changes_at = 0, time.monotonic()
            self._changes = await reconciler.begin_changes()
        if swept.all_seen:
            metrics.LOOKED_AGE.since({(): time.time()})
        await self._tell()
        return swept.complete

    async def _tell(self) -> None:
        if time.monotonic() < self._told_at + _TELL_EVERY:
            return
        self._told_at = time.monotonic()
        store = self._reconciler.store
        counts = await mismatches.counts(store)
        none = dict.fromkeys(product(mismatches.STATES, mismatches.KINDS), 0)
        metrics.MISMATCHES.set_to(none | {(state, kind): count for state, kind, count, _ in counts})
        metrics.MISMATCH_AGE.since({(state, kind): at.timestamp() for state, kind, _, at in counts})
        metrics.HELD.set_to({(): await batches.count_held(store)})
        clean = await proof.clean(store, self._settings.publisher)
        metrics.CLEAN_AGE.since({(): clean.ended_at.timestamp()} if clean else {})
        if self._steps is None:  # what the last one was about may have changed
            self._full_at = await self._due()
