"""A change of phase is durable when it is answered, and ends soon where nobody goes on with it."""

from __future__ import annotations

import time
from pathlib import Path

import asyncpg
import pytest

from tests.support.moves import moved
from worker.embedded import Services
from worker.postgres import phases
from worker.postgres.connect import use_raw_json
from worker.postgres.faults import FAULTS

SEEN = """
CREATE TABLE seen (how text);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO seen VALUES (current_setting('synchronous_commit'));
    RETURN NULL;
END
$$;
CREATE TRIGGER see AFTER UPDATE ON crossfade.tenant FOR EACH ROW EXECUTE FUNCTION see();
"""


async def test_a_decision_is_durable(services: Services, tmp_path: Path) -> None:
    async with moved(services, tmp_path) as made:
        await made.world.execute(SEEN)
        for default, wanted in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
            dsn = services.dsn("crossfade_control", made.world.name)
            control = await asyncpg.connect(dsn, server_settings={"synchronous_commit": default})
            await use_raw_json(control)
            try:
                await made.world.execute("DELETE FROM seen")
                await made.to("mongo", 2)
                await made.world.execute("DELETE FROM seen")
                epochs = {made.tenant: 2}
                assert await phases.change(control, epochs, "mongo", "draining", "a test") is not None
            finally:
                await control.close()
            assert await made.world.value("SELECT string_agg(how, ',') FROM seen") == wanted


async def test_who_stands_still_in_a_change_keeps_nobody_waiting(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has closed the tenant, and no phase says so: PostgreSQL ends it, and nothing has changed."""
    async with moved(services, tmp_path) as made:
        control = await asyncpg.connect(services.dsn("crossfade_control", made.world.name))
        await use_raw_json(control)
        monkeypatch.setattr(phases, "os_user", lambda: time.sleep(4) or "a test")  # between two statements
        try:
            await made.to("postgres", 2)
            with pytest.raises(FAULTS):
                await phases.change(
                    control, {made.tenant: 2}, "postgres", "rolling_back", "a test", closes=True
                )
        finally:
            control.terminate()
        query = "SELECT phase::text FROM crossfade.tenant WHERE tenant_id = $1"
        assert await made.world.value(query, made.tenant) == "postgres"
