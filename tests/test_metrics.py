"""Metrics of a real worker, as Prometheus reads them."""

from __future__ import annotations

import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from conftest import StartWorker, wait_until
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def scrape(port: int) -> Callable[..., float]:
    """Gives the value of a metric by its name and labels."""
    with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(name: str, **labels: str) -> float:
        (found,) = [one.value for one in samples if one.name == name and labels.items() <= one.labels.items()]
        return found

    return value


def test_metrics(start_worker: StartWorker, digits: str, port: int, engine: str) -> None:
    """Count what was done, also after a predictor was killed; a replaced child has no hand in the port."""
    conf = {"tf_model_path": {"sum": digits}, "tf_predictors": 1, "tf_metrics_port": port}
    worker = start_worker("-c", "2", conf=conf, broker=engine)
    assert [[3.0 * 16]] == worker.call("predict", 1, "sum", 3.0)
    value = scrape(port)
    assert (1, 1, 0) == (
        value("tfpool_inference_request_success_total", predictor="0"),
        value("tfpool_inference_count_total"),
        value("tfpool_inference_request_failure_total"),
    )
    assert (1, 0, 2) == (
        value("tfpool_predictor_ready"),
        value("tfpool_inference_pending_rows"),
        value("tfpool_children", state="ready"),
    )
    assert value("tfpool_child_memory_bytes", slot="0", kind="private") > 1e6
    facts = worker.stats()["tfpool"]
    os.kill(facts["predictors"][0]["pid"], signal.SIGKILL)
    os.kill(facts["children"][0]["pid"], signal.SIGKILL)
    assert [[16.0]] == worker.call("predict", 1, "sum")
    wait_until(lambda: scrape(port)("tfpool_predictor_restarts_total") == 1, "a counted restart")
    wait_until(lambda: scrape(port)("tfpool_children", state="ready") == 2, "the replaced child")
    assert 2 == scrape(port)("tfpool_inference_request_success_total")
    for child in worker.stats()["tfpool"]["children"]:
        assert port not in listening_ports(child["pid"])
    worker.stop()
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def listening_ports(pid: int) -> list[int]:
    import psutil

    connections = psutil.Process(pid).net_connections("inet")
    return [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN]


def test_models_of_children(start_worker: StartWorker, digits: str, port: int) -> None:
    conf = {"tf_model_path": {"sum": digits}, "tf_metrics_port": port, "tf_model_load": "eager"}
    worker = start_worker("-c", "1", conf=conf)
    worker.call("predict")
    assert 1 == scrape(port)("tfpool_model_loaded", model="sum", slot="0")
    assert 0 < scrape(port)("tfpool_model_load_seconds", model="sum") < 60


def test_port_in_use(start_worker: StartWorker, digits: str) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        worker = start_worker("-c", "1", conf={"tf_model_path": digits, "tf_metrics_port": port}, wait=False)
        assert 1 == worker.wait()
    assert f"tf_metrics_port: {port} cannot be used: Address already in use" in worker.log
    assert "Traceback" not in worker.log
