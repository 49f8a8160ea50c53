"""Starting detached server processes, knowing them again, and ending exactly them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from worker.embedded.state import Recorded
from worker.errors import ServiceUnavailable

_POLL = 0.02
_TAIL_LINES = 15

IsIt = Callable[[psutil.Process], bool]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server's process is started."""

    command: list[str]
    directory: Path
    log: Path
    user: int | None = None
    group: int | None = None
    environment: dict[str, str] | None = None


def launch(how: Launch) -> Recorded:
    """Start a process that outlives this one: a session of its own, its output in its log."""
    with how.log.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - the command is ours
            how.command,
            cwd=how.directory,
            env={**os.environ, **(how.environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=how.user,
            group=how.group,
            extra_groups=[] if how.user is not None else None,
        )
    # It is meant to outlive this object, which would else warn that nobody waited for it.
    process.returncode = 0
    server = psutil.Process(process.pid)
    recorded = Recorded(process.pid, server.create_time())
    # The kernel lets us go on a moment before the new program's command line can be read, and by it we
    # know the server again: looked for in that moment, it would count as ended.
    with suppress(psutil.NoSuchProcess):
        while not server.cmdline() and server.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)
    return recorded


async def run(
    command: list[str],
    *,
    what: str,
    directory: Path = Path("/"),
    user: int | None = None,
    group: int | None = None,
) -> None:
    """Run a command to its end; the error quotes what it printed last."""
    code, output = await outcome(command, directory, user, group)
    if code:
        quoted = "\n".join(output.splitlines()[-_TAIL_LINES:])
        raise ServiceUnavailable(f"{what} failed with exit code {code}:\n{quoted}")


async def outcome(
    command: list[str], directory: Path = Path("/"), user: int | None = None, group: int | None = None
) -> tuple[int, str]:
    """Run a command to its end, and return its exit code and what it printed.

    By `subprocess`, because uvloop's own way to start a process cannot change the user.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; the command is ours
            command,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
        )
        try:
            while process.poll() is None:  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(_POLL)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace")


def find(recorded: Recorded | None, is_it: IsIt) -> psutil.Process | None:
    """Return the process that was recorded, when it still runs and is still that one."""
    if recorded is None:
        return None
    with suppress(psutil.Error):
        process = psutil.Process(recorded.pid)
        if process.create_time() == recorded.create_time and is_running(process) and is_it(process):
            return process
    return None


def strays(is_it: IsIt) -> list[psutil.Process]:
    """Return every process that ``is_it`` knows, also one that a killed `up` could not record."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if is_running(process) and is_it(process):
                found.append(process)
    return found


def is_running(process: psutil.Process) -> bool:
    """Say whether the process runs; one that is dead and only not waited for does not.

    A killed process is shown as dead once its first thread is; others may hold its ports and files longer.
    """
    with suppress(psutil.NoSuchProcess):
        if process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1:
            return process.is_running()
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return False


async def end(process: psutil.Process, *, first: signal.Signals, bound: float) -> None:
    """Ask the process to end; after ``bound`` seconds kill it, and in any case the children it leaves."""
    family = [process, *_children(process)]
    with suppress(psutil.NoSuchProcess):
        process.send_signal(first)
    if not await _gone([process], bound):
        family += _children(process)
    await kill(family)


async def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL the processes in the order given, and return when all are gone."""
    processes = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    await _gone(processes, None)


async def kill_family(process: psutil.Process) -> None:
    """SIGKILL the process and its children.

    The parent goes first: PostgreSQL's would else see a child die, and begin a recovery.
    """
    await kill([process, *_children(process)])


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


async def _gone(processes: list[psutil.Process], bound: float | None) -> bool:
    deadline = None if bound is None else time.monotonic() + bound
    while any(is_running(process) for process in processes):
        if deadline is not None and time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return True
