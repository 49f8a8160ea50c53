"""The router: where a unit of work is done, and done again when its tenant moves in the middle.

What is known of a phase is advice, at any moment outdated: the fences of both databases are the law. So a
write may be tried on the side last heard of, even when nobody has answered for long; a fence's refusal, which
keeps nothing of it, is the sign to ask again. Only a fence's refusal is: every other error goes to the
caller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from crossfade_client import refusals
from crossfade_client.errors import Moved, PartlyDone, PauseTooLong, PhaseUnknown, TooStale
from crossfade_client.known import Known
from crossfade_client.phases import SETTLED, Reading, Side, State, Store, reads_from, writes_to
from crossfade_client.shadow import Compare, Shadows, differing_paths
from crossfade_client.sources import Away, HttpSource, SqlSource

T = TypeVar("T")
Tenant = UUID | str
Unit = Callable[[Side], Awaitable[T]]
_FIRST_QUESTIONS = 3
_BETWEEN_FIRST_QUESTIONS = 0.3  # seconds
_AGAIN = 0.1  # seconds between tries while nobody answers
_REPORT_EVERY = 10.0  # seconds between reports of shadow reads
_NEW_SNAPSHOT = 0.01  # seconds before a transaction whose snapshot was too old begins again


class _Pause:
    """How long a caller has been kept waiting; the time of its own work before does not count."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._until: float | None = None

    def left(self) -> float:
        now = time.monotonic()
        if self._until is None:
            self._until = now + self.limit
        return self._until - now


