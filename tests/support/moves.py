"""A tenant on the move, by hand: its phase, both fences, and an application's units of work on both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
from bson import Binary
from pymongo import WriteConcern

from crossfade_client import Side
from tests.support.world import World, world
from worker.embedded import Services

PATIENCE = 60.0
_FENCE = """
CREATE TRIGGER "!crossfade_fence" BEFORE INSERT OR UPDATE OR DELETE ON public.users FOR EACH STATEMENT
WHEN (session_user <> 'crossfade_sync'
    AND (row_security_active('public.users'::regclass) OR pg_trigger_depth() > 0))
EXECUTE FUNCTION crossfade.fence()
"""
_PHASE = """
INSERT INTO crossfade.tenant (tenant_id, phase, epoch) VALUES ($1, $2::crossfade.phase, $3)
ON CONFLICT (tenant_id) DO UPDATE SET phase = EXCLUDED.phase, epoch = EXCLUDED.epoch, changed_at = now()
"""
_USERS = "SELECT count(*) FROM public.users WHERE tenant_id = $1"


class Moved:
    """A world with one tenant, whose users the application writes."""

    def __init__(self, w: World) -> None:
        self.world, self.tenant = w, uuid4()
        self.users = w.mongo.get_collection("users", write_concern=WriteConcern("majority"))
        self.units: list[Side] = []

    @property
    def dsn(self) -> str:
        """PostgreSQL as the application."""
        return self.world.services.dsn("application_role", self.world.name)

    async def to(self, phase: str, epoch: int) -> None:
        """Change the phase, as a committed change of the controller."""
        await self.world.execute(_PHASE, self.tenant, phase, epoch)

    async def fence_mongo(self, *tenants: UUID) -> None:
        """Let MongoDB refuse the users of these tenants, and of no others."""
        validator = {"tenantId": {"$nin": [Binary.from_uuid(tenant) for tenant in tenants]}}
        await self.world.mongo.command("collMod", "users", validator=validator if tenants else {})

    async def unit(self, side: Side) -> str:
        """Add a user, where it is told."""
        self.units.append(side)
        if side.name == "mongo":
            await self.users.insert_one({"_id": uuid4(), "tenantId": self.tenant})
        else:
            connection = await asyncpg.connect(self.dsn)
            try:
                async with self.transaction(connection):
                    await self.insert(connection)
            finally:
                await connection.close()
        return side.name

    @asynccontextmanager
    async def transaction(
        self, connection: asyncpg.Connection, isolation: str = "read_committed"
    ) -> AsyncIterator[None]:
        """A transaction of the application, for its tenant."""
        async with connection.transaction(isolation=isolation):  # pyright: ignore[reportArgumentType]
            await connection.execute("SELECT set_config('app.current_tenant_id', $1, true)", str(self.tenant))
            yield

    async def insert(self, connection: asyncpg.Connection) -> None:
        """Add a user in PostgreSQL."""
        await connection.execute(
            "INSERT INTO public.users (tenant_id, email) VALUES ($1, $2)",
            self.tenant,
            f"{uuid4()}@example.org",
        )

    async def counts(self) -> tuple[int, int]:
        """Return how many users MongoDB and PostgreSQL have."""
        there = await self.world.value(_USERS, self.tenant)
        return await self.users.count_documents({"tenantId": self.tenant}), there


@asynccontextmanager
async def moved(services: Services, directory: Path) -> AsyncIterator[Moved]:
    """A tenant in `mongo`, epoch 2, with PostgreSQL's fence in place and MongoDB's open."""
    async with world(services, directory) as w:
        made = Moved(w)
        await w.mongo.create_collection("users")
        await w.execute(
            "INSERT INTO public.tenants (id, name, subdomain) VALUES ($1, 'N', $2)",
            made.tenant,
            str(made.tenant),
        )
        await w.execute(_FENCE)
        await made.to("mongo", 2)
        yield made
