"""What the three servers have in common: a home, a start, a question for readiness, marks to know them by."""

from __future__ import annotations

import secrets
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import psutil

from worker.embedded import processes
from worker.embedded.processes import Launch
from worker.embedded.state import Recorded, Report, ServiceName, remember, remembered

_QUOTED_BYTES = 65_536
_QUOTED_LINES = 12
_QUOTED_WIDTH = 500


class Server(ABC):
    """One service of a directory. It holds no process: process.json in its home says which one it is."""

    name: ClassVar[ServiceName]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_bound: ClassVar[float] = 15.0
    port_names: ClassVar[tuple[str, ...]]

    def __init__(self, directory: Path, ports: Mapping[str, int]) -> None:
        self.home = directory / self.name
        self.data = self.home / "data"
        self.log = self.home / f"{self.name}.log"
        self.ports = ports
        self._proven = self.home / "proven"
        self._record = self.home / "process.json"

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self.ports[self.name]

    @abstractmethod
    async def prepare(self, report: Report) -> None:
        """Find the program, and make the data where there is none."""

    @abstractmethod
    def how(self) -> Launch:
        """Return how to start it; after `prepare`."""

    @abstractmethod
    async def is_ready(self) -> bool:
        """Ask the service once."""

    @abstractmethod
    def is_it(self, process: psutil.Process) -> bool:
        """Say whether the process is this directory's server, by its command line or place."""

    def process(self) -> psutil.Process | None:
        """Return the recorded process, or None when it does not run."""
        record = remembered(self._record)
        return processes.find(Recorded(**record), self.is_it) if record else None

    def launch(self) -> None:
        """Start the process and record it."""
        remember(self._record, asdict(processes.launch(self.how())))

    async def end(self) -> bool:
        """End the process in order, if it runs, and whatever else belongs to it; say whether it ran."""
        process = self.process()
        if process:
            await processes.end(process, first=self.stop_signal, bound=self.stop_bound)
        await self.end_strays()
        self._record.unlink(missing_ok=True)
        return process is not None

    async def kill(self) -> None:
        """SIGKILL the process and whatever belongs to it."""
        if process := self.process():
            await processes.kill_family(process)
        await self.end_strays()
        self._record.unlink(missing_ok=True)

    async def end_strays(self) -> None:
        """SIGKILL what is this directory's server by its looks, recorded or not."""
        await processes.kill(processes.strays(self.is_it))

    def prove(self) -> None:
        """Keep the data from now on: the service has once been ready with it."""
        self._proven.touch()

    def is_proven(self) -> bool:
        """Say whether `prove` was called for the data."""
        return self._proven.exists()

    def discard_unproven(self) -> bool:
        """Remove data that a killed `up` left half-made, and say whether data must be made.

        Data counts as made only once its service has been ready, since a server that is killed while it makes
        its data may refuse to start with it ever after.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        for attempt in self.home.glob("data.new-*"):
            shutil.rmtree(attempt, ignore_errors=True)
        if not self.is_proven() and self.data.exists():
            self.data.replace(self.fresh())
            return self.discard_unproven()
        return not self.data.exists()

    def log_size(self) -> int:
        """Return how far the log goes now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def last_words(self, since: int) -> str:
        """Return the last lines of the log that say something, of those written after ``since``."""
        with self.log.open("rb") as file:
            file.seek(max(since, self.log_size() - _QUOTED_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        telling = [line[:_QUOTED_WIDTH] for line in lines if self.is_telling(line)]
        return "\n".join(telling[-_QUOTED_LINES:]) or "(nothing)"

    def is_telling(self, line: str) -> bool:
        """Say whether a line of the log may tell why the service ended."""
        return bool(line)

    def fresh(self) -> Path:
        """Return a path for data in the making; renamed to `data` when it is complete."""
        return self.home / f"data.new-{secrets.token_hex(4)}"
