"""Real servers, real workers: what the tests share."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_rabbitmq.factories
import pytest_redis.factories
from celery import Celery
from hypothesis import HealthCheck, settings

APPS = Path(__file__).parent / "apps"
#: Hides what Keras imports only because the tests need it.
LEAN = str(Path(__file__).parent.parent / "benchmarks" / "lean")
POOL = "celery_tfpool:TFPrefork"
#: Seconds until something that a worker is expected to do has happened, on a slow machine.
PATIENCE = 90.0

# Other tests start workers meanwhile: how long an example takes says nothing.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

redis_server = pytest_redis.factories.redis_proc(
    executable=shutil.which("redis-server") or "redis-server",
    port=None,  # type: ignore[arg-type]  # any that is free
    timeout=36000,
)


rabbitmq_server = pytest_rabbitmq.factories.rabbitmq_proc(
    server="/usr/lib/rabbitmq/bin/rabbitmq-server", ctl="/usr/lib/rabbitmq/bin/rabbitmqctl", port=None
)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes to the user's own cache, in this process or in one that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def lean_processes() -> Iterator[None]:
    """Workers start in half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", LEAN, prepend=os.pathsep)
        yield


def with_everything(environ: Any) -> dict[str, str]:
    """``environ`` for a process that needs what `LEAN` hides."""
    path = [folder for folder in environ["PYTHONPATH"].split(os.pathsep) if folder not in ("", LEAN)]
    return {**environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq_server: Any) -> str:
    return f"amqp://guest:guest@{rabbitmq_server.host}:{rabbitmq_server.port}//"


@pytest.fixture(scope="session")
def redis_url(redis_server: Any) -> str:
    return f"redis://{redis_server.host}:{redis_server.port}"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model in a .keras file: 16 numbers in, their sum out, exactly."""
    return make_model(str(tmp_path_factory.mktemp("models") / "sum.keras"))


def make_model(path: str, code: str = "") -> str:
    """Save a model that adds its 16 inputs, by a process of its own: tests need no TensorFlow in theirs."""
    program = (
        "import sys, keras\n"
        "from keras import layers\n"
        "model = keras.Sequential([layers.Input((16,)), layers.Dense(1, kernel_initializer='ones')])\n"
        f"{code}\n"
        "path = sys.argv[1]\n"
        "model.save(path) if path.endswith(('.keras', '.h5')) else model.export(path)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], check=False, capture_output=True, text=True, env=quiet(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return path


def quiet(environ: Any) -> dict[str, str]:
    """``environ`` for a process whose TensorFlow keeps its start-up chatter to itself."""
    return {**environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}


def python_path(folder: Path) -> dict[str, str]:
    """``folder`` and the apps before whatever is on the Python path of the tests."""
    folders = [str(folder), str(APPS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(folders)}


def wait_until(condition: Any, what: str, timeout: float = PATIENCE) -> Any:
    """For what no pipe tells: what a process list or a worker's statistics show."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)


