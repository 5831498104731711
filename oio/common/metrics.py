# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics in the text format of Prometheus.

Services count with plain integers, which costs nothing on the request path; the Prometheus library is loaded,
and given those numbers, only when ``/metrics`` is read.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric(NamedTuple):
    """One family: ``kind`` is ``counter`` or ``gauge``; each sample is (labels, value)."""

    name: str
    kind: str
    help: str
    samples: list[tuple[dict[str, str], float]]


class _Collector:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric in self._metrics:
            labels = sorted({label for sample, _ in metric.samples for label in sample})
            cls = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = cls(metric.name, metric.help, labels=labels)
            for sample, value in metric.samples:
                family.add_metric([sample.get(label, "") for label in labels], value)
            yield family


def render(metrics: Iterable[Metric]) -> bytes:
    """Text of ``/metrics`` for these families and for the process itself."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector([*metrics, *process_metrics()]))
    return generate_latest(registry)


def process_metrics() -> list[Metric]:
    """CPU time, memory and open files of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as statm:
        resident_pages = int(statm.read().split()[1])
    return [
        Metric(
            "process_cpu_seconds", "counter", "CPU time of the process",
            [({}, usage.ru_utime + usage.ru_stime)],
        ),
        Metric(
            "process_resident_memory_bytes", "gauge", "Resident memory",
            [({}, resident_pages * os.sysconf("SC_PAGE_SIZE"))],
        ),
        Metric("process_open_fds", "gauge", "Open files", [({}, len(os.listdir("/proc/self/fd")))]),
    ]
