"""The connection is lost in the middle of COMMIT: whether it took place, nobody was told."""

from __future__ import annotations

from pathlib import Path

from tests.support.letters import letters
from tests.support.proxy import Proxy, See, proxy
from tests.support.world import World, world
from worker.embedded import Services
from worker.mapping import row_id

_COMMIT = b"COMMIT;\0"


class Cutter:
    """Cuts connections at every n-th COMMIT: by turns before it arrives, and before its answer does."""

    def __init__(self, through: Proxy, every: int) -> None:
        self._every, self._commits = every, 0
        self.before, self.after = 0, 0
        through.watch = self._watch

    def _watch(self) -> See:
        answer_due = False

        def see(piece: bytes, from_client: bool) -> bool:
            nonlocal answer_due
            if not from_client:  # the server has answered: the COMMIT is done
                return answer_due
            if not piece.endswith(_COMMIT):
                return False
            self._commits += 1
            if self._commits % self._every:
                return False
            if self.before <= self.after:
                self.before += 1
                return True
            self.after += 1
            answer_due = True
            return False

        return see


def _through(w: World, port: int) -> str:
    host, _, database = w.env["CROSSFADE_POSTGRES_DSN"].rpartition("/")
    return f"{host.rpartition(':')[0]}:{port}/{database}"


async def test_a_commit_of_unknown_outcome_neither_loses_nor_repeats_anything(
    services: Services, tmp_path: Path
) -> None:
    async with (
        world(services, tmp_path) as w,
        proxy(int(services.postgres_dsn.rpartition(":")[2].partition("/")[0])) as before_postgres,
    ):
        await w.load(1500)
        poison = (await w.mongo["pages"].find_one())["_id"]
        title = (await w.mongo["pages"].find_one({"_id": poison}))["title"]
        await w.mongo["pages"].update_one({"_id": poison}, {"$set": {"title": 7}})
        await w.start("publish", "publish")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'copied'", 6)
        documents = sum([await w.mongo[name].count_documents({}) for name in w.mapping.collections])
        cutter = Cutter(before_postgres, every=2)
        through = {"CROSSFADE_POSTGRES_DSN": _through(w, before_postgres.port)}
        await w.start("apply", "apply", CROSSFADE_APPLY_BATCH="50", **through)
        await w.settled()
        # Each document was copied once, so that each counts once, however often its batch was tried.
        counted = "SELECT sum(applied)::bigint FROM crossfade.partition_progress"
        assert await w.value(counted) == documents - 1
        assert [(one["row_id"], one["state"]) for one in await letters(w)] == [(row_id(poison), "dead")]
        assert cutter.before >= 5 and cutter.after >= 5

        await w.mongo["pages"].update_one({"_id": poison}, {"$set": {"title": title}})
        async with w.writes(100) as writer:
            await w.until("writes", lambda: writer.counters.changes > 300)
        await w.settled()
        await w.assert_nothing_lost()
        assert [one["state"] for one in await letters(w)] == ["healed"]
        assert await w.stop("apply") == 0