class Program:
    """A process whose output can be waited for."""

    def __init__(self, command: list[str], *, env: dict[str, str], cwd: Path = APPS) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def log(self) -> str:
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str, timeout: float = PATIENCE, times: int = 1) -> str:
        """Wait until the output holds ``pattern`` so many times; the last match."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                found = list(re.finditer(pattern, "".join(self._lines)))
                if len(found) >= times:
                    return found[times - 1].group()
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    what = "ended" if self._ended else f"did not say it within {timeout:g} s"
                    pytest.fail(f"waiting for {pattern!r}: the program {what}. Its output:\n{''.join(self._lines)}")
                self._news.wait(left)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code, once it has ended by itself and its output is read."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the program did not end within {timeout:g} s. Its output:\n{self.log}")
        self._reader.join(10)
        return code


class Worker(Program):
    """``celery worker`` of an app under tests/apps, and a client to send it tasks."""

    def __init__(self, command: list[str], *, env: dict[str, str], mark: str, client: Celery, name: str) -> None:
        super().__init__(command, env=env)
        self.mark, self.client, self.name = mark, client, name
        # Celery 5.5's Redis client can deadlock when a result is collected
        # while another is awaited, so none is collected before the end.
        self.results: list[Any] = []

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        name = task if "." in task else f"proj.{task}"
        return self.keep(self.client.send_task(name, args=args, **options))

    def keep(self, result: Any) -> Any:
        self.results.append(result)
        return result

    def call(self, task: str, *args: Any, timeout: float = PATIENCE, **options: Any) -> Any:
        try:
            return self.send(task, *args, **options).get(timeout=timeout)
        except Exception as exc:
            if type(exc).__name__ == "TimeoutError":
                pytest.fail(f"no answer to {task} within {timeout:g} s. The worker's log:\n{self.log}")
            raise

    def stats(self) -> dict[str, Any]:
        # A broadcast before the worker listens to its mailbox is lost: ask again.
        inspect = self.client.control.inspect(destination=[self.name], timeout=3, limit=1)
        try:
            return dict(wait_until(inspect.stats, "the worker's statistics")[self.name])
        except AssertionError as exc:
            pytest.fail(f"{exc}. The worker's log:\n{self.log}")

    def control(self, command: str, **arguments: Any) -> Any:
        """The answer of this worker; for commands that may be sent twice only before it answered."""
        self.stats()
        (answer,) = self.client.control.broadcast(
            command, arguments=arguments, destination=[self.name], reply=True, timeout=10, limit=1
        )
        return answer[self.name]

    def children(self) -> list[int]:
        return sorted(p.pid for p in psutil.Process(self.process.pid).children() if lives(p))

    def pool_children(self) -> list[int]:
        """Those that are forks of itself: no forkserver."""
        main = psutil.Process(self.process.pid)
        command = main.cmdline()
        return sorted(process.pid for process in main.children() if lives(process) and is_like(process, command))

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Stop it, and fail if a process of it is left."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.check_end(timeout)

    def check_end(self, timeout: float = PATIENCE) -> int:
        """Its exit code when it has ended; fails if a process of it is left."""
        code = self.wait(timeout)
        _, alive = psutil.wait_procs(marked(self.mark), timeout=10)
        for process in alive:
            process.kill()
        assert not alive, f"left behind: {alive}\n{self.log}"
        return code

    def kill(self) -> None:
        for process in marked(self.mark):
            process.kill()
        self.process.wait(10)


def forkserver_pid() -> int:
    """Of the forkserver of this process."""
    multiprocessing.forkserver.ensure_running()
    return int(multiprocessing.forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]


@contextlib.contextmanager
def suspended(pid: int) -> Iterator[psutil.Process]:
    """A process that does not answer."""
    process = psutil.Process(pid)
    process.suspend()
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_like(process: psutil.Process, command: list[str]) -> bool:
    try:
        return bool(process.cmdline() == command)
    except psutil.NoSuchProcess:
        return False


def marked(mark: str) -> list[psutil.Process]:
    """The processes that have ``mark`` in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TFPOOL_TEST_MARK") == mark and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


StartWorker = Callable[..., Worker]


@pytest.fixture(params=["redis", "filesystem"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both pool engines: Redis has an event loop, the filesystem has not."""
    return str(request.param)


@pytest.fixture
def start_worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """Start workers; at the end of the test each is stopped, and nothing of it may be left."""
    with starting_workers(redis_url, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared_worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """The same for workers that all tests of a module share."""
    with starting_workers(redis_url, tmp_path_factory) as start:
        yield start


@contextlib.contextmanager
def starting_workers(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    workers: list[Worker] = []

    def start(
        *arguments: str,
        app: str = "proj",
        broker: str = "redis",
        conf: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        pool: str | None = f"--pool={POOL}",
        wait: bool = True,
    ) -> Worker:
        mark = uuid.uuid4().hex[:12]
        settings = broker_settings(broker, redis_url, tmp_path_factory, mark) | (conf or {})
        name = f"{mark}@test"
        environ = quiet(os.environ) | {"TFPOOL_TEST_MARK": mark, "TFPOOL_TEST_CONF": json.dumps(settings)}
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", name, "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", *([pool] if pool else []), *arguments]
        client = Celery("client", set_as_current=False)
        client.conf.update({k: v for k, v in settings.items() if not k.startswith(("tf_", "worker_"))})
        worker = Worker(command, env=environ | (env or {}), mark=mark, client=client, name=name)
        workers.append(worker)
        if wait:
            worker.wait_for(r" ready\.")
        return worker

    try:
        yield start
        running = [worker for worker in workers if worker.process.poll() is None]
        for worker in running:
            worker.process.terminate()
        for worker in running:
            worker.check_end()
    finally:
        for worker in workers:
            worker.kill()


def broker_settings(broker: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory, mark: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "broker_url": redis_url + "/0",
        "result_backend": redis_url + "/1",
        "task_default_queue": mark,
        "broker_connection_retry_on_startup": True,
        "worker_redirect_stdouts": False,
    }
    if broker == "filesystem":
        folder = str(tmp_path_factory.mktemp("broker"))
        options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": folder}
        settings |= {
            "broker_url": "filesystem://",
            "broker_transport": "whole_files:Transport",
            "broker_transport_options": options,
        }
    elif broker != "redis":
        settings["broker_url"] = broker
    return settings
