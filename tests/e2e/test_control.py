"""`crossfade control`, as a process: the flag by the real OpenFeature SDK, the API, and who may ask it."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason

from crossfade_client import PhaseUnknown, Router
from tests.support import moves
from tests.support.proxy import proxy
from tests.support.world import World, once
from worker.embedded import Services
from worker.embedded.state import free_port

_TOKEN = "a token of 23 characters"
_FLAG = "/ofrep/v1/evaluate/flags/crossfade.datastore"
_FLAGS = "/ofrep/v1/evaluate/flags"


class Api:
    """What a caller sees."""

    def __init__(self, port: int, token: str | None) -> None:
        self.port, self.token = port, token
        self.url = f"http://127.0.0.1:{port}"

    async def __call__(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        return await asyncio.to_thread(self._ask, method, path, body, headers)

    def _ask(
        self, method: str, path: str, body: object, headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            if self.token:
                headers = {"Authorization": f"Bearer {self.token}"} | headers
            text = body if isinstance(body, bytes | None) else json.dumps(body, default=str)
            connection.request(method, path, text, headers)
            response = connection.getresponse()
            told = response.read()
            return response.status, json.loads(told) if told else None, dict(response.getheaders())
        finally:
            connection.close()

    async def flag(self, key: object, flag: str = "crossfade.datastore") -> FlagEvaluationDetails[str]:
        """Evaluate the flag as an application does."""

        def ask() -> FlagEvaluationDetails[str]:
            bearer = {"Authorization": f"Bearer {self.token}"}
            provider = OFREPProvider(self.url, headers_factory=lambda: bearer if self.token else {})
            try:
                api.set_provider(provider)
                context = EvaluationContext(str(key) if key else None)
                return api.get_client().get_string_details(flag, "neither", context)
            finally:
                provider.session.close()

        return await asyncio.to_thread(ask)


@asynccontextmanager
async def control(w: World, token: str | None = _TOKEN, **env: str) -> AsyncIterator[Api]:
    """Run `crossfade control` until the block ends."""
    port = free_port(set())
    if token:
        env["CROSSFADE_CONTROL_TOKEN"] = token
    await w.start("control", "control", CROSSFADE_CONTROL_PORT=str(port), **env)
    asked = Api(port, token)
    async with asyncio.timeout(moves.PATIENCE):
        while True:
            try:
                await asked("GET", "/healthz")
                break
            except OSError:
                assert w.processes["control"].returncode is None, w._logs()
                await asyncio.sleep(0.05)
    try:
        yield asked
    finally:
        assert await w.stop("control") == 0


async def test_the_flag_by_the_openfeature_sdk(services: Services, tmp_path: Path) -> None:
    async with moves.moved(services, tmp_path) as move, control(move.world) as asked:
        for phase, epoch, value, writable in (
            ("mongo", 2, "mongo", True),
            ("draining", 3, "mongo", False),
            ("postgres", 3, "postgres", True),
            ("rolling_back", 4, "postgres", False),
            ("opening", 4, "mongo", False),
            ("aborting", 5, "mongo", False),
            ("complete", 6, "postgres", True),
        ):
            await move.to(phase, epoch)
            told = await asked.flag(move.tenant)
            assert (told.value, told.variant, told.reason) == (value, value, Reason.TARGETING_MATCH)
            assert told.flag_metadata == {"phase": phase, "epoch": epoch, "writable": writable}
        stranger = await asked.flag(uuid4())
        assert (stranger.value, stranger.reason) == ("mongo", Reason.DEFAULT)
        for key, flag, code in (
            (None, "crossfade.datastore", ErrorCode.TARGETING_KEY_MISSING),
            ("no uuid", "crossfade.datastore", ErrorCode.INVALID_CONTEXT),
            (move.tenant, "another", ErrorCode.FLAG_NOT_FOUND),
        ):
            wrong = await asked.flag(key, flag)
            assert (wrong.value, wrong.error_code) == ("neither", code)
        asked.token = "another token of that length"
        assert (await asked.flag(move.tenant)).value == "neither"


async def test_ofrep_in_bulk_and_its_errors(services: Services, tmp_path: Path) -> None:
    async with moves.moved(services, tmp_path) as move, control(move.world) as asked:
        request = {"context": {"targetingKey": move.tenant}}
        status, told, headers = await asked("POST", _FLAGS, request)
        assert status == 200
        assert told == {
            "flags": [
                {
                    "key": "crossfade.datastore",
                    "value": "mongo",
                    "variant": "mongo",
                    "reason": "TARGETING_MATCH",
                    "metadata": {"phase": "mongo", "epoch": 2, "writable": True},
                }
            ]
        }
        etag = {"If-None-Match": f'"other", {headers["etag"]}'}
        assert (await asked("POST", _FLAGS, request, **etag))[:2] == (304, None)
        await move.to("mongo", 4)
        status, told, changed = await asked("POST", _FLAGS, request, **etag)
        assert (status, told["flags"][0]["metadata"]["epoch"]) == (200, 4)
        assert changed["etag"] != headers["etag"]
        for body, code in (
            (b"{", "PARSE_ERROR"),
            ([], "PARSE_ERROR"),
            ({}, "TARGETING_KEY_MISSING"),
            ({"context": {}}, "TARGETING_KEY_MISSING"),
            ({"context": 3}, "INVALID_CONTEXT"),
            ({"context": {"targetingKey": 3}}, "INVALID_CONTEXT"),
        ):
            status, told, _ = await asked("POST", _FLAGS, body)
            assert (status, told["errorCode"]) == (400, code)
            status, told, _ = await asked("POST", _FLAG, body)
            assert (status, told["errorCode"], told["key"]) == (400, code, "crossfade.datastore")
        assert (await asked("POST", _FLAG, {"context": "x" * 70_000}))[0] == 413
        status, told, _ = await asked("POST", f"{_FLAGS}/another", request)
        assert (status, told["errorCode"]) == (404, "FLAG_NOT_FOUND")


async def test_tenants_and_what_callers_must_bear(services: Services, tmp_path: Path) -> None:
    async with moves.moved(services, tmp_path) as move, control(move.world) as asked:
        others = sorted([uuid4() for _ in range(4)] + [move.tenant])
        for tenant in others:
            await move.world.execute(
                "INSERT INTO crossfade.tenant (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", tenant
            )
        await move.world.execute(
            "INSERT INTO crossfade.transition (tenant_id, from_phase, to_phase, epoch, os_user, reason) "
            "VALUES ($1, 'mongo', 'draining', 1, 'a', 'first'), ($1, 'draining', 'aborting', 1, 'a', 'late')",
            move.tenant,
        )
        status, told, _ = await asked("GET", f"/v1/tenants/{move.tenant}")
        assert (status, told["phase"], told["epoch"]) == (200, "mongo", 2)
        assert [one["reason"] for one in told["transitions"]] == ["late", "first"]
        seen, after = [], ""
        while True:
            _, told, _ = await asked("GET", f"/v1/tenants?limit=2{after}")
            seen += [one["tenant"] for one in told["tenants"]]
            if told["next"] is None:
                break
            after = f"&after={told['next']}"
        assert seen == [str(tenant) for tenant in others]
        _, told, _ = await asked("GET", f"/v1/tenants?id={others[0]}&id={uuid4()}")
        assert [one["tenant"] for one in told["tenants"]] == [str(others[0])]
        assert (await asked("GET", f"/v1/tenants/{uuid4()}"))[0] == 404
        assert (await asked("GET", "/v1/tenants?id=x"))[0] == 422
        status, told, _ = await asked("GET", f"/v1/tenants/{move.tenant}/checks")
        checks = {one["name"]: one for one in told["checks"]}
        assert status == 200 and checks["phase"]["ok"] and not checks["clean"]["ok"], told
        for path in ("/v1/tenants", f"/v1/tenants/{move.tenant}", "/nowhere", "/openapi.json"):
            for sent in ("", "Bearer", "Bearer another token of that length", f"Basic {_TOKEN}"):
                status, told, _ = await asked("GET", path, Authorization=sent)
                assert (status, told["error"]) == (401, "unauthorized")
        assert (await asked("GET", "/healthz", Authorization=""))[:2] == (
            200,
            {"status": "ok", "postgres": True},
        )


async def test_the_client_by_http(services: Services, tmp_path: Path) -> None:
    async with moves.moved(services, tmp_path) as move, control(move.world) as asked:
        async with Router(url=asked.url, token=_TOKEN) as router:
            await move.to("draining", 3)
            await move.fence_mongo(move.tenant)
            writing = asyncio.create_task(router.write(move.tenant, move.unit))
            await move.world.until("refused", lambda: bool(move.units))
            await move.to("postgres", 3)
            assert await writing == "postgres"
            assert (await router.read(uuid4())).name == "mongo"
        async with Router(url=asked.url, token="another token of that length") as router:
            with pytest.raises(PhaseUnknown, match="401"):
                await router.read(move.tenant)


async def test_it_stays_while_postgresql_is_away(services: Services, tmp_path: Path) -> None:
    port = int(services.postgres_dsn.rpartition(":")[2].partition("/")[0])
    async with moves.moved(services, tmp_path) as move, proxy(port) as between:
        between.refuses = True  # at its start too
        dsn = f"postgresql://crossfade_control@127.0.0.1:{between.port}/{move.world.name}"
        async with control(move.world, None, CROSSFADE_POSTGRES_CONTROL_DSN=dsn) as asked:
            path = f"/v1/tenants/{move.tenant}"
            for away in (True, False, True):
                between.refuses = away
                if away:
                    between.cut()
                status, told, _ = await asked("GET", path)
                if not away:
                    assert (status, told["phase"]) == (200, "mongo")
                    continue
                assert (status, told["error"]) == (503, "unavailable")
                assert told["message"] and told["remedy"]
                status, told, _ = await asked("GET", "/healthz")
                assert (status, told["status"]) == (200, "degraded")
                assert (await asked.flag(move.tenant)).error_code == ErrorCode.GENERAL


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, "CROSSFADE_CONTROL_TOKEN"),
        ({"CROSSFADE_CONTROL_TOKEN": _TOKEN}, "plain text"),
        ({"CROSSFADE_CONTROL_TOKEN": _TOKEN, "CROSSFADE_CONTROL_TLS_CERT": "/c.pem"}, "belong together"),
        (
            {
                "CROSSFADE_CONTROL_TOKEN": _TOKEN,
                "CROSSFADE_CONTROL_TLS_CERT": "/none.pem",
                "CROSSFADE_CONTROL_TLS_KEY": "/none.pem",
            },
            "cannot be used",
        ),
        ({"CROSSFADE_CONTROL_ALLOW_PLAIN": "true"}, "CROSSFADE_CONTROL_TOKEN"),
    ],
)
async def test_it_is_not_heard_beyond_this_machine_unguarded(
    services: Services, tmp_path: Path, env: dict[str, str], told: str
) -> None:
    w = World(services, tmp_path, "", services.mongo_uri)
    try:
        code, said = await once(w, "control", CROSSFADE_CONTROL_HOST="0.0.0.0", **env)
    finally:
        w.client.close()
    assert code == 2 and told in said, said
