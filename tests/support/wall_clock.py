"""Wall clocks that tests step, by a small library in C that is loaded into a process.

libfaketime is not for this: Python's ``time.sleep`` fails under it (EINVAL, 0.9.10).
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from worker.embedded import Services
from worker.embedded.state import ServiceName

_SOURCE = Path(__file__).with_suffix(".c")


class WallClocks:
    """The library, and a clock by name for the processes that are started with its environment.

    Where there is no C compiler there are no clocks to step.
    """

    def __init__(self) -> None:
        self._folder = Path(mkdtemp(prefix="crossfade-clock-"))
        self._folder.chmod(0o755)  # PostgreSQL runs as another user
        self._library = self._folder / "wall_clock.so"
        self._files: dict[str, Path] = {}
        self.compiler = shutil.which("cc")
        if self.compiler:
            command = [
                self.compiler,
                "-O2",
                "-shared",
                "-fPIC",
                "-o",
                str(self._library),
                str(_SOURCE),
                "-ldl",
            ]
            subprocess.run(command, check=True)
            self._library.chmod(0o755)

    @property
    def names(self) -> list[str]:
        """Who has a clock."""
        return sorted(self._files)

    def env(self, name: str) -> dict[str, str]:
        """Return what gives a process this clock; nothing where there are none."""
        if not self.compiler:
            return {}
        if name not in self._files:
            self._files[name] = self._folder / f"{name.replace(' ', '-')}.offset"
            self.step(name, 0)
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK_FILE": str(self._files[name])}

    def step(self, name: str, seconds: int) -> None:
        """Let a clock show the machine's time plus so many seconds, at once."""
        file = self._files[name]
        with file.open("r+b" if file.exists() else "wb") as opened:  # never replaced: it is mapped
            opened.write(struct.pack("=q", seconds * 10**9))
        file.chmod(0o644)

    def forget(self, name: str) -> None:
        """Take a clock out of the list, and right it."""
        if name in self._files:
            self.step(name, 0)
            del self._files[name]

    def remove(self) -> None:
        """Right all clocks, and remove the files."""
        for name in self.names:
            self.forget(name)
        shutil.rmtree(self._folder)

    async def give(self, services: Services) -> None:
        """Start mongod and PostgreSQL again, with clocks of their own. Kafka's Java is left alone."""
        names: tuple[ServiceName, ...] = ("mongod", "postgres")
        for name in names:
            server = services._servers[name]  # no product of ours needs this
            how, clock = server.how, self.env(name)
            server.how = lambda how=how, clock=clock: replace(  # type: ignore[method-assign]
                how(), environment={**(how().environment or {}), **clock}
            )
            await services.stop(name)
            await services.start(name)
