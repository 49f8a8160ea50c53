"""What a directory of embedded services remembers, ports and processes; and who may change it now."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from worker.errors import ServiceUnavailable

ServiceName = Literal["mongod", "kafka", "postgres"]
SERVICE_NAMES: tuple[ServiceName, ...] = get_args(ServiceName)

Report = Callable[[str], None]

_POLL = 0.05
_LOWEST_PORT = 15_000


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that a caller asks for; None: a free one is chosen, and kept for the directory's life."""

    mongo: int | None = None
    kafka: int | None = None
    postgres: int | None = None

    def asked(self) -> dict[str, int]:
        """Return the ports asked for, by service."""
        wanted = {"mongod": self.mongo, "kafka": self.kafka, "postgres": self.postgres}
        return {name: port for name, port in wanted.items() if port is not None}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A process as it was started. A pid alone may be another process by now; with its birth it cannot."""

    pid: int
    create_time: float


def remembered(file: Path) -> dict[str, Any]:
    """Return what `remember` wrote; nothing when it never did."""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}


def remember(file: Path, content: dict[str, Any]) -> None:
    """Replace the file as a whole, so that a reader sees the old one or the new one, after a kill too.

    The caller holds a lock: there is one writer at a time.
    """
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(json.dumps(content, indent=2) + "\n")
    fresh.replace(file)


@asynccontextmanager
async def exclusive(lock: Path, report: Report, what: str) -> AsyncIterator[None]:
    """Hold ``lock`` against other processes and other tasks; wait, and say so once, while another has it.

    The kernel gives it back when the holder dies, and the services do not inherit it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        told = False
        while not _try_lock(descriptor):
            if not told:
                report(f"waiting: another process is working on {what}")
                told = True
            await asyncio.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_free(port: int) -> bool:
    """Say whether a server could listen on 127.0.0.1 at ``port`` now."""
    with socket.socket() as probe:
        # As the servers do themselves: connections of an earlier server that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_port(taken: set[int]) -> int:
    """Return a port that is free and lies below those that the kernel gives to outgoing connections.

    A port among those can be lost while its service is down: a client that tries to reconnect may be given
    that very number for its own end, is then connected with itself, and the service cannot listen any more.
    """
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    highest = int(outgoing.read_text().split()[0]) if outgoing.exists() else 32_768
    span = max(highest - _LOWEST_PORT, 1_000)
    for _ in range(1_000):
        port = _LOWEST_PORT + secrets.randbelow(span)
        if port not in taken and is_free(port):
            return port
    raise ServiceUnavailable("no free port", remedy="give the ports to use")
