"""While MongoDB builds an index nobody is let in there: no move begins, and none is decided."""

from __future__ import annotations

from pathlib import Path

from tests.support.edges import bring, held
from tests.support.moving import looked_after, phase, tenants_of
from tests.support.replica_set import index_being_built, replica_set
from tests.support.world import once
from worker.embedded import Services

_TOLD = "leads is being built"


async def test_an_index_is_being_built(services: Services, tmp_path: Path) -> None:
    async with (
        replica_set(tmp_path / "set") as members,
        looked_after(services, tmp_path / "world", documents=150, mongo_uri=members.uri) as w,
    ):
        home, away = (await tenants_of(w))[:2]
        await bring(w, away, "postgres")
        async with index_being_built(w, members, name="one"):
            code, told = await once(w, "rollback", str(away), "--window", "0")
            assert code == 1 and _TOLD in told, told
            assert await phase(w, away) == "postgres"
            code, told = await once(w, "cutover", "check", str(home))
            (line,) = (one for one in told.splitlines() if " index-builds " in one)
            assert code == 1 and line.startswith("FAILED") and f"{w.name}.leads" in line, told
        async with (
            held(w, away, "rollback.closed", 3, "--deadline", "20") as move,
            index_being_built(w, members, name="two", sparse=True),
        ):
            code, result = await move.ended()
            assert code == 1 and _TOLD in result["reason"], result
            assert await phase(w, away) == "postgres"
        await bring(w, away, "mongo")
