"""docs/operations.md says what the program and deploy/ say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from worker.cli import main
from worker.metrics import REGISTRIES
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()


def table_of_metrics() -> str:
    """Return the page's table as worker/metrics.py has it; on a failure, paste it."""
    lines = ["| metric | process | type | labels | meaning |", "|---|---|---|---|---|"]
    for role, registry in REGISTRIES.items():
        collectors: list[Any] = list(registry._collector_to_names)
        for collector in collectors:
            for family in collector.collect():
                if family.name.startswith("process_"):  # another test has served this registry
                    continue
                suffix = "_total" if family.type == "counter" else ""
                labels = ", ".join(collector._labelnames)
                cells = (f"`{family.name}{suffix}`", role, family.type, labels, family.documentation)
                lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def test_the_table_of_metrics_is_that_of_the_program() -> None:
    assert table_of_metrics() in PAGE, f"docs/operations.md needs this table:\n{table_of_metrics()}"


def test_every_alert_is_explained_with_its_threshold() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"][0]["rules"]
    rows = dict(re.findall(r"^\| `(Crossfade\w+)` \| (.+?) \|", PAGE, re.MULTILINE))
    assert list(rows) == [rule["alert"] for rule in rules]
    for rule in rules:
        threshold = re.search(r"> ([1-9]\d*)$", rule["expr"])
        assert threshold is None or threshold[1] in rows[rule["alert"]], rule["alert"]


def test_every_command_and_setting_exists() -> None:
    fields = {f"CROSSFADE_{field.upper()}" for field in Settings.model_fields}
    assert set(re.findall(r"CROSSFADE_\w+", PAGE)) <= fields
    commands = re.findall(r"`crossfade ([a-z][^`]*)`", PAGE)
    assert commands
    for command in commands:
        words = [word for word in shlex.split(command) if not word.startswith("-")]
        assert CliRunner().invoke(main, [*words[:2], "--help"]).exit_code == 0, command


def test_every_compose_service_and_file_named_exists() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for line in re.findall(r"^ +docker compose (.+?)(?: +#.*)?$", PAGE, re.MULTILINE):
        named = [word for word in line.split() if word in services or word.startswith(("http", "deploy/"))]
        verb = line.split()[0]
        assert verb in ("up", "down", "run", "logs", "exec", "ps"), line
        assert verb in ("up", "down", "ps") or named, line
    for path in re.findall(r"`((?:deploy|worker|docs)/[\w./-]+)`", PAGE):
        assert (ROOT / path).exists(), path
