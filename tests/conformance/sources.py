"""Celery's own tests, from the source distribution of the version that is installed.

The wheel has no tests.  Nothing else is kept of the source distribution: its
``celery`` folder next to the tests would be tested instead of the installed one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

#: The tests, and pytest's markers and options for them.
KEEP = ("t", "pyproject.toml", "setup.cfg")


def celery_tests(cache: Path) -> Path:
    """The folder that holds ``t/`` of the installed Celery, downloaded unless it is there."""
    name = f"celery-{version('celery')}"
    folder = cache / name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        download(f"celery=={version('celery')}", Path(scratch))
        archive = next(Path(scratch).glob("celery-*.tar.gz"))
        shutil.unpack_archive(archive, scratch)
        kept = Path(scratch, "kept")
        kept.mkdir()
        for entry in KEEP:
            Path(scratch, name, entry).rename(kept / entry)
        kept.rename(folder)
    return folder


def download(requirement: str, folder: Path) -> None:
    # Only Celery itself as source: pip asks it for its name, which takes setuptools, and that as a wheel.
    options = ["--quiet", "--no-deps", "--no-binary", "celery", "--dest", str(folder)]
    status = subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=False).returncode
    if status:
        raise SystemExit(f"could not download the source distribution of {requirement}: pip ended with {status}")
