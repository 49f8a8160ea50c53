"""`crossfade dev`: the embedded services from the command line."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from worker.errors import CrossfadeError

if TYPE_CHECKING:
    from worker.embedded import Services

_T = TypeVar("_T")

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".crossfade/dev"),
    show_default=True,
    help="Where data, logs and what is remembered lie.",
)
_port = click.IntRange(1, 65535)


@click.group()
def dev() -> None:
    """Run real MongoDB, Kafka and PostgreSQL on this machine, for trying out and for tests.

    All three listen on 127.0.0.1 only and ask for no password.

    \b
    Examples:
      crossfade dev up
      eval "$(crossfade dev env)"
      crossfade dev down
    """


@dev.command()
@_directory
@click.option("--mongo-port", type=_port, help="MongoDB's port.  [default: a free one, kept]")
@click.option("--kafka-port", type=_port, help="Kafka's port.  [default: a free one, kept]")
@click.option("--postgres-port", type=_port, help="PostgreSQL's port.  [default: a free one, kept]")
@click.option("--json", "as_json", is_flag=True, help="Print the settings as JSON.")
def up(
    directory: Path,
    mongo_port: int | None,
    kafka_port: int | None,
    postgres_port: int | None,
    as_json: bool,
) -> None:
    """Start what does not run yet; return when all three are ready.

    Ports and data are kept, so that `down` and `up` bring back the same services. The first `up` of a machine
    fetches Kafka's jars with Maven; as root it also installs a missing Java or Maven.

    \b
    Examples:
      crossfade dev up
      crossfade dev up --dir /tmp/try --mongo-port 27017 --postgres-port 5432
      crossfade dev up --json
    """
    services = _services()
    from worker.embedded.state import Ports

    ports = Ports(mongo=mongo_port, kafka=kafka_port, postgres=postgres_port)
    _print(_finish(services.up(directory, ports=ports, report=_report)).env(), as_json)


@dev.command()
@_directory
def down(directory: Path) -> None:
    """End the services of the directory, whoever started them. Data is kept; remove the directory to lose it.

    \b
    Example:
      crossfade dev down
    """
    _finish(_services().down(directory, report=_report))


@dev.command()
@_directory
@click.option("--json", "as_json", is_flag=True, help="Print the settings as JSON.")
def env(directory: Path, as_json: bool) -> None:
    """Print the settings that point Crossfade at the running services, for a shell.

    \b
    Examples:
      eval "$(crossfade dev env)"
      crossfade dev env --json
    """
    running = _services().running(directory)
    if running is None:
        _report(
            f"the services of {directory} do not run: crossfade dev up --dir {shlex.quote(str(directory))}"
        )
        raise SystemExit(1)
    _print(running.env(), as_json)


def _services() -> type[Services]:
    try:
        from worker.embedded import Services
    except CrossfadeError as error:
        raise _failure(error) from None
    return Services


def _finish(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return asyncio.run(work)
    except CrossfadeError as error:
        raise _failure(error) from None


def _failure(error: CrossfadeError) -> click.ClickException:
    failure = click.ClickException(str(error))
    failure.exit_code = error.exit_code
    return failure


def _print(settings: dict[str, str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(settings, indent=2))
        return
    for name, value in settings.items():
        click.echo(f"export {name}='{value}'")


def _report(line: str) -> None:
    click.echo(line, err=True)
