"""The command line: ``crossfade``. Errors are one clear line; exit 2 when a person must act first."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import click
import uvloop

from worker.errors import ConfigurationError, CrossfadeError, SchemaError
from worker.settings import Settings, load

_SWITCH_SECONDS = 0.0005
_STOP_WITHIN = 9.5  # seconds; supervisors commonly kill after 10
Role = Callable[[Settings, asyncio.Event], Awaitable[None]]


# Loaded when asked for: to load them all takes a third of the time in which a command begins.
_ELSEWHERE = {
    "batches": "worker.batches_cli:batches",
    "check": "worker.check:check",
    "complete": "worker.rollback_cli:complete",
    "copy": "worker.copy_cli:copy",
    "cutover": "worker.cutover_cli:cutover",
    "dead-letters": "worker.dead_letters_cli:dead_letters",
    "demo": "worker.demo:demo",
    "dev": "worker.embedded.cli:dev",
    "finish": "worker.finish_cli:finish",
    "generations": "worker.reconcile_cli:generations",
    "inspect": "worker.inspect_cli:inspect",
    "mismatches": "worker.mismatches_cli:mismatches_",
    "repair": "worker.repair_cli:repair",
    "rollback": "worker.rollback_cli:rollback",
    "status": "worker.status:status",
    "tenants": "worker.rollback_cli:tenants_",
    "topics": "worker.topics_cli:topics",
}


class _Group(click.Group):
    """Turns our errors into one line and an exit code; no traceback for what a person can mend."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (place := _ELSEWHERE.get(cmd_name)) is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.partition(":")
        return getattr(importlib.import_module(module), name)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except CrossfadeError as error:
            click.echo(f"crossfade: {error}", err=True)
            sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crossfade")
def main() -> None:
    """Live migration of a multi-tenant application from MongoDB to PostgreSQL.

    \b
    Try it:   crossfade demo
    By hand:  crossfade dev up && eval "$(crossfade dev env)"
              export CROSSFADE_MAPPING=schema/spaces/mapping.yaml
              crossfade schema apply --target spaces && crossfade run
    """


async def _end_overdue(role: str, stop: asyncio.Event) -> None:
    """End the process when it has not ended in time: a service that it waits for may be away for long.

    Nothing is lost, as by any kill: what was under way is done again at the next start.
    """
    await stop.wait()
    await asyncio.sleep(_STOP_WITHIN)
    click.echo(f"crossfade {role}: ended with work under way, which the next start does again", err=True)
    sys.stderr.flush()
    os._exit(0)


def _serve(role: str, run: Role) -> None:
    """Run one role until SIGTERM or SIGINT."""
    from worker import exporter, logs

    settings = load()
    logs.set_up(role, settings.log_format, settings.log_level)

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        overdue = asyncio.create_task(_end_overdue(role, stop)) if role != "run" else None
        code = 0
        try:
            await run(settings, stop)
        except Exception as error:
            code = _tell(role, error)
        if overdue is not None:
            overdue.cancel()
        # Tasks and threads of the Kafka and MongoDB drivers may still wait for a peer that is gone, and may
        # take no notice of being cancelled. Nothing of theirs is durable state, and a supervisor must not
        # wait for them.
        _end(code)

    _for_long_work()
    code = 1
    try:
        exporter.serve(role, settings.metrics_host, settings.metrics_port)
        uvloop.run(until_signalled())
    except Exception as error:
        code = _tell(role, error)
    finally:
        _end(code)


def _tell(role: str, error: Exception) -> int:
    """Tell why a role has ended; return its exit code."""
    if isinstance(error, CrossfadeError):
        click.echo(f"crossfade {role}: {error}", err=True)
        return error.exit_code
    traceback.print_exception(error)  # a bug: its traceback names lines, and the exit code says failure
    return 1


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)


def _for_long_work() -> None:
    # Faust runs the Kafka consumer in a thread with a loop of its own: by this policy it is uvloop's too. And
    # neither loop waits 5 ms, the default, for the other to let go of the interpreter.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    sys.setswitchinterval(_SWITCH_SECONDS)
    # Decoded documents are many small objects without cycles: at its default the collector walks them all
    # every 700 allocations, which was 40 % of apply's time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@main.command()
def publish() -> None:
    """Publish MongoDB's documents and changes to Kafka, until stopped."""
    from worker.publish.process import run

    _serve("publish", run)


