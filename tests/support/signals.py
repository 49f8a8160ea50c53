"""Signals to processes that asyncio has started."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress


def send(process: asyncio.subprocess.Process, number: int = signal.SIGKILL) -> None:
    """Send a process a signal, if it runs.

    ``process.send_signal`` looks first whether it has ended, and so takes the exit code from asyncio, which
    tells 255 then (subprocess.Popen.poll, asyncio.ThreadedChildWatcher).
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
