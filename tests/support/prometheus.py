"""A real Prometheus, with the rules and jobs of deploy/, in a hurry: it scrapes twice a second."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.embedded import prerequisites
from worker.embedded.state import free_port

DEPLOYED = Path(__file__).parents[2] / "deploy/prometheus"
INTERVAL = "500ms"
RATE_INTERVAL = "5s"
Sample = tuple[dict[str, str], float]


async def program(name: str) -> str:
    """Return prometheus or promtool, installed where it is missing and we are root."""
    return await prerequisites.program(name, "prometheus", print)


class Prometheus:
    """Asks a running server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    async def query(self, expression: str) -> list[Sample]:
        """Return the samples of an instant query; an expression that is not valid fails the test."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            reply = await asyncio.to_thread(self._get, f"/api/v1/query?{query}")
        except urllib.error.HTTPError as error:
            pytest.fail(f"{expression}: {error.read().decode()}")
        result = json.loads(reply)["data"]["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    async def until(
        self, expression: str, holds: Callable[[list[float]], bool] | None = None, seconds: float = 30
    ) -> list[float]:
        """Wait until a query returns a number, or until what is asked of its numbers holds."""
        numbers: list[float] = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    samples = await self.query(expression)
                    numbers = [value for _, value in samples if not math.isnan(value)]
                    if holds(numbers) if holds else numbers:
                        return numbers
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail(f"{expression} stays {numbers} for {seconds} s")

    async def answers(self) -> bool:
        """Whether it is ready."""
        try:
            await asyncio.to_thread(self._get, "/-/ready")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._url + path, timeout=10) as reply:
            return reply.read()


@asynccontextmanager
async def prometheus(directory: Path, targets: Mapping[str, int]) -> AsyncIterator[Prometheus]:
    """Run Prometheus on deploy/'s configuration, with each job's target at a port of this machine."""
    binary = await program("prometheus")
    _configure(directory, targets)
    port = free_port(taken=set(targets.values()))
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Prometheus(port)
    try:
        async with asyncio.timeout(30):
            while not await server.answers():
                assert process.returncode is None, (directory / "prometheus.log").read_text()[-2000:]
                await asyncio.sleep(0.05)
        yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _configure(directory: Path, targets: Mapping[str, int]) -> None:
    """Write deploy/'s files with these targets; nothing else changes but how long everything takes."""
    config: dict[str, Any] = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {
        "scrape_interval": INTERVAL,
        "evaluation_interval": INTERVAL,
        "scrape_timeout": INTERVAL,
    }
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    rules: dict[str, Any] = yaml.safe_load((DEPLOYED / "rules.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule.pop("for", None)
    (directory / "rules.yml").write_text(yaml.safe_dump(rules))
