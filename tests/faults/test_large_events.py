"""Documents near MongoDB's limit, and events above it."""

from __future__ import annotations

from pathlib import Path

from tests.support.things import keep_images, large, things, until_equal
from worker.embedded import Services

_MB = 1024 * 1024
_LIMIT = 16 * _MB
# The event of a document at the limit holds its id three times more: in the token, twice as long, and beside.
# With the first length it fits no reply (mongod 6.0 closes the connection), with the second no BSON (10334).
_NO_REPLY, _NO_BSON = 5_000, 6_000
_MANY = 40  # large documents, 240 MB in all
_MOST = 480  # MB of memory for publish; holding them all it needs 600 for 30


async def test_documents_at_the_limit_and_events_above_it_arrive_without_filling_memory(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, "plain", "imaged") as w:
        await keep_images(w, "imaged")
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await until_equal(w, "plain", "imaged")
        for name in ("plain", "imaged"):
            collection = w.mongo[name]
            await collection.insert_one(large(1, _LIMIT))
            await collection.insert_one(large("b" * _NO_BSON, _LIMIT))
            await collection.insert_one(large("c" * _NO_REPLY, _LIMIT))
            await collection.insert_one({"_id": "behind", "n": 1})
            await collection.replace_one({"_id": 1}, large(1, _LIMIT) | {"n": 2})
            # What changed, twice, and the document: more than 16 MB, were it all in the event.
            await collection.update_one({"_id": 1}, {"$set": {"text": "y" * 9 * _MB, "other": "z" * 6 * _MB}})
            await collection.update_many({}, {"$set": {"n": 3}})
        await until_equal(w, "plain", "imaged")
        for name in ("plain", "imaged"):
            assert await w.value(f"SELECT count(*) FROM {name} WHERE n = 3") == 4
            await w.mongo[name].update_many({}, {"$set": {"n": 4}})
            await w.mongo[name].delete_many({"_id": {"$ne": "behind"}})
        await until_equal(w, "plain", "imaged")
        for n in range(_MANY):
            await w.mongo["plain"].insert_one(large(n, 6 * _MB))
        await until_equal(w, "plain")
        await w.mongo["plain"].update_many({}, {"$inc": {"n": 1}})  # one batch, every document looked up
        await until_equal(w, "plain")
        peak = _peak(w.processes["publish"].pid)
        assert peak < _MOST, f"{peak} MB"
        assert await w.value("SELECT incarnations FROM crossfade.checkpoint") == 1

        # Not even without its document does this one's event fit: a new stream begins behind it.
        await w.mongo["plain"].insert_one({"_id": "i" * 5_800_000, "n": 1})
        await w.until_value("SELECT incarnations FROM crossfade.checkpoint", 2)
        await until_equal(w, "plain")
        log = (tmp_path / "publish.log").read_text()
        assert "BSONObjectTooLarge" in log and "too large for MongoDB to tell" in log
        assert "Traceback" not in log
        assert await w.value("SELECT count(*) FROM crossfade.dead_letter") == 0


def _peak(pid: int) -> int:
    """Return the most memory that a process has had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
