"""A role that has failed ends at once, whatever still goes on in its process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pymongo.errors import InvalidOperation

from worker.embedded.state import free_port
from worker.errors import Fatal
from worker.mongo import reverse

_ROLE = """
import asyncio
from worker import cli
from worker.errors import Fatal

async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass  # as a driver does whose clean-up fails in another way

async def run(settings, stop):
    global task
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    HOW

cli._serve("reverse", run)
"""


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("raise Fatal('it has lost its session')", 1, "crossfade reverse: it has lost its session"),
        ("raise ValueError('a bug')", 1, "Traceback"),
        ("return", 0, ""),
    ],
)
def test_no_task_holds_it_up(how: str, code: int, told: str) -> None:
    role = _ROLE.replace("HOW", how)
    env = {
        **os.environ,
        "CROSSFADE_MONGO_URI": "mongodb://127.0.0.1:1",
        "CROSSFADE_POSTGRES_DSN": "postgresql://127.0.0.1:1/none",
        "CROSSFADE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "CROSSFADE_MAPPING": "none.yaml",
        "CROSSFADE_METRICS_PORT": str(free_port(set())),
    }
    ended = subprocess.run([sys.executable, "-c", role], env=env, capture_output=True, text=True, timeout=20)
    assert ended.returncode == code
    assert told in ended.stderr


def test_what_a_closed_client_says_does_not_pass() -> None:
    """The driver calls it passing, so that the way back tried for ever, and took no notice of its end."""
    error = InvalidOperation("Cannot use MongoClient after close")
    error._add_error_label("TransientTransactionError")
    with pytest.raises(Fatal), reverse._told():
        raise error
