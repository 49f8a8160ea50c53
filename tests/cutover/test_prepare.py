"""`crossfade cutover prepare`, as a role that is no superuser, beside writers."""

from __future__ import annotations

from pathlib import Path

from tests.support.moving import tenants_of
from tests.support.world import World, once, world
from worker.embedded import Services

INDEX = (
    "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('crossfade.document_tenant') AND indisvalid"
)
TABLES = "SELECT string_agg(format('ALTER TABLE %s OWNER TO %I', oid::regclass, $1::text), ';') FROM pg_class"
WHERE = " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
FENCED = "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::regclass AND tgname LIKE '%crossfade%'"


async def _owner(w: World) -> str:
    """Give the tables to a role that is a member of crossfade_owner; return its connection string."""
    role = f"owner_{w.name}"
    await w.execute(f"CREATE ROLE {role} LOGIN NOSUPERUSER")
    await w.execute(f"GRANT crossfade_owner TO {role}")
    await w.execute(await w.value(TABLES + WHERE, role))
    return w.services.dsn(role, w.name)


async def test_the_owner_of_the_tables_prepares_them(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400, tenants=2)
        for role in ("publish", "apply"):
            await w.start(role, role)
        await w.settled()
        as_owner = {"CROSSFADE_POSTGRES_ADMIN_DSN": await _owner(w)}
        connection = await w.connect()
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE leads IN ROW EXCLUSIVE MODE")  # as a writer does
                code, told = await once(w, "cutover", "prepare", **as_owner)
                assert code == 2 and "try again" in told, told
        finally:
            await connection.close()
        assert await w.value(FENCED, "leads") == 0 < await w.value(FENCED, "form_configs")
        code, told = await once(w, "cutover", "prepare", **as_owner)
        assert code == 0 and "makes ObjectIds" not in told, told
        assert await w.value(FENCED, "leads") > 0 and await w.value(INDEX) == 1
        # One that was broken off is made again.
        await w.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'crossfade.document_tenant'::regclass"
        )
        code, told = await once(w, "cutover", "prepare", **as_owner)
        assert code == 0 and "up to date" in told and await w.value(INDEX) == 1, told
        code, told = await once(w, "cutover", "check", str((await tenants_of(w))[0]))
        assert "ok     fences" in told, told
        await w.execute(f"REASSIGN OWNED BY owner_{w.name} TO postgres")
        await w.execute(f"DROP OWNED BY owner_{w.name}")
        await w.execute(f"DROP ROLE owner_{w.name}")
