"""A change of phase is durable when it is answered, whatever the database's default is."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from tests.support.moves import moved
from worker.embedded import Services
from worker.postgres import phases
from worker.postgres.connect import use_raw_json

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
