"""An application whose tenants move: leads written through `crossfade-client`, and what was acknowledged.

Each lead is written by one task after the other, so its last acknowledged state is known for certain; its
score counts its updates, so one that was applied twice shows. What was given up without an answer may or may
not have happened, and its lead is then left alone.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg

try:
    import crossfade_client
except ModuleNotFoundError:  # from a checkout, where it is not installed
    sys.path.append(str(Path(__file__).parents[2] / "clients/python"))
    import crossfade_client

from pymongo import WriteConcern

_TENANT = "SELECT set_config('app.current_tenant_id', $1, true)"
_INSERT = "INSERT INTO leads (id, tenant_id, email, name, score) VALUES ($1, $2, $3, $4, 0)"
_UPDATE = "UPDATE leads SET name = $2, score = score + 1 WHERE id = $1"
_DELETE = "DELETE FROM leads WHERE id = $1"
_AT_ONCE = 100
"""As many as pymongo has connections: a transaction must not wait for one of those that wait for it."""
_KEPT = 50  # leads of a tenant below which none is deleted


class Accepted(NamedTuple):
    """A write that was acknowledged: by which database, and when it was sent and answered (UNIX time)."""

    tenant: UUID
    side: str
    sent: float
    answered: float


class Wrong(NamedTuple):
    """A lead that is not as it was acknowledged.

    ``lost``, ``stale``, ``resurrected``; or ``twice``: more updates were applied than acknowledged, or fewer.
    """

    tenant: UUID
    id: UUID
    kind: str


@asynccontextmanager
async def application(
    dsn: str, mongo: Any, tenants: Sequence[UUID], rate: float, seed: int
) -> AsyncIterator[MovedWriter]:
    """Yield an application that is yet to write; ``dsn``: PostgreSQL as the application's role."""
    async with (
        asyncpg.create_pool(dsn, min_size=0, max_size=8) as pool,
        crossfade_client.Router(dsn=dsn, max_pause=60) as router,
    ):
        yield MovedWriter(router, mongo, pool, tenants, rate, seed)


@dataclass(slots=True)
class Written:
    """What was acknowledged, and how long each write took from the application's view (seconds)."""

    states: dict[UUID, dict[UUID, str | None]] = field(default_factory=dict)
    """By tenant and lead: its name, or None when it was deleted."""
    accepted: list[Accepted] = field(default_factory=list)
    unclear: int = 0
    """Writes without an answer."""
    errors: dict[str, int] = field(default_factory=dict)
    not_there: list[str] = field(default_factory=list)
    """Of `NotThere`: where that was, and what was heard of the tenant's phase."""

    @property
    def took(self) -> list[float]:
        """How long each acknowledged write took, its waiting through pauses included."""
        return [one.answered - one.sent for one in self.accepted]


