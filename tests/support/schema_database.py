"""Throw-away databases on the tests' PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import asyncpg

from worker.embedded import Services

SPACES_TABLES = ("tenants", "users", "user_passwords", "pages", "form_configs", "leads", "lead_activities")
ADMIN = "postgres"


@dataclass(frozen=True)
class Database:
    services: Services
    name: str

    @asynccontextmanager
    async def connect(self, role: str = ADMIN) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.services.dsn(role, self.name))
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def database(services: Services, template: str = "template0") -> AsyncIterator[Database]:
    made = Database(services, f"schema_{uuid4().hex[:12]}")
    await on_the_cluster(services, f"CREATE DATABASE {made.name} TEMPLATE {template}")
    try:
        yield made
    finally:
        await on_the_cluster(services, f"DROP DATABASE {made.name} WITH (FORCE)")


async def on_the_cluster(services: Services, *statements: str) -> None:
    connection = await asyncpg.connect(services.postgres_admin_dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