@main.command()
def apply() -> None:
    """Apply Kafka's events to PostgreSQL, until stopped. Start more to share the partitions."""
    from worker.apply.process import run

    _serve("apply", run)


@main.command()
def reverse() -> None:
    """Bring what the application writes in PostgreSQL to MongoDB as well, until stopped.

    For tenants that have been switched and are not yet complete. Start more to share the partitions.
    """
    from worker.reverse.process import run

    _serve("reverse", run)


@main.command()
@click.option("--once", is_flag=True, help="Compare everything once, and end: exit 0 only when equal.")
@click.option("--tenant", type=click.UUID, help="Compare one tenant's documents and rows once.")
@click.option(
    "--within",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0),
    help="With --once: seconds to wait for what is settling.",
)
@click.option("--json", "as_json", is_flag=True, help="With --once: print the result as JSON.")
def reconcile(once: bool, tenant: UUID | None, within: float, as_json: bool) -> None:
    """Compare both databases, document by document, until stopped; or once.

    Documents are rebuilt from PostgreSQL's rows and compared with MongoDB's, down to the field, while writes
    go on. What is still on its way is "settling"; what cannot be explained by that is a mismatch.

    \b
    Examples:
      crossfade reconcile
      crossfade reconcile --once
      crossfade reconcile --tenant 6f9619ff-8b86-d011-b42d-00c04fc964ff --json
    """
    if once or tenant is not None:
        from worker.reconcile_cli import run_once

        _for_long_work()
        run_once(tenant, within, as_json)
    else:
        from worker.reconcile.process import run

        _serve("reconcile", run)


@main.command()
def control() -> None:
    """Serve the control API over HTTP, until stopped: tenants' phases, and the flag for applications.

    On 127.0.0.1 unless CROSSFADE_CONTROL_HOST says otherwise, which needs a token and TLS.
    """
    from worker.control.process import run

    _serve("control", run)


@main.command()
@click.option(
    "--only",
    multiple=True,
    metavar="ROLE",
    help="Run this role: publish, apply, reconcile, reverse or control. May be repeated.",
)
def run(only: tuple[str, ...]) -> None:
    """Run publish, apply, reconcile, reverse and control, each a process of its own, started again when it
    ends.

    Without --only: those that CROSSFADE_RUN_ROLES names, or all; reconcile needs
    CROSSFADE_POSTGRES_READER_DSN, control that and CROSSFADE_POSTGRES_CONTROL_DSN. control listens on
    127.0.0.1 unless CROSSFADE_CONTROL_HOST says otherwise. SIGTERM or Ctrl-C ends them all. Exit 2 when one
    of them says that a person must act first.

    \b
    crossfade run
    crossfade run --only publish --only apply
    """
    from worker import supervise

    _serve("run", supervise.runner(only))


@main.group(name="schema")
def schema_group() -> None:
    """Crossfade's control schema, and target schemas."""


@schema_group.command(name="apply")
@click.option(
    "--target", "targets", multiple=True, help="also apply this target: `spaces`, or a folder of SQL files"
)
def schema_apply(targets: tuple[str, ...]) -> None:
    """Apply the control schema, once, in order, under a lock.

    \b
    crossfade schema apply
    crossfade schema apply --target spaces
    """
    settings = load()
    if settings.postgres_admin_dsn is None:
        raise ConfigurationError(
            "CROSSFADE_POSTGRES_ADMIN_DSN: not set", remedy="name a role that may create roles and schemas"
        )
    asyncio.run(apply_schema(settings.postgres_admin_dsn.get_secret_value(), ("control", *targets)))


async def apply_schema(dsn: str, targets: tuple[str, ...]) -> None:
    """Apply targets in order; `SchemaError` names the file that could not be."""
    import schema.migrate
    from worker.postgres.connect import connect

    connection = await connect(dsn, "schema", setting="CROSSFADE_POSTGRES_ADMIN_DSN")
    with contextlib.ExitStack() as stack:
        stack.callback(connection.terminate)
        for target in targets:
            try:
                done = await schema.migrate.apply(connection, Path(target) if "/" in target else target)
            except schema.migrate.MigrationError as error:
                raise SchemaError(str(error)) from None
            click.echo(f"{target}: {len(done)} applied" if done else f"{target}: up to date", err=True)