class MovedWriter:
    """Writes ``rate`` leads a second, over all tenants, until it is told to stop."""

    def __init__(
        self,
        router: crossfade_client.Router,
        mongo: Any,
        postgres: asyncpg.Pool,
        tenants: Sequence[UUID],
        rate: float,
        seed: int,
    ) -> None:
        self._router, self._pool, self._tenants, self._rate = router, postgres, list(tenants), rate
        self._leads: Any = mongo.get_collection("leads", write_concern=WriteConcern("majority"))
        self._random = random.Random(seed)
        self._free: dict[UUID, list[UUID]] = {tenant: [] for tenant in tenants}
        """Leads that are there, and that nobody is writing."""
        self._updates: dict[UUID, int] = {}
        """How many updates of a lead were acknowledged, of those that it inserted."""
        self._count = 0
        self.written = Written({tenant: {} for tenant in tenants})

    async def run(self, stop: asyncio.Event) -> None:
        """Write until ``stop``; at the end every write's outcome is known, or counted as unclear."""
        began, under_way = time.monotonic(), set[asyncio.Task[None]]()
        while not stop.is_set():
            due = int((time.monotonic() - began) * self._rate)
            while self._count < due and len(under_way) < _AT_ONCE:
                self._count += 1
                task = asyncio.create_task(self._one(self._random.choice(self._tenants), self._count))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.sleep(0.002)
        await asyncio.gather(*under_way)

    async def _one(self, tenant: UUID, number: int) -> None:
        known, free = self.written.states[tenant], self._free[tenant]
        kind = self._random.choices(("insert", "update", "delete"), (1, 6, 1))[0]
        if len(free) < _KEPT:
            kind = "insert" if kind == "delete" or not free else kind
        lead = uuid4() if kind == "insert" else self._taken(free)
        name = None if kind == "delete" else f"version {number}"
        if await self._write(tenant, kind, lead, name) is not None and known.get(lead) is not None:
            free.append(lead)

    def _taken(self, free: list[UUID]) -> UUID:
        """Take any lead out of the free ones."""
        place = self._random.randrange(len(free))
        free[place], free[-1] = free[-1], free[place]
        return free.pop()

    async def insert(self, tenant: UUID) -> bool:
        """Add a lead, as any other of its writes; False where it was not acknowledged."""
        lead = uuid4()
        done = await self._write(tenant, "insert", lead, "inserted")
        if done:
            self._free[tenant].append(lead)
        return bool(done)

    async def _write(self, tenant: UUID, kind: str, lead: UUID, name: str | None) -> bool | None:
        """Write a lead that nobody else writes; False: it was not written, None: nobody knows."""
        known = self.written.states[tenant]
        sent = time.time()
        try:
            side = await self._router.write(tenant, lambda side: self._unit(side, tenant, kind, lead, name))
        except crossfade_client.RouterError as error:  # nothing was written
            self._failed(error)
            return False
        except Exception as error:
            # A connection was lost, or the like: it may have been written. The lead is left alone.
            self._failed(error)
            self.written.unclear += 1
            known.pop(lead, None)
            return None
        self.written.accepted.append(Accepted(tenant, side, sent, time.time()))
        known[lead] = name
        self._updates[lead] = self._updates[lead] + 1 if kind == "update" else 0
        return True

    def other(self, tenant: UUID, side: str, sent: float, lead: UUID, name: str) -> None:
        """Record what another client of the application wrote; only such a one writes that lead."""
        self.written.accepted.append(Accepted(tenant, side, sent, time.time()))
        self.written.states[tenant][lead] = name

    def _failed(self, error: Exception) -> None:
        kind = type(error).__name__
        self.written.errors[kind] = self.written.errors.get(kind, 0) + 1

    async def _unit(
        self, side: crossfade_client.Side, tenant: UUID, kind: str, lead: UUID, name: str | None
    ) -> str:
        """Do one write as a unit of work; return the side that took it."""
        try:
            if side.name == "mongo":
                await self._in_mongo(tenant, kind, lead, name)
            else:
                await self._in_postgres(tenant, kind, lead, name)
        except NotThere:
            told = f"{kind} of {lead} in {side.name}, {side.phase} {side.epoch}, attempt {side.attempt}"
            self.written.not_there.append(told)
            raise
        return side.name

    async def _in_mongo(self, tenant: UUID, kind: str, lead: UUID, name: str | None) -> None:
        if kind == "insert":
            await self._leads.insert_one(
                {"_id": lead, "tenantId": tenant, "email": "a@b.example", "name": name, "score": 0}
            )
        elif kind == "update":
            change = {"$set": {"name": name}, "$inc": {"score": 1}}
            found = await self._leads.update_one({"_id": lead}, change)
            _require(found.matched_count)
        else:
            _require(await crossfade_client.delete(self._leads, {"_id": lead}))

    async def _in_postgres(self, tenant: UUID, kind: str, lead: UUID, name: str | None) -> None:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_TENANT, str(tenant))
            if kind == "insert":
                await connection.execute(_INSERT, lead, tenant, "a@b.example", name)
                return
            update = kind == "update"
            told = await (
                connection.execute(_UPDATE, lead, name) if update else connection.execute(_DELETE, lead)
            )
            _require(int(told.rpartition(" ")[2]))

    async def compare(self, sides: Mapping[UUID, str]) -> list[Wrong]:
        """Return the leads that are not as they were acknowledged, where each tenant is at home."""
        wrong: list[Wrong] = []
        for tenant, states in self.written.states.items():
            there = await (
                self._mongo_has(tenant) if sides[tenant] == "mongo" else self._postgres_has(tenant)
            )
            for lead, name in states.items():
                if name is None and lead in there:
                    wrong.append(Wrong(tenant, lead, "resurrected"))
                elif name is not None and lead not in there:
                    wrong.append(Wrong(tenant, lead, "lost"))
                elif name is not None and there[lead][0] != name:
                    wrong.append(Wrong(tenant, lead, "stale"))
                elif name is not None and there[lead][1] != self._updates.get(lead, there[lead][1]):
                    wrong.append(Wrong(tenant, lead, "twice"))
        return wrong

    async def _mongo_has(self, tenant: UUID) -> dict[UUID, tuple[Any, Any]]:
        found = self._leads.find({"tenantId": tenant}, {"name": 1, "score": 1})
        return {one["_id"]: (one.get("name"), one.get("score")) async for one in found}

    async def _postgres_has(self, tenant: UUID) -> dict[UUID, tuple[Any, Any]]:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_TENANT, str(tenant))
            rows = await connection.fetch("SELECT id, name, score FROM leads")
            return {UUID(int=row[0].int): (row[1], row[2]) for row in rows}


