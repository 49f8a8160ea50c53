"""Where MongoDB does not let its oplog be seen, that is told in one line and fails nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mongods import direct, mongod, until_primary
from tests.support.world import once, world
from worker.embedded import Services
from worker.mongo.oplog import OplogUnknown, read_oplog


async def test_a_user_that_may_see_less_is_told_less(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("c3Rvcm1ib3VuZA==")
    key.chmod(0o400)
    options = ("--replSet", "one", "--keyFile", str(key), "--oplogSize", "50")
    async with mongod(tmp_path / "a", *options) as port:
        async with direct(port) as client:
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            await client.admin.command({"replSetInitiate": {"_id": "one", "members": members}})
            await until_primary(client)
            await client.admin.command({"createUser": "root", "pwd": "root", "roles": ["root"]})
            with pytest.raises(OplogUnknown, match=r"13 Unauthorized.*grant clusterMonitor"):
                await read_oplog(client)
        async with direct(port, "root:root@") as client:
            privilege = {"resource": {"cluster": True}, "actions": ["serverStatus"]}
            await client.admin.command({"createRole": "ends", "privileges": [privilege], "roles": []})
            await client.admin.command({"createUser": "watch", "pwd": "watch", "roles": ["ends"]})
            whole = await read_oplog(client)
            assert whole.size < whole.capacity == 50 * 1024 * 1024
        async with direct(port, "watch:watch@") as client:
            ends = await read_oplog(client)
            assert ends.oldest == whole.oldest and ends.newest >= whole.newest
            assert ends.window < whole.window  # taken for full, as its size is not known


async def test_status_answers_while_mongodb_is_away(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        code, told = await once(w, "status", CROSSFADE_MONGO_URI="mongodb://127.0.0.1:9/?replicaSet=x")
        assert code == 0 and "not known how long publish may be down: MongoDB at 127.0.0.1:9" in told, told
