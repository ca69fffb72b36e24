"""Python environments for contestants that cannot live in ours; made at first need, TensorFlow borrowed from ours."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(os.environ.get("BENCH_ENVIRONMENTS") or Path(__file__).parent / ".venvs")

#: What pip installs in each; "main" is the environment of the benchmark itself.
REQUIREMENTS = {
    # pinned below Celery 5.7 by celery-batches itself
    "batches": ["celery[redis]", "celery-batches"],
    "server": ["mosec"],
}


class CannotInstall(Exception):
    """An environment could not be made, and the last line of what pip says of it."""


def python(name: str) -> str:
    """The interpreter of an environment, which is made if it is not there.

    Raises:
        CannotInstall: pip failed.
    """
    if name == "main":
        return sys.executable
    home = FOLDER / name
    interpreter, made = home / "bin" / "python", home / "made"
    if not made.exists():
        venv.create(home, with_pip=True, clear=True)
        pip = subprocess.run(
            [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name]],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if pip.returncode:
            errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
            raise CannotInstall(f"pip could not install {' '.join(REQUIREMENTS[name])}: {' '.join(errors)[-300:]}")
        # After its own packages, ours: TensorFlow is large, and must be the same for all.
        packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (home / packages / "zz-main.pth").write_text(sysconfig.get_path("purelib") + "\n")
        made.touch()
    return str(interpreter)
