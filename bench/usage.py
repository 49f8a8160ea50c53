"""CPU time and peak memory of processes, from /proc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU seconds since the process started, and its peak resident memory in MB, by process name.

    A family counts as one: CPU of the process, its children, and those that have ended and been waited for;
    memory of the largest member, for what they share would else be counted again and again.
    """

    cpu: Mapping[str, float]
    peak_mb: Mapping[str, float]

    @classmethod
    def of(cls, pids: Mapping[str, int], families: frozenset[str] = frozenset({"postgres"})) -> Reading:
        """Read the processes that still run."""
        cpu: dict[str, float] = {}
        peak: dict[str, float] = {}
        for name, pid in pids.items():
            with suppress(OSError, psutil.NoSuchProcess):
                cpu[name], peak[name] = _family(pid) if name in families else (_cpu(pid), _peak(pid))
        return cls(cpu, peak)

    def since(self, before: Reading, events: int) -> dict[str, dict[str, float]]:
        """Return each process's figures: CPU since an earlier reading, per event, and peak memory.

        A process that was not there before counts from its start.
        """
        return {
            name: figures(self.cpu[name] - before.cpu.get(name, 0.0), self.peak_mb[name], events)
            for name in self.cpu
        }


def figures(cpu_seconds: float, peak_mb: float, events: int) -> dict[str, float]:
    """Return one process's figures."""
    return {
        "cpu_seconds": round(cpu_seconds, 2),
        "cpu_us_per_event": round(cpu_seconds / events * 1e6, 1),
        "peak_mb": round(peak_mb, 1),
    }


def _family(pid: int) -> tuple[float, float]:
    cpu, peak = _cpu(pid, ended=True), _peak(pid)
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(OSError):
            cpu += _cpu(child.pid)
            peak = max(peak, _peak(child.pid))
    return cpu, peak


def _cpu(pid: int, *, ended: bool = False) -> float:
    # Behind the command's name, which may hold anything, fields 14 to 17: utime, stime, cutime, cstime.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(int(ticks) for ticks in (fields if ended else fields[:2])) / _TICKS


def _peak(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
