"""The figures as a table for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_PROCESSES = ("publish", "apply", "mongod", "kafka", "postgres", "writer")


def table(results: dict[str, Any]) -> str:
    """Return the figures of a run."""
    return "\n".join(_lines(results))


def _lines(results: dict[str, Any]) -> Iterator[str]:
    stages: dict[str, Any] = results["stages"]
    yield f"{'stage':<8}{'events':>9}{'per s':>9}{'from start':>12}{'per batch':>11}{'load':>7}  more"
    for name, found in stages.items():
        yield (
            f"{name:<8}{found['events']:>9}{found['per_second']:>9}{found['per_second_from_start']:>12}"
            f"{found['events_per_batch']:>11}{found['load_average']:>7}  {_more(found)}"
        )
    yield ""
    yield "CPU microseconds per event / peak memory in MB"
    yield f"{'stage':<8}" + "".join(f"{process:>16}" for process in _PROCESSES)
    for name, found in stages.items():
        yield f"{name:<8}" + "".join(f"{_used(found, process):>16}" for process in _PROCESSES)


def _more(found: dict[str, Any]) -> str:
    parts: list[str] = []
    for name in ("lag_ms", "write_ms"):
        if name in found:
            spread = found[name]
            parts.append(f"{name[:-3]} p50 {spread['p50']} p99 {spread['p99']} max {spread['max']} ms")
    for name in ("loaded", "written"):
        if f"{name}_per_second" in found:
            parts.append(f"{name} {found[f'{name}_per_second']}/s")
    if "publish_per_second_from_start" in found:
        parts.append(f"publish alone {found['publish_per_second_from_start']}/s from its start")
    return ", ".join(parts)


def _used(found: dict[str, Any], process: str) -> str:
    used = found["processes"].get(process)
    return f"{used['cpu_us_per_event']:.0f} / {used['peak_mb']:.0f}" if used else "-"