class Router:
    """Tells where each tenant is written and read, and follows changes while the block runs.

    One of ``dsn`` (PostgreSQL, as any role that application_role's grants reach) and ``url`` (the control
    API; ``token``, and ``ca_file`` for a CA of one's own).

    - ``listen``: hear of changes by NOTIFY. False behind a transaction pooler, which does not pass it on.
    - ``poll_every``: seconds between questions for all known tenants, beneath NOTIFY too.
    - ``max_pause``: seconds that a write waits at most, in all, for a tenant on the move.
    - ``max_staleness``: seconds after which a reading that nobody confirms is marked stale.
    - ``answer_within``: seconds that PostgreSQL or the API has for an answer.
    - ``remember``: tenants that are kept in memory.
    - ``assume``: where a tenant is while nothing was ever heard; None: `PhaseUnknown` instead.

    Further options go to `asyncpg.connect`. Not for several event loops or threads.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        ca_file: str | None = None,
        listen: bool = True,
        poll_every: float = 1.0,
        max_pause: float = 10.0,
        max_staleness: float = 5.0,
        answer_within: float = 1.0,
        remember: int = 10_000,
        assume: Store | None = None,
        **options: Any,
    ) -> None:
        if (dsn is None) == (url is None):
            raise ValueError("give the router either a dsn or a url")
        if dsn is not None:
            source = SqlSource(dsn, listen=listen, answer_within=answer_within, **options)
        else:
            source = HttpSource(url or "", token=token, ca_file=ca_file, answer_within=answer_within)
        self._source = source
        self._known = Known(source, poll_every=poll_every, remember=remember)
        self._max_pause, self._max_staleness = max_pause, max_staleness
        self._assume: Store | None = assume
        self._tasks: list[asyncio.Task[None]] = []
        self.shadows = Shadows()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._known.follow()), asyncio.create_task(self._report())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.shadows.close()
        with suppress(Away):
            await self.shadows.report(self._source.report)
        await self._source.close()

    async def write(
        self, tenant: Tenant, unit: Unit[T], *, max_pause: float | None = None, atomic: bool = False
    ) -> T:
        """Do a unit of work on the tenant's side, and return what it returns.

        Waits while nobody may write. When a fence refuses the unit, waits for the tenant's next phase and
        does the whole unit again, its reads included: so the unit must be one transaction, one
        single-document write of MongoDB, or be such that doing it again after a part of it does no harm.
        Errors that are not a fence's are raised as they are, and nothing is done again.

        ``atomic``: in MongoDB the unit is one transaction; without it, a bulk that was refused in part is
        `PartlyDone`. `PauseTooLong` after ``max_pause`` seconds of waiting in all.
        """
        pause = _Pause(self._max_pause if max_pause is None else max_pause)
        key, attempt = _uuid(tenant), 0
        while True:
            state, store = await self._open(key, pause)
            attempt += 1
            try:
                return await unit(Side(store, key, state.phase, state.epoch, attempt))
            except Exception as error:
                await self._moved_on(key, state, store, error, pause, atomic)

    @asynccontextmanager
    async def writing(
        self, tenant: Tenant, *, max_pause: float | None = None, atomic: bool = False
    ) -> AsyncIterator[Side]:
        """Yield the side to write, as `write`, for a block that its caller does again by itself.

        A block cannot be repeated from here: where `write` would do its unit again, this waits as long, and
        raises `Moved`. A caller that does not catch it loses the write.
        """
        pause = _Pause(self._max_pause if max_pause is None else max_pause)
        key = _uuid(tenant)
        state, store = await self._open(key, pause)
        try:
            yield Side(store, key, state.phase, state.epoch)
        except Exception as error:
            await self._moved_on(key, state, store, error, pause, atomic)
            raise Moved(key, store) from error

    async def read(self, tenant: Tenant, *, max_staleness: float | None = None) -> Reading:
        """Return where to read the tenant.

        ``max_staleness``: seconds; what is known is asked for again when it is older, and `TooStale` raised
        when nobody answers; 0 always asks. Without it, the router's own bound holds, past which, when nobody
        answers, the last known side is returned as ``stale``.
        """
        key = _uuid(tenant)
        bound = self._max_staleness if max_staleness is None else max_staleness
        state = await self._heard_of(key)
        age = time.monotonic() - state.as_of
        if age > bound or max_staleness == 0:
            try:
                state = await self._known.refresh(key)
            except Away as away:
                if max_staleness is not None:
                    raise TooStale(key, age) from away
        age = time.monotonic() - state.as_of
        stale = age > bound and max_staleness is None
        return Reading(reads_from(state.phase), key, state.phase, state.epoch, age, stale)

    async def shadow_read(
        self,
        tenant: Tenant,
        unit: Unit[T],
        *,
        share: float = 0.01,
        compare: Compare = differing_paths,
        max_staleness: float | None = None,
    ) -> T:
        """Read on the tenant's side and return that; for a ``share`` of calls read the other side too, later.

        ``compare`` returns (id, path) of what differs. What differs still when both are read once more is
        counted in ``shadows`` and given to its ``on_difference``; with a ``dsn``, `crossfade status` and the
        metrics tell of it too, ten seconds later at most. The caller never waits for it, nor sees its
        errors.
        """
        reading = await self.read(tenant, max_staleness=max_staleness)
        result = await unit(Side(reading.name, reading.tenant, reading.phase, reading.epoch))
        self.shadows.maybe(share, reading, result, unit, compare, self.read)
        return result

    async def _report(self) -> None:
        """Tell the operator of shadow reads, now and then; what cannot be told waits."""
        while True:
            await asyncio.sleep(_REPORT_EVERY)
            with suppress(Away):
                await self.shadows.report(self._source.report)

    async def _heard_of(self, tenant: UUID) -> State:
        """Return the last known state; ask where nothing is known."""
        unheard: Away | None = None
        for _ in range(_FIRST_QUESTIONS):
            if (state := self._known.get(tenant)) is not None:
                return state
            try:
                return await self._known.refresh(tenant)
            except Away as away:
                unheard = away
            if self._assume is not None:
                return State(self._assume, -1, float("-inf"))
            await asyncio.sleep(_BETWEEN_FIRST_QUESTIONS)
        raise PhaseUnknown(
            f"nothing is known of tenant {tenant}, and nobody answers ({unheard})"
        ) from unheard

    async def _open(self, tenant: UUID, pause: _Pause) -> tuple[State, Store]:
        """Wait until the tenant is written somewhere; return where."""
        state = await self._heard_of(tenant)
        while (store := writes_to(state.phase)) is None:
            try:
                state = await self._known.changed(tenant, state, pause.left())
            except TimeoutError:
                raise PauseTooLong(tenant, state.phase, state.epoch, pause.limit) from None
            except Away:
                if state.phase != "rolling_back":
                    # Who moves the tenant may have gone on, in MongoDB alone. If not, that refuses us.
                    return state, "mongo"
                # MongoDB may lack documents yet, and does not refuse a write that finds none.
                if (left := pause.left()) <= 0:
                    raise PauseTooLong(tenant, state.phase, state.epoch, pause.limit) from None
                await asyncio.sleep(min(_AGAIN, left))
        return state, store

    async def _moved_on(
        self, tenant: UUID, tried: State, store: Store, error: Exception, pause: _Pause, atomic: bool
    ) -> None:
        """Return once the unit that failed should be done again; raise ``error`` when that is no use."""
        refusal = refusals.of(error)
        if refusal is None or refusal.store != store:
            raise error
        state = tried
        while pause.left() > 0:
            away = False
            try:
                state = await self._known.refresh(tenant)
            except Away:
                away = True
            if not away and not refusal.snapshot and state.same_as(tried) and state.phase in SETTLED:
                raise error  # nobody moves the tenant: something else refuses, as the application's validator
            if refusal.partly and not atomic:
                raise PartlyDone("MongoDB refused a part of a bulk, and had done the other") from error
            if away:
                await asyncio.sleep(min(_AGAIN, max(pause.left(), 0)))
                if store == "mongo":
                    return  # an abort opens MongoDB again without anybody else: only MongoDB can tell
            elif refusal.snapshot:
                await asyncio.sleep(_NEW_SNAPSHOT)
                return
            elif store == "mongo" and state.phase in ("draining", "aborting"):
                with suppress(TimeoutError, Away):
                    await self._known.changed(tenant, state, pause.left())
            else:
                return
        raise PauseTooLong(tenant, state.phase, state.epoch, pause.limit) from error


def _uuid(tenant: Tenant) -> UUID:
    return tenant if isinstance(tenant, UUID) else UUID(tenant)
