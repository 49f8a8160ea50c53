"""Raw clients that write where they may not, or not for long: each is refused, or is as good as any other.

What a database acknowledged is recorded with the writer's own. What MongoDB cannot refuse for a tenant that
has left is undone by the way back: the lead is expected to be as before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
from pymongo import WriteConcern
from pymongo.errors import OperationFailure, PyMongoError

from examples.spaces.moved_writer import MovedWriter
from tests.faults.lanes import Standing, standing
from tests.faults.run import Failed, Run
from tests.support.moving import application
from worker.postgres.faults import FAULTS

_LEADS = 8
_REFUSED = (121, "XF001", "40001")
_INSERT = "INSERT INTO leads (id, tenant_id, email, name) VALUES ($1, $2, 'a@b.example', 'raw')"
_WITHIN = 20.0
_AWAY = (*FAULTS, PyMongoError)


class Walls:
    """Raw clients of some tenants, of which the last never moves."""

    def __init__(self, run: Run, writer: MovedWriter, tenants: Sequence[UUID]) -> None:
        self._run, self._writer, self._tenants = run, writer, list(tenants)
        self._leads = run.w.mongo.get_collection("leads", write_concern=WriteConcern("majority"))
        self._rng = Random(f"{run.report.seed} walls")
        self._victims: dict[UUID, list[UUID]] = {tenant: [] for tenant in tenants}
        self.touched: set[UUID] = set()
        """Leads that were written past the fence, or perhaps at home."""
        self.rogues = 0
        self.refused = 0
        self.told: list[str] = []

    async def go(self, stop: asyncio.Event) -> None:
        """Write until told to stop, one thing after the other."""
        kinds = {self._insert: 3, self._in_transaction: 1, self._old_snapshot: 1, self._rogue: 3}
        while not stop.is_set():
            await asyncio.sleep(self._rng.uniform(0.1, 0.8))
            self.told.append(await self._rng.choices(list(kinds), list(kinds.values()))[0]())

    async def begin(self) -> None:
        """Add leads that rogue clients will write, while every tenant is at home."""
        for tenant in self._tenants:
            for _ in range(_LEADS):
                lead = self._new()
                if await self._in_mongo(tenant, lead) != "taken":
                    raise Failed(f"MongoDB refuses a tenant that never moved: {tenant}")
                self._victims[tenant].append(lead)

    async def both(self, tenant: UUID) -> list[str]:
        """Return the databases that take a write of a tenant."""
        taken = {
            "mongo": await self._in_mongo(tenant, self._new()),
            "postgres": await self._in_postgres(tenant, self._new()),
        }
        return [side for side, told in taken.items() if told == "taken"]

    def _new(self) -> UUID:
        return UUID(int=self._rng.getrandbits(128), version=4)

    async def _insert(self) -> str:
        """Write in either database, wherever the tenant is."""
        tenant, lead = self._rng.choice(self._tenants), self._new()
        if self._rng.random() < 0.5:
            return f"raw insert in MongoDB: {await self._in_mongo(tenant, lead)}"
        return f"raw insert in PostgreSQL: {await self._in_postgres(tenant, lead)}"

    async def _in_transaction(self) -> str:
        """Write in a transaction that stays open for a while, which a move must wait for, or give up."""
        tenant, lead, seconds = self._rng.choice(self._tenants), self._new(), self._rng.uniform(0.1, 1.5)
        if self._rng.random() < 0.5:
            return f"a raw transaction in MongoDB: {await self._in_mongo(tenant, lead, seconds)}"
        return f"a raw transaction in PostgreSQL: {await self._in_postgres(tenant, lead, seconds)}"

    async def _old_snapshot(self) -> str:
        tenant, lead, seconds = self._rng.choice(self._tenants), self._new(), self._rng.uniform(0.3, 2)
        isolation = self._rng.choice(["repeatable_read", "serializable"])
        told = await self._in_postgres(tenant, lead, seconds, isolation)
        return f"a raw write under a snapshot {seconds:.1f} s old: {told}"

    async def _in_mongo(self, tenant: UUID, lead: UUID, seconds: float = 0.0) -> str:
        return await self._tried("mongo", tenant, lead, self._mongo_writes(tenant, lead, seconds))

    async def _in_postgres(self, tenant: UUID, lead: UUID, seconds: float = 0.0, isolation: str = "") -> str:
        work = self._postgres_writes(tenant, lead, seconds, isolation)
        return await self._tried("postgres", tenant, lead, work)

    async def _tried(self, side: str, tenant: UUID, lead: UUID, work: Coroutine[Any, Any, float]) -> str:
        """Do a write, and record it where it was acknowledged. ``work`` returns when that was sent."""
        try:
            async with asyncio.timeout(_WITHIN):
                sent = await work
        except (OperationFailure, asyncpg.PostgresError) as error:
            code = error.code if isinstance(error, OperationFailure) else error.sqlstate
            if code not in _REFUSED:
                return f"unclear ({code})"
            self.refused += 1
            return "refused"
        except _AWAY as error:
            return f"unclear ({type(error).__name__})"
        self._writer.other(tenant, side, sent, lead, "raw")
        return "taken"

    async def _mongo_writes(self, tenant: UUID, lead: UUID, seconds: float) -> float:
        document = {"_id": lead, "tenantId": tenant, "email": "a@b.example", "name": "raw"}
        sent = time.time()
        if not seconds:
            await self._leads.insert_one(document)
            return sent
        async with await self._run.w.client.start_session() as session:
            session.start_transaction(write_concern=WriteConcern("majority"))
            await self._leads.insert_one(document, session=session)
            await asyncio.sleep(seconds)
            sent = time.time()
            await session.commit_transaction()
        return sent

    async def _postgres_writes(self, tenant: UUID, lead: UUID, seconds: float, isolation: str) -> float:
        async with application(self._run.w, tenant) as app:
            transaction = app.transaction(isolation=isolation or "read_committed")  # pyright: ignore
            await transaction.start()
            if isolation:
                await app.fetchval("SELECT count(*) FROM leads")
                await asyncio.sleep(seconds)
                await app.execute(_INSERT, lead, tenant)
            else:
                await app.execute(_INSERT, lead, tenant)
                await asyncio.sleep(seconds)
            sent = time.time()
            await transaction.commit()
        return sent

    async def _rogue(self) -> str:
        """Delete, move, or write past the validator a lead of a tenant that has left MongoDB."""
        before = await self._standing()
        gone = [one for one, known in before.items() if known.phase == "postgres" and self._victims[one]]
        if not gone:
            return "nothing"
        tenant = self._rng.choice(sorted(gone))
        lead, kind = self._rng.choice(self._victims[tenant]), self._rng.choice(["delete", "move", "write"])
        self.touched.add(lead)
        told = await self._past(tenant, lead, kind)
        if (await self._standing()).get(tenant) != before[tenant] or told:
            # It may have been at home, where that was a write as any other.
            self._victims[tenant].remove(lead)
            self._writer.written.states[tenant].pop(lead)
            return f"a raw {kind}, perhaps at home {told}"
        self.rogues += 1
        return f"a rogue {kind}"

    async def _past(self, tenant: UUID, lead: UUID, kind: str) -> str:
        mine = {"_id": lead, "tenantId": tenant}
        try:
            async with asyncio.timeout(_WITHIN):
                if kind == "delete":
                    await self._leads.delete_one(mine)
                elif kind == "move":
                    await self._leads.update_one(mine, {"$set": {"tenantId": self._tenants[-1]}})
                else:
                    await self._leads.update_one(
                        mine, {"$set": {"name": "rogue"}}, bypass_document_validation=True
                    )
        except _AWAY as error:
            return f"({type(error).__name__})"
        return ""

    async def _standing(self) -> dict[UUID, Standing]:
        return await standing(self._run.w, self._tenants)
