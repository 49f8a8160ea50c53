"""The control process: serves the API, runs what belongs beside it, until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from uuid import UUID

import structlog
import uvicorn

from worker.control import observed
from worker.control.app import Checks, create
from worker.cutover import checks as cutover_checks
from worker.cutover import keeper
from worker.cutover.ground import opened
from worker.errors import ConfigurationError, UsageError
from worker.postgres.flags import Flags
from worker.settings import Settings

_log = structlog.get_logger()
_END_WITHIN = 3  # seconds that requests under way have when the process is told to stop
_PATIENCE = 3.0  # seconds that a caller waits for what may be wrong in passing
Background = Callable[[Settings, asyncio.Event], Awaitable[None]]

BACKGROUND: tuple[Background, ...] = (keeper.run, observed.run)
"""Whatever runs beside the API until ``stop``. When one raises, the process ends with that."""


class NotServed(UsageError):
    """The address of the control API cannot be listened on."""


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set. `UsageError` when the settings would expose tenants, or make no sense.

    PostgreSQL may be away, at the start too: requests are answered 503 meanwhile.
    """
    guard(settings)
    if settings.postgres_control_dsn is None:
        raise ConfigurationError(
            "CROSSFADE_POSTGRES_CONTROL_DSN: missing", remedy="set it to PostgreSQL as crossfade_control"
        )
    flags = Flags(settings.postgres_control_dsn.get_secret_value())
    token = settings.control_token.get_secret_value() if settings.control_token else None
    server = _Server(_config(settings, create(flags, token, _checks(settings))))
    listening = _listen(settings.control_host, settings.control_port)
    _log.info("serving", host=settings.control_host, port=listening.getsockname()[1])
    try:
        await _together(server, listening, settings, stop)
    finally:
        flags.close()
        listening.close()
    _log.info("control stopped")


def _checks(settings: Settings) -> Checks:
    """Return what answers /v1/tenants/ID/checks: `crossfade cutover check`, made anew for each question."""

    async def ask(tenant: UUID) -> dict[str, Any]:
        async with opened(settings, "control checks") as ground:
            ground.patience = _PATIENCE
            return {"checks": [asdict(one) for one in await cutover_checks.run(ground, [tenant])]}

    return ask


async def _together(
    server: _Server, listening: socket.socket, settings: Settings, stop: asyncio.Event
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    beside = [asyncio.create_task(_run(one, settings, stop)) for one in BACKGROUND]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping, *beside}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stop.set()
    for task in (serving, *beside):
        await task


async def _run(one: Background, settings: Settings, stop: asyncio.Event) -> None:
    await one(settings, stop)


def guard(settings: Settings) -> None:
    """Refuse to be heard beyond this machine without a token, or in plain text that nobody asked for."""
    if (settings.control_tls_cert is None) != (settings.control_tls_key is None):
        raise ConfigurationError(
            "CROSSFADE_CONTROL_TLS_CERT and CROSSFADE_CONTROL_TLS_KEY belong together", remedy="set both"
        )
    if is_loopback(settings.control_host):
        return
    where = f"CROSSFADE_CONTROL_HOST is {settings.control_host}, which other machines reach"
    if settings.control_token is None:
        raise ConfigurationError(where, remedy="set CROSSFADE_CONTROL_TOKEN, or listen on 127.0.0.1")
    if settings.control_tls_cert is None and not settings.control_allow_plain:
        raise ConfigurationError(
            f"{where}, and the token would pass in plain text",
            remedy="set CROSSFADE_CONTROL_TLS_CERT and CROSSFADE_CONTROL_TLS_KEY; or, behind a proxy that "
            "does TLS, CROSSFADE_CONTROL_ALLOW_PLAIN=true",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise NotServed(
            f"the control API cannot be served on {host}:{port} ({error.strerror or type(error).__name__})",
            remedy="set CROSSFADE_CONTROL_HOST and CROSSFADE_CONTROL_PORT to a free address",
        ) from None


def _config(settings: Settings, app: object) -> uvicorn.Config:
    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,  # our own; and no access log, whose paths name tenants
        access_log=False,
        server_header=False,
        ssl_certfile=settings.control_tls_cert,
        ssl_keyfile=settings.control_tls_key,
        timeout_graceful_shutdown=_END_WITHIN,
    )
    try:
        config.load()
    except OSError as error:
        raise ConfigurationError(
            "the files of CROSSFADE_CONTROL_TLS_CERT and CROSSFADE_CONTROL_TLS_KEY cannot be used "
            f"({type(error).__name__})",
            remedy="name PEM files, the key without a password",
        ) from None
    return config


class _Server(uvicorn.Server):
    """Leaves signals to the command, which tells every role to stop in one way."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
