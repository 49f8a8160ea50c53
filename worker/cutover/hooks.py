"""Commands of the operator, before and after a tenant's transitions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import structlog

from worker.errors import UsageError

_log = structlog.get_logger()
_TOLD = 500  # characters of a failing command's last words


@dataclass(frozen=True, slots=True)
class Hooks:
    """Shell commands; empty: none. Each gets CROSSFADE_TENANTS and CROSSFADE_TRANSITION.

    ``within``: seconds, after which a command is ended with its children.
    """

    before: str = ""
    after: str = ""
    within: float = 30.0

    async def run(self, when: str, transition: str, tenants: Sequence[UUID]) -> None:
        """Run a command, if there is one. A `UsageError` where one before a transition fails or hangs."""
        if not (command := self.before if when == "before" else self.after):
            return
        why = await self._run(command, transition, tenants)
        if why is None:
            return
        if when == "before":
            raise UsageError(f"the hook before {transition} {why}", remedy="mend it, then try again")
        _log.error(f"the hook after {transition} {why}")

    async def _run(self, command: str, transition: str, tenants: Sequence[UUID]) -> str | None:
        env = {
            **os.environ,
            "CROSSFADE_TENANTS": " ".join(map(str, tenants)),
            "CROSSFADE_TRANSITION": transition,
        }
        process = await asyncio.create_subprocess_shell(
            command,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self.within):
                _, told = await process.communicate()
        except BaseException as error:
            with suppress(ProcessLookupError):  # all of them have ended just now
                os.killpg(process.pid, 9)
            await process.wait()
            if isinstance(error, TimeoutError):
                return f"did not end within {self.within:g} s"
            raise
        if process.returncode:
            # Shown here alone: the reason of a transition is kept for ever.
            _log.error("a hook's last words", said=_printable(told.decode(errors="replace")[-_TOLD:]))
            return f"failed with exit code {process.returncode}"
        return None


def _printable(text: str) -> str:
    """Return it in one line: terminals obey control characters, and PostgreSQL takes no NUL."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())
