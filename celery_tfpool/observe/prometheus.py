"""Metrics over HTTP for Prometheus (``tf_metrics_port``), with the names of Triton where there are such.

Everything is read when it is asked for, from memory that children and predictors write to anyway: a scrape asks no
process, and waits for none.  Counters of a predictor go on when it is replaced.
"""

from __future__ import annotations

import os
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..predictors.statistics import Figures


@dataclass(frozen=True)
class Snapshot:
    """What there is to know of a worker at one moment."""

    #: Of each child, as in ``celery inspect tfpool``.
    children: Sequence[dict[str, Any]]
    predictors: Sequence[Figures]


#: Of a predictor: name, meaning, and where it stands in its statistics.
_COUNTERS = (
    ("tfpool_inference_request_success", "Requests that were answered", "request_success"),
    ("tfpool_inference_request_failure", "Requests that failed", "request_failure"),
    ("tfpool_inference_count", "Rows that were computed", "inference_count"),
    ("tfpool_inference_exec_count", "Calls that computed them: batches", "execution_count"),
    ("tfpool_inference_queue_duration_seconds", "Seconds that requests have waited, added up", "queue_duration"),
    ("tfpool_inference_compute_duration_seconds", "Seconds that batches have taken, added up", "compute_duration"),
)


class WorkerCollector(Collector):
    """Makes metrics of snapshots."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        now = self._snapshot()
        yield from _of_children(now.children)
        yield from _of_predictors(now.predictors)


def _of_children(children: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    states = {"ready": 0, "loading": 0, "starting": 0}
    memory = GaugeMetricFamily("tfpool_child_memory_bytes", "Memory of a child", labels=["slot", "kind"])
    loaded = GaugeMetricFamily("tfpool_model_loaded", "Whether a child has the model", labels=["model", "slot"])
    seconds = GaugeMetricFamily(
        "tfpool_model_load_seconds", "Seconds that a child took to load the model", labels=["model", "slot"]
    )
    for child in children:
        slot = str(child["slot"])
        states["loading" if child["loading"] else "ready" if child["ready"] else "starting"] += 1
        for kind, size in (child["memory"] or {}).items():
            memory.add_metric([slot, kind], size)
        for name, facts in child["models"].items():
            loaded.add_metric([name, slot], facts["loaded"])
            if facts["load_time"] is not None:
                seconds.add_metric([name, slot], facts["load_time"])
    count = GaugeMetricFamily("tfpool_children", "Processes that run tasks", labels=["state"])
    for state, number in states.items():
        count.add_metric([state], number)
    yield from (count, memory, loaded, seconds)


def _of_predictors(predictors: Sequence[Figures]) -> Iterator[Metric]:
    ready = GaugeMetricFamily("tfpool_predictor_ready", "Whether a predictor answers", labels=["predictor"])
    pending = GaugeMetricFamily(
        "tfpool_inference_pending_rows", "Rows that wait or are being computed", labels=["predictor"]
    )
    restarts = CounterMetricFamily("tfpool_predictor_restarts", "How often it was replaced", labels=["predictor"])
    for one in predictors:
        ready.add_metric([str(one.index)], one.is_ready)
        pending.add_metric([str(one.index)], one.pending_rows)
        restarts.add_metric([str(one.index)], one.restarts)
    yield from (ready, pending, restarts)
    for name, meaning, field in _COUNTERS:
        family = CounterMetricFamily(name, meaning, labels=["predictor"])
        for one in predictors:
            family.add_metric([str(one.index)], getattr(one.statistics, field))
        yield family


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Take the port, without asking a name server what this machine is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    #: Seconds for a client that says nothing.
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each scrape."""


class MetricsServer:
    """Serves metrics at ``port`` of all IPv4 addresses, which is taken at once, from `start` to `stop`.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, port: int, snapshot: Callable[[], Snapshot]) -> None:
        registry = CollectorRegistry()
        registry.register(WorkerCollector(snapshot))
        app: Any = make_wsgi_app(registry)
        self._server = make_server("", port, app, _Server, _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        # A fork that keeps the socket open would keep the port from the next worker.
        os.register_at_fork(after_in_child=self._server.socket.close)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, and give the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
