"""`crossfade control` beyond this machine: by TLS with a certificate that is checked, or plain if told so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from crossfade_client import PhaseUnknown, Router
from tests.support import moves
from tests.support.world import World
from worker.embedded import Services
from worker.embedded.readiness import listens
from worker.embedded.state import free_port

TOKEN = "a token that only the tests know"


@asynccontextmanager
async def control(w: World, **env: str) -> AsyncIterator[int]:
    """Run `crossfade control`, heard everywhere, until the block ends; yield its port."""
    port = free_port(set())
    env |= {"CROSSFADE_CONTROL_HOST": "0.0.0.0", "CROSSFADE_CONTROL_TOKEN": TOKEN}
    await w.start("control", "control", CROSSFADE_CONTROL_PORT=str(port), **env)
    await w.until_async("it listens", lambda: listens(port))
    try:
        yield port
    finally:
        assert await w.stop("control") == 0


async def _phase(w: moves.Moved, url: str, ca_file: str | None = None, token: str = TOKEN) -> str:
    async with Router(url=url, token=token, ca_file=ca_file) as router:
        return (await router.read(w.tenant)).name


async def test_it_is_heard_by_tls(services: Services, tmp_path: Path) -> None:
    ca, strange, files = trustme.CA(), trustme.CA(), tmp_path / "tls"
    files.mkdir()
    certificate = ca.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(files / "key.pem"))
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(files / "cert.pem"), append=number > 0)
    ca.cert_pem.write_to_path(str(files / "ca.pem"))
    strange.cert_pem.write_to_path(str(files / "strange.pem"))
    env = {
        "CROSSFADE_CONTROL_TLS_CERT": str(files / "cert.pem"),
        "CROSSFADE_CONTROL_TLS_KEY": str(files / "key.pem"),
    }
    async with moves.moved(services, tmp_path) as move, control(move.world, **env) as port:
        await move.to("postgres", 3)
        assert await _phase(move, f"https://127.0.0.1:{port}", str(files / "ca.pem")) == "postgres"
        for ca_file in (None, str(files / "strange.pem")):
            with pytest.raises(PhaseUnknown):
                await _phase(move, f"https://127.0.0.1:{port}", ca_file)
        with pytest.raises(PhaseUnknown):
            await _phase(move, f"http://127.0.0.1:{port}")


async def test_it_is_heard_in_plain_text_when_told_so(services: Services, tmp_path: Path) -> None:
    plain = {"CROSSFADE_CONTROL_ALLOW_PLAIN": "true"}
    async with moves.moved(services, tmp_path) as move, control(move.world, **plain) as port:
        await move.to("postgres", 3)
        assert await _phase(move, f"http://127.0.0.1:{port}") == "postgres"
        with pytest.raises(PhaseUnknown, match="401"):
            await _phase(move, f"http://127.0.0.1:{port}", token="another token of that length")
