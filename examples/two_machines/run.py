"""Two workers and a RabbitMQ on three machines, for which network namespaces of this one stand.

    sudo python run.py

Each machine has an address, a host name and processes of its own, and is
connected by a cable to a switch, which is here.  Nothing of it can be seen from
outside, and nothing is left of it at the end, also after an error or Ctrl+C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks import app, find_faces, find_masks

HERE = Path(__file__).parent
RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"
#: In a network of its own, where ``ip`` keeps the names of namespaces in a folder of its own.
SETUP = 'mount -t tmpfs none /run; mkdir /run/netns; exec "$@"'
#: A machine ends when this program does, and all its processes with it.
MACHINE = "setpriv --pdeathsig KILL ip netns exec {name} unshare --uts --pid --fork --kill-child --mount-proc"
WORKER = "celery -A tasks worker --pool=celery_tfpool:TFPrefork --concurrency=2 -Q {name} --tf-models={name} -l INFO"
#: Seconds until RabbitMQ listens, and until a task is answered.
PATIENCE = 120.0
ONES = [1.0] * 16
EXPECTED = {"faces": 16.0, "masks": 32.0}


class RunError(Exception):
    """Something did not happen; the text says what."""


class Machine:
    """A namespace with an address, connected to the switch; it has a folder, and runs one program at a time."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._process: subprocess.Popen[bytes] | None = None
        ip(f"netns add {name}")
        ip(f"link add {name} type veth peer name eth0 netns {name}")
        ip(f"link set {name} master switch up")
        ip(f"-n {name} address add {address}/24 dev eth0")
        ip(f"-n {name} link set eth0 up")
        ip(f"-n {name} link set lo up")

    def power_on(self, command: list[str], **variables: str) -> None:
        """Start ``command`` as its first process."""
        machine = MACHINE.format(name=self.name).split()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*machine, "sh", "-c", f'hostname {self.name}; exec "$@"', "sh", *command],
                cwd=self.folder,
                env={**os.environ, "TMPDIR": str(self.folder), **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def power_off(self) -> None:
        """End all its processes at once, as a power cut does."""
        if self._process is None:
            return
        if first := Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text():
            os.kill(int(first), signal.SIGKILL)  # it takes all others along
        else:
            self._process.kill()
        self._process.wait()
        self._process = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"


def ip(arguments: str) -> None:
    call(["ip", *arguments.split()])


def call(command: list[str], folder: Path = HERE) -> None:
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")


@contextlib.contextmanager
def three_machines(folder: Path) -> Iterator[dict[str, Machine]]:
    """A machine for RabbitMQ and two for workers, each with a folder of its own; off at the end."""
    ip("link add switch type bridge")
    ip("address add 10.0.0.254/24 dev switch")
    ip("link set switch up")
    machines: dict[str, Machine] = {}
    try:
        for number, name in enumerate(("broker", "faces", "masks"), start=1):
            (folder / name).mkdir(exist_ok=True)
            machines[name] = Machine(name, f"10.0.0.{number}", folder / name)
        yield machines
    except Exception:
        for machine in machines.values():
            if machine.log.exists():
                lines = machine.log.read_text(errors="replace").splitlines()
                print(f"--- the last lines of {machine.log.name}:", *lines[-20:], sep="\n")
        raise
    finally:
        for machine in machines.values():
            machine.power_off()


def start_rabbitmq(machine: Machine) -> None:
    """With a user of its own: "guest" may log in from the same machine only."""
    (machine.folder / "rabbitmq.conf").write_text("default_user = tasks\ndefault_pass = secret\n")
    home = str(machine.folder)
    variables = dict.fromkeys(("HOME", "RABBITMQ_MNESIA_BASE", "RABBITMQ_LOG_BASE"), home)
    variables |= {"RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf", "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/plugins"}
    machine.power_on([RABBITMQ], RABBITMQ_NODENAME="rabbit@localhost", **variables)


def start_worker(machine: Machine) -> None:
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", *WORKER.format(name=machine.name).split()]
    machine.power_on(command, PYTHONPATH=path, XDG_CACHE_HOME=str(machine.folder / "cache"), TF_CPP_MIN_LOG_LEVEL="3")


def show_answer(name: str, result: Any) -> None:
    answer, host = result.get(timeout=PATIENCE)
    print(f"   {name}: {answer} from {host}", flush=True)
    if (answer, host) != (EXPECTED[name], name):
        raise RunError(f"expected {EXPECTED[name]} from {name}")


def wait_for_messages(queue: str, count: int) -> None:
    """Until so many wait in it: RabbitMQ takes a moment to see that a worker is gone."""
    deadline = time.monotonic() + PATIENCE
    with app.connection() as connection:
        while connection.default_channel.queue_declare(queue, passive=True).message_count != count:
            if time.monotonic() > deadline:
                raise RunError(f"{count} messages were expected to wait in queue {queue!r}")
            time.sleep(0.1)


def run(folder: Path) -> None:
    with three_machines(folder) as machines:
        print("1. three machines: broker (10.0.0.1) with RabbitMQ, faces (10.0.0.2) and masks (10.0.0.3)", flush=True)
        start_rabbitmq(machines["broker"])
        call([sys.executable, str(HERE / "models.py")], folder)
        for name in ("faces", "masks"):
            start_worker(machines[name])
        app.connection().ensure_connection(interval_start=0.2, interval_step=0, timeout=PATIENCE)
        print("2. a task for each model", flush=True)
        show_answer("faces", find_faces.delay(ONES))
        show_answer("masks", find_masks.delay(ONES))
        print("3. the power of faces is cut, and two more tasks are sent for each model", flush=True)
        machines["faces"].power_off()
        waiting = [find_faces.delay(ONES) for _ in range(2)]
        for result in [find_masks.delay(ONES) for _ in range(2)]:
            show_answer("masks", result)
        wait_for_messages("faces", 2)
        print("   faces: 2 tasks wait in RabbitMQ", flush=True)
        print("4. faces has power again", flush=True)
        start_worker(machines["faces"])
        for result in waiting:
            show_answer("faces", result)
        print("5. all machines are switched off", flush=True)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt
    with tempfile.TemporaryDirectory(prefix="two-machines-") as folder:
        try:
            run(Path(folder))
        except RunError as exc:
            print(exc, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    if os.geteuid():
        sys.exit("network namespaces need root: sudo $(which python) run.py")
    if not os.path.exists(RABBITMQ):
        sys.exit(f"there is no {RABBITMQ}: apt-get install rabbitmq-server")
    if "TWO_MACHINES" not in os.environ:
        os.environ["TWO_MACHINES"] = "in a network of their own"
        os.execvp("unshare", ["unshare", "--net", "--mount", "sh", "-ec", SETUP, "sh", sys.executable, __file__])
    sys.exit(main())
