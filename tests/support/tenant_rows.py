"""Tenants with one row in every table of the Spaces schema, and what the tests try to do to these rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg

Row = dict[str, Any]


@dataclass(frozen=True)
class Tenant:
    """A tenant with one row in every table."""

    id: UUID = field(default_factory=uuid4)
    user: UUID = field(default_factory=uuid4)
    password: UUID = field(default_factory=uuid4)
    page: UUID = field(default_factory=uuid4)
    form: UUID = field(default_factory=uuid4)
    lead: UUID = field(default_factory=uuid4)

    def row(self, table: str) -> Row:
        own = {"tenant_id": self.id}
        return {
            "tenants": {"id": self.id, "name": "N", "subdomain": f"s-{self.id}"},
            "users": {"id": self.user, **own, "email": "ada@example.org"},
            "user_passwords": {"id": self.password, **own, "user_id": self.user, "password_hash": "h"},
            "pages": {"id": self.page, **own, "author_id": self.user, "title": "T", "slug": "s"},
            "form_configs": {"id": self.form, **own, "name": "N", "slug": "s"},
            "leads": {"id": self.lead, **own, "form_id": self.form, "assigned_to": self.user},
            "lead_activities": {"lead_id": self.lead, **own, "position": 0},
        }[table]

    def another_row(self, table: str) -> Row:
        """A row that collides with none; in `tenants` that is a stranger."""
        fresh: Row = {
            "tenants": {"id": (stranger := uuid4()), "subdomain": f"s-{stranger}"},
            "users": {"id": uuid4(), "email": "grace@example.org"},
            "lead_activities": {"position": 1},
        }.get(table, {"id": uuid4()})
        return self.row(table) | fresh


def key(table: str) -> str:
    return "lead_id" if table == "lead_activities" else "id"


def tenant_column(table: str) -> str:
    return "id" if table == "tenants" else "tenant_id"


async def insert(connection: asyncpg.Connection, table: str, row: Row, conflict: str = "") -> str:
    columns = ", ".join(row)
    given = f"jsonb_populate_record(NULL::{table}, $1)"
    statement = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {given} {conflict}"
    return await connection.execute(statement, json.dumps(row, default=str))


async def change(connection: asyncpg.Connection, table: str, of: Tenant) -> str:
    return await connection.execute(
        f"UPDATE {table} SET rest = '{{}}' WHERE {key(table)} = $1", of.row(table)[key(table)]
    )


async def move(connection: asyncpg.Connection, table: str, of: Tenant, to: UUID) -> str:
    statement = f"UPDATE {table} SET {tenant_column(table)} = $2 WHERE {key(table)} = $1"
    return await connection.execute(statement, of.row(table)[key(table)], to)


async def delete(connection: asyncpg.Connection, table: str, of: Tenant) -> str:
    return await connection.execute(f"DELETE FROM {table} WHERE {key(table)} = $1", of.row(table)[key(table)])


async def tenants_seen(connection: asyncpg.Connection, table: str) -> list[UUID]:
    rows = await connection.fetch(f"SELECT {tenant_column(table)} AS tenant FROM {table}")
    return [each["tenant"] for each in rows]


async def become(application: asyncpg.Connection, tenant: Tenant) -> None:
    await application.execute("SELECT set_config('app.current_tenant_id', $1, true)", str(tenant.id))


async def declare(sync: asyncpg.Connection, *tenants: Tenant) -> None:
    declared = ",".join(str(each.id) for each in tenants)
    await sync.execute("SELECT set_config('crossfade.tenants', $1, true)", declared)
