"""Metrics whose values are found elsewhere, in a database or on a clock, and only told here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Known(Collector):
    """A gauge of values by their labels. What is not known has no sample, where a plain gauge would say 0."""

    _family: type[GaugeMetricFamily] | type[CounterMetricFamily] = GaugeMetricFamily

    def __init__(self, name: str, meaning: str, registry: CollectorRegistry, labels: Sequence[str] = ()):
        self._name, self._meaning, self._labelnames = name, meaning, tuple(labels)
        self._values: Mapping[tuple[str, ...], float] = {}
        registry.register(self)

    def set_to(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Replace all values."""
        # One assignment: the thread that serves a scrape sees the old ones or the new ones.
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """Tell the values."""
        family = self._family(self._name, self._meaning, labels=self._labelnames)
        now = time.time()
        for labels, value in self._values.items():
            family.add_metric(labels, self._told(value, now))
        yield family

    def _told(self, value: float, now: float) -> float:
        return value


class Age(Known):
    """A gauge in seconds: how long ago moments were, computed when asked.

    So a process that has stopped moving shows as a growing age, not as the last value that it set.
    """

    def since(self, moments: Mapping[tuple[str, ...], float]) -> None:
        """Replace the moments (seconds since 1970) by their labels' values."""
        self.set_to(moments)

    def _told(self, value: float, now: float) -> float:
        return max(0.0, now - value)


class Countdown(Known):
    """A gauge in seconds: how long it is until moments, computed when asked; 0 when they have passed."""

    def until(self, moments: Mapping[tuple[str, ...], float]) -> None:
        """Replace the moments (seconds since 1970) by their labels' values."""
        self.set_to(moments)

    def _told(self, value: float, now: float) -> float:
        return max(0.0, value - now)


class Counted(Known):
    """A counter that something else has counted, as rows of a table that only grows."""

    _family = CounterMetricFamily


class Pauses(NamedTuple):
    """Durations: how many fell into each bucket, those above all buckets last, and their sum in seconds."""

    counts: Sequence[int]
    seconds: float


class Distribution(Collector):
    """A histogram, in seconds, that something else has counted. It has no sample of what is not known."""

    BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

    def __init__(self, name: str, meaning: str, registry: CollectorRegistry, labels: Sequence[str]):
        self._name, self._meaning, self._labelnames = name, meaning, tuple(labels)
        self._values: Mapping[tuple[str, ...], Pauses] = {}
        registry.register(self)

    def set_to(self, values: Mapping[tuple[str, ...], Pauses]) -> None:
        """Replace all values; each has one count more than there are buckets."""
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """Tell the values."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labelnames)
        bounds = [*map(floatToGoString, self.BUCKETS), "+Inf"]
        for labels, pauses in self._values.items():
            told = [(bound, sum(pauses.counts[: place + 1])) for place, bound in enumerate(bounds)]
            family.add_metric(labels, told, pauses.seconds)
        yield family
