"""A small oplog that other writes roll over: an idle token keeps up, and what is to come is told in time."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_lost_token import missed
from tests.support.world import World, once, world
from worker.embedded import Services
from worker.embedded.state import free_port
from worker.mongo.oplog import read_oplog

_TOKEN = "SELECT token_time FROM crossfade.checkpoint"


@pytest.mark.timeout(500)
async def test_an_idle_token_keeps_up_and_a_lost_one_is_foretold_told_and_healed(tmp_path: Path) -> None:
    services = await Services.up(tmp_path / "services", oplog_mb=1)
    try:
        async with world(services, tmp_path / "world") as w:
            await w.load(300)
            await w.start("publish", "publish")
            await w.start("apply", "apply")
            await w.settled()
            await _idle_while_others_write(w)
            await _stands_still(w)
            await missed(w)
            async with w.writes(40):
                await w.start("publish", "publish")
                await w.until_value("SELECT incarnations FROM crossfade.checkpoint", 2)
                await w.settled()
            await w.settled()
            await w.assert_nothing_lost()
            assert "no longer holds the place" in (w.directory / "publish.log").read_text()
            await _told(w)
    finally:
        await Services.down(tmp_path / "services")


async def _idle_while_others_write(w: World) -> None:
    """Nothing mapped is written, nor a heartbeat: the token goes on by `postBatchResumeToken`."""
    refuses = {"never": {"$exists": True}}
    await w.client["crossfade"].command({"collMod": "heartbeat", "validator": refuses})
    log = w.directory / "publish.log"
    await w.until("no heartbeat", lambda: "heartbeat not written" in log.read_text())
    before = await w.value(_TOKEN)
    async with asyncio.timeout(120):
        while await _oldest(w) <= before:
            await _noise(w, 50)
    oldest = await _oldest(w)
    await w.until_value(f"SELECT (token_time > {oldest})::integer FROM crossfade.checkpoint", 1)
    await w.kill("publish")
    page = await w.mongo["pages"].find_one()
    assert page is not None
    await w.mongo["pages"].update_one({"_id": page["_id"]}, {"$set": {"title": "while idle"}})
    port = free_port(set())
    watched = {"CROSSFADE_OPLOG_MARGIN": "0.99", "CROSSFADE_METRICS_PORT": str(port)}
    await w.start("publish", "publish", **watched)
    await w.until("publish warns too", lambda: "will soon drop the place" in log.read_text())
    told = await asyncio.to_thread(_metrics, port)
    assert "\ncrossfade_publish_oplog_left_seconds " in told
    assert "\ncrossfade_publish_oplog_window_seconds " in told
    await w.until_value("SELECT count(*) FROM pages WHERE title = 'while idle'", 1)
    assert await w.value("SELECT incarnations FROM crossfade.checkpoint") == 1
    assert "beginning anew" not in log.read_text()
    await w.client["crossfade"].command({"collMod": "heartbeat", "validator": {}})
    await w.settled()


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        return reply.read().decode()


async def _stands_still(w: World) -> None:
    """While publish is down, status says that the token will be lost, and then that it is."""
    assert await w.stop("publish") == 0
    async with asyncio.timeout(120):
        while not (place := (await _status(w, "0.95"))["oplog"]["places"][0])["warning"]:
            await _noise(w, 1)
        assert not place["lost"]
    token = await w.value(_TOKEN)
    async with asyncio.timeout(120):
        while await _oldest(w) <= token:
            await _noise(w, 50)
    _, text = await once(w, "status")
    assert f"WARNING  {w.name}: MongoDB no longer has the place" in text, text


async def _told(w: World) -> None:
    """One line in the audit log, which status shows."""
    audited = "SELECT count(*) FROM crossfade.audit WHERE action = 'publish: began anew'"
    assert await w.value(audited) == 1
    told = await _status(w)
    [anew] = [one for one in told["incidents"] if one["what"] == "publish: began anew"]
    assert "no longer holds the place" in anew["reason"] and anew["subject"]["publisher"] == w.name
    assert anew["subject"]["followed_until"] < anew["subject"]["follows_since"]
    assert told["publishers"][0]["incarnations"] == 2


async def _status(w: World, margin: str = "0.25") -> dict[str, Any]:
    code, out = await once(w, "status", "--json", CROSSFADE_OPLOG_MARGIN=margin)
    assert code == 0, out
    return json.loads(out)


async def _noise(w: World, documents: int) -> None:
    await w.client["elsewhere"]["noise"].insert_many([{"x": "x" * 100_000} for _ in range(documents)])


async def _oldest(w: World) -> int:
    """Return the clusterTime of the oldest entry of the oplog, as one integer."""
    return (await read_oplog(w.client)).oldest
