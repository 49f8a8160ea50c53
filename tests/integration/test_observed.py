"""A real Prometheus scrapes the real processes; every panel and every alert is asked of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import yaml

from tests.support.letters import command
from tests.support.prometheus import DEPLOYED, RATE_INTERVAL, Prometheus, program, prometheus
from tests.support.world import World, world
from worker.embedded import Services
from worker.embedded.state import free_port
from worker.mongo.fence_documents import FenceDocuments

DASHBOARD = DEPLOYED.parent / "grafana/dashboards/crossfade.json"
ALERTS: dict[str, str] = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((DEPLOYED / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
}
LAG = "crossfade_apply_end_to_end_lag_seconds"


def queries() -> Iterator[tuple[str, str]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", RATE_INTERVAL)


async def firing(server: Prometheus) -> set[str]:
    return {labels["alertname"] for labels, _ in await server.query('ALERTS{alertstate="firing"}')}


async def fires(server: Prometheus, alert: str) -> None:
    await server.until(ALERTS[alert])
    await server.until(f'ALERTS{{alertname="{alert}", alertstate="firing"}}')


async def test_every_panel_has_data_and_every_alert_fires_when_it_must(
    services: Services, tmp_path: Path
) -> None:
    publish = free_port(taken=set())
    apply = free_port(taken={publish})
    reconcile = free_port(taken={publish, apply})
    reverse = free_port(taken={publish, apply, reconcile})
    control = free_port(taken={publish, apply, reconcile, reverse})
    jobs = {
        "crossfade-publish": publish,
        "crossfade-apply": apply,
        "crossfade-reconcile": reconcile,
        "crossfade-reverse": reverse,
        "crossfade-control": control,
    }
    async with (
        world(services, tmp_path) as w,
        prometheus(tmp_path, jobs) as server,
    ):
        await w.load(300)
        await w.start("publish", "publish", CROSSFADE_METRICS_PORT=str(publish))
        await w.start("apply", "apply", CROSSFADE_METRICS_PORT=str(apply))
        await w.until_value("SELECT count(*) FROM crossfade.checkpoint", 1)  # publish has made the topics
        await w.start("reconcile", "reconcile", CROSSFADE_METRICS_PORT=str(reconcile))
        await w.start("reverse", "reverse", CROSSFADE_METRICS_PORT=str(reverse))
        env = {"CROSSFADE_CONTROL_PORT": "0", "CROSSFADE_METRICS_PORT": str(control)}
        await w.start("control", "control", **env)
        async with w.writes(50):
            await server.until("up", lambda ups: ups == [1] * len(jobs))
            await server.until(LAG, lambda lags: len(lags) == 6)
            for title, query in queries():
                assert await server.until(query), title
        await all_is_well(server)
        await rows_that_are_missing_are_seen(w, server)
        await a_dead_letter_is_seen(w, server)
        await what_is_wrong_with_moves_is_seen(w, server)
        await a_stalled_publisher_shows_as_lag(w, server)
        await a_killed_apply_is_seen(w, server)


async def all_is_well(server: Prometheus) -> None:
    """Every expression is valid, and none of them holds."""
    await server.until(f"max({LAG})", lambda lags: lags[0] < 5)
    for alert, expression in ALERTS.items():
        assert await server.query(expression) == [], alert
    # What held until a moment ago still fires until the rules are asked again.
    firing_now = 'count(ALERTS{alertstate="firing"}) or vector(0)'
    await server.until(firing_now, lambda counts: counts == [0])


async def rows_that_are_missing_are_seen(w: World, server: Prometheus) -> None:
    batch = await w.value("SELECT max(batch_id) FROM crossfade.document WHERE state = 'live'")
    code, out, err = await command(w, "batches", "rollback", str(batch), "--hold", "--yes")
    assert code == 0, out + err
    await server.until("max(crossfade_reconcile_held_documents)", lambda held: held[0] > 0)
    await fires(server, "CrossfadeMismatches")
    ((labels, _),) = await server.query(ALERTS["CrossfadeMismatches"])
    assert labels == {"kind": "missing"}
    code, out, err = await command(w, "batches", "refetch")
    assert code == 0, out + err
    await server.until(f"absent({ALERTS['CrossfadeMismatches']})")


async def a_dead_letter_is_seen(w: World, server: Prometheus) -> None:
    await w.mongo["pages"].insert_one({"_id": uuid4(), "tenantId": "no tenant"})
    await fires(server, "CrossfadeDeadLetters")
    counted = 'sum by (collection) (crossfade_apply_events_total{outcome="dead_lettered"}) > 0'
    await server.until(counted, lambda counts: counts == [1])
    ((labels, _),) = await server.query(counted)
    assert labels == {"collection": f"{w.name}.pages"}


async def what_is_wrong_with_moves_is_seen(w: World, server: Prometheus) -> None:
    """By rows of what control and reverse read; tests/cutover has moves that make them."""
    tenant = await w.value("SELECT tenant_id FROM crossfade.tenant ORDER BY 1 LIMIT 1")
    # Nobody sets this phase, and so nobody brings it to an end.
    await w.execute(
        "UPDATE crossfade.tenant SET phase = 'aborting', changed_at = now() - interval '90 s' "
        "WHERE tenant_id = $1",
        tenant,
    )
    await fires(server, "CrossfadeMoveStuck")
    ((labels, _),) = await server.query(ALERTS["CrossfadeMoveStuck"])
    assert labels == {"state": "aborting"}
    await w.execute(
        "INSERT INTO crossfade.way_back_fault (tenant_id, kind, namespace, subject, reason) "
        "VALUES ($1, 'unmapped', 's.leads', 'shoe_size', 'no column of the mapping')",
        tenant,
    )
    await fires(server, "CrossfadeWayBackBroken")
    await w.execute("UPDATE crossfade.dead_letter SET kind = 'rogue' WHERE state = 'dead'")
    await fires(server, "CrossfadeRogueWrites")
    # A fence whose validators nobody has set.
    fences = FenceDocuments(w.client, w.env["CROSSFADE_PUBLISHER"])
    assert await fences.leave({tenant: 9}, {tenant: [tenant]}, "a test", 600)
    await fires(server, "CrossfadeValidatorsChanged")


async def a_stalled_publisher_shows_as_lag(w: World, server: Prometheus) -> None:
    """Nobody sets the gauge any more, and it grows all the same."""
    await w.kill("publish")
    await fires(server, "CrossfadeProcessDown")
    sooner = ALERTS["CrossfadeLagHigh"].replace("> 30", "> 4")
    assert sooner != ALERTS["CrossfadeLagHigh"]
    await server.until(sooner, lambda lags: len(lags) == 6)
    first = (await server.until(f"min({LAG})"))[0]
    await server.until(f"min({LAG})", lambda lags: lags[0] > first + 1)


async def a_killed_apply_is_seen(w: World, server: Prometheus) -> None:
    """Its last lag is no one's lag: there is none, and that is an alert."""
    await w.kill("apply")
    await server.until(f"count({ALERTS['CrossfadeProcessDown']})", lambda counts: counts == [2])
    await fires(server, "CrossfadeLagUnknown")
    assert await server.query(LAG) == []
    assert "CrossfadeLagHigh" not in await firing(server)


async def test_prometheus_accepts_its_configuration_and_the_rules_do_what_they_say() -> None:
    promtool = await program("promtool")
    for arguments in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        done = await asyncio.to_thread(
            subprocess.run, [promtool, *arguments], cwd=DEPLOYED, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
