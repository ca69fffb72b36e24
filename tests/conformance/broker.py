"""A Redis server of our own, for as long as the tests run."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MISSING = """redis-server is missing; Celery's integration tests need it.
  Debian, Ubuntu: apt install redis-server
  Fedora:         dnf install redis
  macOS:          brew install redis"""


@contextmanager
def redis_server() -> Iterator[int]:
    """Start a Redis server that keeps nothing; gives its port on 127.0.0.1."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit(MISSING)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="conformance-redis-") as folder:
        settings = {"bind": "127.0.0.1", "port": port, "dir": folder, "save": "", "appendonly": "no"}
        command = [program, *(str(word) for name, value in settings.items() for word in (f"--{name}", value))]
        # A session of its own: on Ctrl+C, pytest says good-bye to a living server.
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            wait_until_ready(server)
            yield port
        finally:
            server.terminate()
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None  # for mypy: it is a pipe
    seen = []
    for line in server.stdout:
        seen.append(line)
        if "Ready to accept connections" in line:
            # Keep reading, or a full pipe would stop the server one day.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return
    raise SystemExit(f"redis-server did not start:\n{''.join(seen)}")
