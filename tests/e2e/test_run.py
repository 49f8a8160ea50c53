"""`crossfade run` keeps its processes alive, and ends them all."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from pathlib import Path

import psutil

from tests.support.moving import CLEAN
from tests.support.world import once, world
from worker.embedded import Services
from worker.embedded.state import free_port
from worker.settings import Settings
from worker.supervise import ROLES, chosen


async def test_a_killed_process_is_started_again_and_sigterm_leaves_none(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        await w.start("run", "run")
        await w.settled()
        parent = psutil.Process(w.processes["run"].pid)
        before = parent.children()
        assert {child.cmdline()[-1] for child in before} == {"publish", "apply"}
        for child in before:
            child.kill()
        await w.mongo["leads"].update_many({}, {"$set": {"email": "new@example.com"}})
        await w.settled()
        await w.assert_nothing_lost()
        after = parent.children()
        assert {child.cmdline()[-1] for child in after} == {"publish", "apply"}
        assert await w.stop("run") == 0
        async with asyncio.timeout(5):
            while any(child.is_running() for child in after):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_killed_supervisor_leaves_no_process(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        await w.start("run", "run")
        await w.settled()
        children = psutil.Process(w.processes["run"].pid).children()
        assert len(children) == 2
        await w.kill("run")
        async with asyncio.timeout(20):
            while any(child.is_running() for child in children):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_without_a_choice_every_role_runs_and_control_answers_on_loopback(
    services: Services, tmp_path: Path
) -> None:
    first, api = free_port(taken=set()), free_port(taken=set())
    async with world(services, tmp_path) as w:
        await w.load(100)
        env = {"CROSSFADE_RUN_ROLES": "", "CROSSFADE_METRICS_PORT": str(first)}
        await w.start("run", "run", CROSSFADE_CONTROL_PORT=str(api), **env)
        await w.settled()
        await w.until_value(CLEAN, 1)
        children = psutil.Process(w.processes["run"].pid).children()
        assert {child.cmdline()[-1] for child in children} == set(ROLES)
        assert '"tenants":[' in await asyncio.to_thread(
            _get, f"http://127.0.0.1:{api}/v1/tenants"
        )  # no token
        for place, role in enumerate(ROLES):
            assert f"crossfade_{role}_" in _scrape(first + place), role
        assert await w.stop("run") == 0
        assert not any(child.is_running() for child in children)


async def test_roles_are_chosen_and_a_name_that_is_none_is_refused(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        code, output = await once(w, "run", "--only", "aply")
        assert code == 2 and "aply is no role" in output


def test_a_role_without_its_settings_is_left_out() -> None:
    given = {"mongo_uri": "m", "postgres_dsn": "p", "kafka_bootstrap": "k", "mapping": "x"}
    assert chosen(Settings(**given, postgres_reader_dsn=None, postgres_control_dsn=None)) == [
        "publish",
        "apply",
        "reverse",
    ]
    every = Settings(**given, postgres_reader_dsn="r", postgres_control_dsn="c", run_roles="apply, control")
    assert chosen(every) == ["apply", "control"]
    assert chosen(every, ["reverse", "publish"]) == ["publish", "reverse"]


async def test_what_a_person_must_mend_ends_all_with_exit_2(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        code, output = await once(w, "run", CROSSFADE_MAPPING="nowhere.yaml")
        assert code == 2 and "cannot read mapping nowhere.yaml" in output


async def test_each_process_of_run_serves_its_own_metrics(services: Services, tmp_path: Path) -> None:
    first = free_port(taken=set())
    async with world(services, tmp_path) as w:
        await w.load(100)
        await w.start("run", "run", CROSSFADE_METRICS_PORT=str(first))
        await w.settled()
        publish, apply = _scrape(first), _scrape(first + 1)
        await w.stop("run")
    assert "crossfade_publish_token_age_seconds" in publish and "crossfade_apply" not in publish
    assert "crossfade_apply_end_to_end_lag_seconds" in apply and "crossfade_publish" not in apply


async def test_a_metrics_port_in_use_is_one_line_and_exit_2(services: Services, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with world(services, tmp_path) as w:
            for role in ("publish", "apply", "run"):
                code, output = await once(w, role, CROSSFADE_METRICS_PORT=port)
                told = [line for line in output.splitlines() if "metrics cannot be served" in line]
                assert code == 2 and len(told) == 1 and port in told[0], output
                assert "Traceback" not in output


def _scrape(port: int) -> str:
    return _get(f"http://127.0.0.1:{port}/metrics")


def _get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=5) as reply:
        return reply.read().decode()
