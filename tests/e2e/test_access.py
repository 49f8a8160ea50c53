"""Services that refuse us: one clear line with what to do, exit 2, and never the password."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.locked import role_with_password, standalone_mongod
from tests.support.world import World, once, world
from worker.embedded import Services
from worker.mongo.client import _place as mongo_place
from worker.postgres.connect import _place as postgres_place

WRONG, RIGHT = "wr0ngpass", "r1ghtpass"


async def refusal(w: World, role: str, **env: str) -> str:
    code, output = await once(w, role, **env)
    assert code == 2, output
    assert "Traceback" not in output and WRONG not in output and RIGHT not in output
    [line] = [line for line in output.splitlines() if not line.startswith("{")]
    return line


@pytest.mark.parametrize("role", ["publish", "apply", "status"])
async def test_a_wrong_password_of_postgresql(services: Services, tmp_path: Path, role: str) -> None:
    async with world(services, tmp_path) as w, role_with_password(services, f"{w.name}_role", RIGHT):
        right = services.dsn(f"{w.name}_role:{RIGHT}", w.name)
        wrong = right.replace(RIGHT, WRONG)
        for dsn in (wrong, services.dsn(f"{w.name}_role", w.name)):
            line = await refusal(w, role, CROSSFADE_POSTGRES_DSN=dsn)
            assert "PostgreSQL at 127.0.0.1" in line and "refuses the user or password" in line
            assert "check CROSSFADE_POSTGRES_DSN" in line
        # With the right one it gets further: it is not our role.
        assert "schema" in await refusal(w, role, CROSSFADE_POSTGRES_DSN=right)


async def test_a_database_that_postgresql_has_not(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        dsn = services.dsn("crossfade_sync", "nowhere")
        line = await refusal(w, "publish", CROSSFADE_POSTGRES_DSN=dsn)
        assert "no such database" in line and "mend CROSSFADE_POSTGRES_DSN" in line


async def test_a_wrong_password_of_mongodb_and_a_mongod_that_is_no_replica_set(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w, standalone_mongod(tmp_path / "db", "mover", RIGHT) as place:
        for uri in (f"mongodb://mover:{WRONG}@{place}/", f"mongodb://{place}/"):
            line = await refusal(w, "publish", CROSSFADE_MONGO_URI=uri)
            assert f"MongoDB at {place} refuses the user or password" in line
            assert "check CROSSFADE_MONGO_URI" in line
        line = await refusal(w, "publish", CROSSFADE_MONGO_URI=f"mongodb://mover:{RIGHT}@{place}/")
        assert f"MongoDB at {place} is not a replica set" in line and "--replSet" in line


def test_a_slash_in_a_password_makes_no_part_of_it_a_host() -> None:
    for place in (postgres_place, mongo_place):
        assert place("any://mover:5432/rest@nowhere/db") == "?"
        assert place("any://mover:54#32@nowhere/db") == "?"
    assert postgres_place("postgresql://mover:pass@one:1,two:2/db") == "one:1,two:2/db"
    assert postgres_place("postgresql://mover:pass@one/db") == "one:5432/db"
    assert mongo_place("mongodb://mover:pass@one:1,two:2/?replicaSet=rs") == "one:1,two:2"


async def test_what_is_no_connection_string(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        for uri in (
            f"mongodb://mover:{WRONG}:7@nowhere/",
            f"mongodb://mover:1{WRONG}/2@nowhere/",
            f"mover:{WRONG}@nowhere",
        ):
            line = await refusal(w, "publish", CROSSFADE_MONGO_URI=uri)
            assert "CROSSFADE_MONGO_URI is no MongoDB connection string" in line
        for dsn in (
            f"postgresql://mover:12{WRONG}/34@nowhere/db",
            f"mysql://mover:{WRONG}@nowhere/db",
            f"postgresql://mover:{WRONG}@nowhere:port/db",
        ):
            for role in ("publish", "status"):
                line = await refusal(w, role, CROSSFADE_POSTGRES_DSN=dsn)
                assert "CROSSFADE_POSTGRES_DSN" in line
