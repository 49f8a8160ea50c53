"""The reconciler as a process: one leads, others stand by; it goes on until it is told to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import structlog
from pymongo.errors import PyMongoError

from worker import metrics
from worker.broker.changes import Lost
from worker.errors import Fatal, ServiceUnavailable, Transient
from worker.mongo.client import describe as describe_mongo
from worker.mongo.client import transient
from worker.postgres import mismatches, reconciliation
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
        self._changes: Generation | None = None
        self._changes_at = 0.0
        self._looked_at = 0
        self._swept_at = 0.0
        self._told_at = 0.0

    async def run(self) -> None:
        """Work for ever."""
        await self._follow()
        _log.info("reconciling", generation=self._changes.number if self._changes else None)
        while True:
            now = time.monotonic()
            if now >= self._swept_at + SWEEP_EVERY:
                await self._sweep()
                self._swept_at = time.monotonic()  # however long it took, the walk has its share
            if not await self._step():
                await asyncio.sleep(max(0.0, self._swept_at + SWEEP_EVERY - time.monotonic()))

    async def _follow(self) -> None:
        reconciler = self._reconciler
        self._changes = await self._begin_changes()
        known = self._changes.place.get("offsets", {})
        offsets = {(topic, int(n)): offset for topic, some in known.items() for n, offset in some.items()}
        try:
            await reconciler.follow(offsets)
            afresh = not offsets
        except Lost:
            _log.warning("Kafka no longer has all that was changed; everything is looked at anew")
            await reconciler.follow({})
            afresh = True
        # What was changed before is seen by a full generation that begins after.
        if afresh:
            self._full = await reconciler.begin_full(afresh=True)
        self._full_at = await self._due()

    async def _begin_changes(self, place: dict[str, Any] | None = None) -> Generation:
        self._changes_at = time.monotonic()
        return await reconciliation.resume_or_begin(
            self._reconciler.store, self._settings.publisher, "changes", None, place=place
        )

    async def _due(self) -> float:
        """Return when a full generation is due, by the monotonic clock."""
        ended = await reconciliation.last_full(self._reconciler.store, self._settings.publisher)
        if ended is None:
            return 0.0
        age = (datetime.now(UTC) - ended).total_seconds()
        return time.monotonic() + self._settings.reconcile_full_every - age

    async def _step(self) -> bool:
        """Take one step of a full generation; False when none is due."""
        reconciler = self._reconciler
        if self._steps is None:
            if self._full is None and time.monotonic() < self._full_at:
                return False
            self._full = self._full or await reconciler.begin_full()
            self._steps = reconciler.steps(self._full)
            _log.info("full generation", generation=self._full.number, place=self._full.place or None)
        assert self._full is not None
        try:
            step = await anext(self._steps, None)
            if step is None:
                settling, real = await reconciler.finish(self._full)
                _log.info(
                    "full generation ended", generation=self._full.number, settling=settling, mismatches=real
                )
                self._full, self._steps = None, None
                self._full_at = await self._due()
        except NotWanted:
            _log.warning("the generation proves nothing any more, beginning anew")
            self._full, self._steps, self._full_at = None, None, 0.0
        return True

    async def _sweep(self) -> None:
        reconciler = self._reconciler
        assert self._changes is not None
        try:
            copying = await reconciler.copying()
            looked_at = await reconciler.look_at_changes(self._changes.number, copying)
        except Lost:
            _log.warning("Kafka no longer has all that was changed; everything is looked at anew")
            await reconciler.follow({})
            self._full, self._steps = await reconciler.begin_full(afresh=True), None
            return
        looked_at += await reconciler.look_again(copying)
        if self._mend is not None:
            await self._mend.run()
        place: dict[str, Any] = {"offsets": {}}
        for (topic, number), offset in reconciler.offsets.items():
            place["offsets"].setdefault(topic, {})[str(number)] = offset
        wanted = await reconciliation.advance(
            reconciler.store, self._changes.number, place, {}, documents=looked_at
        )
        self._looked_at += looked_at
        over = time.monotonic() >= self._changes_at + _CHANGES_GENERATION and self._looked_at
        if not wanted or over:
            if wanted:
                await reconciler.finish(self._changes)
            self._looked_at = 0
            self._changes = await self._begin_changes(place)
        await self._tell()

    async def _tell(self) -> None:
        if time.monotonic() < self._told_at + _TELL_EVERY:
            return
        self._told_at = time.monotonic()
        counts = await mismatches.counts(self._reconciler.store)
        metrics.MISMATCHES.set_to({(state, kind): count for state, kind, count, _ in counts})
        metrics.MISMATCH_AGE.since({(state, kind): at.timestamp() for state, kind, _, at in counts})
        clean = await reconciliation.clean(self._reconciler.store, self._settings.publisher)
        metrics.CLEAN_AGE.since({(): clean[1].timestamp()} if clean else {})