class NotThere(Exception):
    """A lead that was acknowledged is not there to be changed: it was lost."""


def _require(count: int) -> None:
    if count != 1:
        raise NotThere


class Away(NamedTuple):
    """A time in which a tenant was PostgreSQL's (UNIX time); None: it still is.

    ``since``: before its phase was ``postgres``; ``closed``: when PostgreSQL had no writer of it any more;
    ``opened``: when it was decided that MongoDB opens.
    """

    tenant: UUID
    since: float
    closed: float | None
    opened: float | None


def away_of(transitions: Iterable[tuple[UUID, str, str, float]]) -> list[Away]:
    """Return when tenants were PostgreSQL's, by their changes of phase: tenant, from, to, and when."""
    away: list[Away] = []
    begun: dict[UUID, Away] = {}
    for tenant, before, after, at in transitions:
        if (before, after) == ("draining", "postgres"):
            begun[tenant] = Away(tenant, at, None, None)
        elif (before, after) == ("postgres", "rolling_back"):
            begun[tenant] = begun[tenant]._replace(closed=at)
        elif (before, after) == ("rolling_back", "postgres"):
            # Closed for a moment, and opened again: one time, for what is asked here.
            begun[tenant] = begun[tenant]._replace(closed=None)
        elif (before, after) == ("rolling_back", "opening"):
            away.append(begun.pop(tenant)._replace(opened=at))
    return away + list(begun.values())


def two_writers(accepted: Sequence[Accepted], away: Sequence[Away]) -> list[Accepted]:
    """Return the writes that a database took while the other one had the tenant."""
    by_tenant: dict[UUID, list[Away]] = {}
    for one in away:
        by_tenant.setdefault(one.tenant, []).append(one)
    wrong: list[Accepted] = []
    for one in accepted:
        times = by_tenant.get(one.tenant, ())
        if one.side == "postgres":
            fine = any(one.answered >= t.since and (t.closed is None or one.sent <= t.closed) for t in times)
        else:
            fine = all(
                one.sent <= t.since or (t.opened is not None and one.answered >= t.opened) for t in times
            )
        if not fine:
            wrong.append(one)
    return wrong
