"""What the checks see of users, roles and collections that a fence cannot hold, or has to wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from tests.support.locked import standalone_mongod
from tests.support.named import collection, named
from tests.support.world import World, settings, world
from worker.cutover import checks
from worker.cutover.ground import opened
from worker.embedded import Services
from worker.mongo.bypass import bypassers
from worker.mongo.client import connect

_MAPPED = ["shop.orders", "shop.users"]


async def check(w: World, name: str) -> checks.Check:
    """Make one check as `crossfade cutover check` does."""
    ask, forcible = checks._CHECKS[name]
    async with opened(settings(w), "check") as ground:
        return await checks._made(name, ask, forcible, ground, [uuid4()])


@asynccontextmanager
async def users(directory: Path) -> AsyncIterator[Any]:
    """A MongoDB with users, and its address as root@admin."""
    async with standalone_mongod(directory / "mongod", "root", "pass") as where:
        client: Any = AsyncIOMotorClient(f"mongodb://root:pass@{where}/?directConnection=true")
        try:
            yield client
        finally:
            client.close()


async def test_every_user_that_may_bypass_validation_is_named(tmp_path: Path) -> None:
    async with users(tmp_path) as client:
        action = {"actions": ["bypassDocumentValidation"]}
        for role, resource in (
            ("one_collection", {"db": "shop", "collection": "orders"}),
            ("another_collection", {"db": "shop", "collection": "elsewhere"}),
            ("by_name", {"db": "", "collection": "users"}),
            ("everywhere", {"db": "", "collection": ""}),
        ):
            await client.admin.command(
                "createRole", role, privileges=[{"resource": resource, **action}], roles=[]
            )
        await client.admin.command("createRole", "inherits", privileges=[], roles=["one_collection"])
        for user, database, role in (
            ("writer", "shop", "readWrite"),
            ("dba", "shop", "dbAdmin"),
            ("owner", "shop", "dbOwner"),
            ("stranger", "other", "dbOwner"),
            ("second_root", "admin", "root"),
            ("a_custom", "admin", "inherits"),
            ("b_custom", "admin", "another_collection"),
            ("c_custom", "admin", "by_name"),
            ("d_custom", "admin", "everywhere"),
        ):
            await client[database].command("createUser", user, pwd="x", roles=[role])
        found = await bypassers(client, _MAPPED)
    assert not found.nobody_logs_in
    assert {one.user: list(one.namespaces) for one in found.users} == {
        "a_custom@admin": ["shop.orders"],
        "c_custom@admin": ["shop.users"],
        "d_custom@admin": _MAPPED,
        "dba@shop": _MAPPED,
        "owner@shop": _MAPPED,
        "second_root@admin": _MAPPED,
    }
    assert {one.user: one.roles for one in found.users}["a_custom@admin"] == ["inherits@admin"]


async def test_the_check_names_who_may_bypass_and_can_be_forced(services: Services, tmp_path: Path) -> None:
    user = f"dba_{uuid4().hex[:8]}"
    async with world(services, tmp_path) as w:
        before = await check(w, "bypass-validation")
        assert before.ok and "without a password" in before.reason
        await w.mongo.command("createUser", user, pwd="x", roles=["dbAdmin"])
        try:
            made = await check(w, "bypass-validation")
        finally:
            await w.mongo.command("dropUser", user)
    assert (made.ok, made.forcible) == (False, True)
    assert made.reason == f"{user}@{w.name} (dbAdmin@{w.name})" and "--force" in made.remedy


async def test_a_server_without_passwords_says_that_anybody_may(services: Services) -> None:
    client = await connect(services.env()["CROSSFADE_MONGO_URI"], "test")
    try:
        assert (await bypassers(client, ["none.such"])).nobody_logs_in
    finally:
        client.close()


@pytest.mark.parametrize("by", ["database", "collection"])
async def test_ttl_indexes_of_collections_with_the_tenant_in_their_names_are_seen(
    services: Services, tmp_path: Path, by: str
) -> None:
    async with named(services, tmp_path, by) as w:
        orders = collection(w, by, "acme", "orders")
        await orders.insert_one({"_id": 1})
        assert (await check(w, "ttl-indexes")).ok
        await orders.create_index("placedAt", expireAfterSeconds=3600, name="soon")
        made = await check(w, "ttl-indexes")
        assert not made.ok and made.reason == f"{orders.full_name} soon"


async def test_index_builds_of_collections_with_the_tenant_in_their_names_are_seen(
    services: Services, tmp_path: Path
) -> None:
    async with named(services, tmp_path, "collection") as w:
        await collection(w, "collection", "acme", "orders").insert_one({"_id": 1})
        async with opened(settings(w), "check") as ground:
            real = await ground.existing()
    assert real == [f"{w.name}.acme_orders"]


async def test_owners_and_bypassrls_roles_are_told_apart_from_those_that_are_fenced(
    services: Services, tmp_path: Path
) -> None:
    tail = uuid4().hex[:8]
    owner, member, unbound = f"owner_{tail}", f"member_{tail}", f"unbound_{tail}"
    async with world(services, tmp_path) as w:
        for role in (owner, member):
            await w.execute(f"CREATE ROLE {role} LOGIN NOINHERIT")
        await w.execute(f"CREATE ROLE {unbound} LOGIN BYPASSRLS")
        try:
            await w.execute(f"GRANT {owner} TO {member}")
            await w.execute(f"ALTER TABLE leads OWNER TO {owner}")
            await w.execute(f"GRANT UPDATE ON pages TO {unbound}")
            made = await check(w, "roles")
        finally:
            await w.execute("ALTER TABLE leads OWNER TO CURRENT_USER")
            await w.execute(f"REVOKE ALL ON pages FROM {unbound}")
            for role in (member, owner, unbound):
                await w.execute(f"DROP ROLE {role}")
    kinds = dict(part.split(": ") for part in made.reason.split("; "))
    assert {owner, member} <= set(kinds["owners of tables, who may switch their triggers off"].split(", "))
    assert unbound in kinds["refused always, for BYPASSRLS"].split(", ")
    fenced = kinds["fenced"].split(", ")
    assert "application_role" in fenced and not {owner, member, unbound} & set(fenced)


async def test_who_writes_a_column_or_by_set_role_is_named(services: Services, tmp_path: Path) -> None:
    tail = uuid4().hex[:8]
    column, becomes, reader, around = (f"{name}_{tail}" for name in ("column", "becomes", "reader", "around"))
    group, past = f"group_{tail}", f"past_{tail}"
    async with world(services, tmp_path) as w:
        for role in (group, past):
            await w.execute(f"CREATE ROLE {role} NOLOGIN")
        for role in (column, becomes, reader, around):
            await w.execute(f"CREATE ROLE {role} LOGIN NOINHERIT")
        try:
            await w.execute(f"GRANT UPDATE (title) ON pages TO {column}")
            await w.execute(f"GRANT DELETE ON leads TO {group}")
            await w.execute(f"GRANT {group} TO {becomes}")
            await w.execute(f"GRANT SELECT ON leads TO {reader}")
            await w.execute(f"GRANT SET ON PARAMETER session_replication_role TO {past}")
            await w.execute(f"GRANT {group}, {past} TO {around}")
            made = await check(w, "roles")
        finally:
            for role in (column, group, reader, past):
                await w.execute(f"DROP OWNED BY {role}")
            for role in (becomes, around, group, column, reader, past):
                await w.execute(f"DROP ROLE {role}")
    kinds = dict(part.split(": ") for part in made.reason.split("; "))
    assert not made.ok and kinds["may switch the fence off"] == around
    fenced = kinds["fenced"].split(", ")
    assert {column, becomes} <= set(fenced) and not {group, reader} & set(fenced)
