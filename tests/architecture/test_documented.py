"""What a person sees is documented: commands, settings, metrics; and what is documented is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from prometheus_client.metrics import MetricWrapperBase

from worker import metrics
from worker.cli import main
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
METRICS = {name: one for name, one in vars(metrics).items() if isinstance(one, MetricWrapperBase)}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def members(group: click.Group) -> dict[str, click.Command]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command}


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in members(group).items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_and_each_of_its_options_say_what_they_do(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    silent = [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
    assert silent == []


def test_the_examples_in_a_commands_help_are_commands() -> None:
    for path, command in COMMANDS.items():
        for line in re.findall(r"^\s*(crossfade .+)$", command.help or "", re.MULTILINE):
            _is_command(line, f"help of {' '.join(path)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_that_a_page_shows_are_there(page: Path) -> None:
    for line in re.findall(r"^ {4}(crossfade .+)$", page.read_text("utf-8"), re.MULTILINE):
        _is_command(line, page.name)


def _is_command(line: str, where: str) -> None:
    """Each command of a line is known, with the options that it is given."""
    for part in re.split(r"&&|\|(?!\|)", line.split("  #")[0]):
        words = shlex.split(part, comments=True)
        if words[:1] != ["crossfade"]:
            continue
        command: click.Command = main
        while isinstance(command, click.Group) and len(words) > 1 and words[1] in members(command):
            command = members(command)[words[1]]
            words = words[1:]
        if isinstance(command, click.Group) and "run" in members(command) and len(words) > 1:
            command = members(command)["run"]  # `crossfade cutover TENANT`
        assert command is not main, f"{where}: {line}"
        known = {name for one in command.params for name in one.opts} | {"--help"}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known, f"{where}: {line}"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_is_described(name: str) -> None:
    assert Settings.model_fields[name].description


def _row(name: str) -> str:
    """Return a setting's line in docs/settings.md."""
    field = Settings.model_fields[name]
    if field.is_required():
        default = "**required**"
    else:
        default = "" if field.default in (None, "") else f"`{field.default}`"
    described = (field.description or "").replace("|", "\\|")
    return f"| `CROSSFADE_{name.upper()}` | {default} | {described} |"


def test_the_page_of_settings_has_each_as_it_is() -> None:
    text = (ROOT / "docs/settings.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `CROSSFADE_")]
    assert rows == [_row(name) for name in Settings.model_fields]


def test_settings_that_are_named_anywhere_are_settings() -> None:
    known = {f"CROSSFADE_{name.upper()}" for name in Settings.model_fields}
    # Read by other means: the file of settings, the tests' failpoints.
    known |= {"CROSSFADE_CONFIG", "CROSSFADE_FAILPOINTS", "CROSSFADE_TENANTS", "CROSSFADE_TRANSITION"}
    texts = [*PAGES, *(ROOT / "worker").rglob("*.py"), *(ROOT / "schema").rglob("*.sql")]
    named = {
        name for path in texts for name in re.findall(r"\bCROSSFADE_[A-Z_]*[A-Z]\b", path.read_text("utf-8"))
    }
    assert named <= known


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_a_meaning_and_a_name_of_ours(name: str) -> None:
    metric = METRICS[name]
    assert metric._documentation
    assert metric._name.startswith("crossfade_")
    assert "tenant" not in metric._labelnames
    source = (ROOT / "worker/metrics.py").read_text("utf-8")
    assert re.search(rf"^# {metric._type}\b.*\n(# .*\n)*{name} = ", source, re.MULTILINE), "say type and unit"
