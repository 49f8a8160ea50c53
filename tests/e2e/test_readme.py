"""README's "By hand" does what it says, line by line, from no server to none."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.processes import processes_of
from worker.embedded.state import free_port

ROOT = Path(__file__).parents[2]
_COPIED = """
until crossfade status --json | python -c '
import json, sys
found = json.load(sys.stdin)["collections"]
sys.exit(not found or any(one["state"] != "copied" for one in found))'; do sleep 0.5; done
"""
_NOT_RUN = ("--watch", " ID", "topics print")
"""Of lines that end only when a person ends them, or need what a person has chosen."""


def _script() -> str:
    """Return the page's lines as a shell script: any that fails before all runs ends it."""
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.split("## By hand\n")[1].split("\n## ")[0]
    lines = [line.split("  #")[0].strip() for line in re.findall(r"^ {4}(\S.*)$", section, re.MULTILINE)]
    run, end = lines.index("crossfade run &"), len(lines) - 1
    later = [line for line in lines[run + 1 : end] if not any(one in line for one in _NOT_RUN)]
    assert "dev down" in lines[end] and len(later) > 5
    told = [f"{line} < /dev/null; echo 'exit '$?' of {line}'" for line in later]
    return "\n".join(["set -e", *lines[: run + 1], _COPIED, "set +e", *told, lines[end]])


@pytest.mark.alone
async def test_by_hand(tmp_path: Path) -> None:
    for name in ("examples", "schema"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CROSSFADE_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CROSSFADE_CONTROL_PORT": str(free_port(set())),
    }
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", _script()),
        cwd=tmp_path,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 280)
    told = output.decode()
    assert process.returncode == 0, told
    exits = re.findall(r"^exit (\d+) of (.*)$", told, re.MULTILINE)
    print(exits)
    assert exits and not [line for code, line in exits if int(code) > 1], told
    assert processes_of(tmp_path) == []
