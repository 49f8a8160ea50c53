"""Kafka reached with tokens from a provider of the user's own (SASL OAUTHBEARER)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kafka_cluster import TOKENS, kafka_cluster
from tests.support.world import World, once, world
from worker.embedded import Services

PROVIDER = """
import base64, json, time
from aiokafka.abc import AbstractTokenProvider

def part(claims):
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")

class Provider(AbstractTokenProvider):
    def __init__(self, seconds=600):
        self.seconds = seconds

    async def token(self):
        if self.seconds == 0:
            raise RuntimeError("s3cret")
        now = int(time.time())
        claims = {"sub": "s3cret", "iat": now, "exp": now + self.seconds}
        return f"{part({'alg': 'none'})}.{part(claims)}."

good = Provider
def expired(): return Provider(-600)
def raising(): return Provider(0)
"""


# aiokafka leaves a connection behind that a broker ends while it starts.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed AIOKafkaConnection:ResourceWarning")


@pytest.mark.timeout(600)
async def test_every_part_reaches_kafka_with_the_providers_tokens_and_none_is_told(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w, kafka_cluster(tmp_path, 1, TOKENS) as kafka:
        w.use_kafka(kafka.bootstrap)
        (tmp_path / "provider.py").write_text(PROVIDER)
        w.env |= {
            "CROSSFADE_KAFKA_BOOTSTRAP": f"127.0.0.1:{kafka.nodes[0].token_port}",
            "CROSSFADE_KAFKA_TOKEN_PROVIDER": "provider:good",
            "PYTHONPATH": str(tmp_path),
        }
        await w.load(200)
        await refused(w)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        async with w.writes(20):
            await w.settled(240)
        assert (await once(w, "copy", "start", "--collection", "pages", "--yes"))[0] == 0
        await w.until_value("SELECT max(copies) FROM crossfade.collection", 2, 120)
        await w.settled(240)
        await w.assert_nothing_lost()
        for command in (
            ["topics", "create"],
            ["topics", "print", f"{w.name}.{w.name}.pages", "--limit", "1"],
            ["check"],
        ):
            code, told = await once(w, *command)
            assert code == 0 and "s3cret" not in told, told
        told = "".join((tmp_path / f"{role}.log").read_text() for role in ("publish", "apply"))
        assert "s3cret" not in told and "eyJ" not in told  # as every token begins


async def refused(w: World) -> None:
    for command in (["publish"], ["apply"], ["topics", "create"]):
        code, told = await once(w, *command, CROSSFADE_KAFKA_TOKEN_PROVIDER="provider:raising")
        assert code == 2 and "provider:raising raised RuntimeError" in told.splitlines()[-1], told
        assert "Traceback" not in told and "s3cret" not in told
    for command in (["publish"], ["apply"], ["topics", "create"]):
        code, told = await once(w, *command, CROSSFADE_KAFKA_TOKEN_PROVIDER="provider:expired")
        last = told.splitlines()[-1]
        assert code == 2 and "has taken no token of provider:expired" in last, told
        assert "Traceback" not in told and "eyJ" not in told
