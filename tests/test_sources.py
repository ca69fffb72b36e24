"""What can be seen of a model path without TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from celery_tfpool.runners import configuration, location
from celery_tfpool.runners.location import BadSource, Kind

LAMBDA = {"layers": [{"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {}}}}]}


def keras_file(path: Path, config: object) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", b"0" * 1000)
    return str(path)


def h5_file(path: Path, config: object | None) -> str:
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
    return str(path)


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    (tmp_path / "unzipped").mkdir()
    (tmp_path / "unzipped" / "config.json").write_text("{}")
    assert Kind.KERAS is location.check(keras_file(tmp_path / "a.keras", {}), safe_mode=True)
    assert Kind.KERAS is location.check(str(tmp_path / "unzipped"), safe_mode=True)
    assert Kind.H5 is location.check(h5_file(tmp_path / "a.h5", {}), safe_mode=True)
    assert Kind.SAVED_MODEL is location.check(str(tmp_path / "saved"), safe_mode=True)
    assert Kind.FUNCTION is location.check("json:dumps", safe_mode=True)
    assert Kind.FUNCTION is location.check("wave:nobody_has_imported_it_yet", safe_mode=True)
    assert Kind.REMOTE is location.check("gs://bucket/model.keras", safe_mode=True)


def test_a_file_whose_name_has_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists is a path, whatever it looks like."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "saved_model.pb").touch()
    assert Kind.SAVED_MODEL is location.check("a:b", safe_mode=True)


def test_what_is_wrong(tmp_path: Path) -> None:
    """Each message says what is wrong with the path."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "text.h5").write_text("no model")
    whole = Path(keras_file(tmp_path / "whole.keras", {}))
    (tmp_path / "half.keras").write_bytes(whole.read_bytes()[:600])
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme", "")
    whole_h5 = Path(h5_file(tmp_path / "whole.h5", {"class_name": "Sequential", "more": "x" * 5000}))
    (tmp_path / "half.h5").write_bytes(whole_h5.read_bytes()[:2000])
    h5_file(tmp_path / "weights.h5", None)
    for path, message in {
        "missing.keras": "no such file or folder",
        "folder": "the folder is no model: it holds no saved_model.pb, Keras config.json or pack.json",
        "notes.txt": "unknown format: expected a .keras or .h5 file",
        "text.keras": "it is damaged or truncated",
        "half.keras": "it is damaged or truncated",
        "other.keras": "the file is no Keras model: it holds no config.json",
        "text.h5": "it is damaged or truncated",
        "half.h5": "it is damaged or truncated",
        "weights.h5": "the file holds weights only",
    }.items():
        with pytest.raises(BadSource) as caught:
            location.check(str(tmp_path / path), safe_mode=True)
        assert message in str(caught.value), path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("json:nothing_here", "module 'json' has no function 'nothing_here'"),
        ("no_such_module_at_all:make", "no module 'no_such_module_at_all' on the Python path"),
        ("json.no_such:make", "no module 'json.no_such' on the Python path"),
        ("no_such_package.module:make", "module 'no_such_package.module' cannot be imported"),
    ],
)
def test_function_that_does_not_exist(path: str, message: str) -> None:
    with pytest.raises(BadSource) as caught:
        location.check(path, safe_mode=True)
    assert message in str(caught.value)


def test_code_in_a_model(tmp_path: Path) -> None:
    """A Lambda layer is refused in safe mode, in both of Keras's formats, Keras 2's way of writing it included."""
    keras_2 = {
        "layers": [{"class_name": "Lambda", "config": {"function": ["4wE=", None, None], "function_type": "lambda"}}]
    }
    for path in (
        keras_file(tmp_path / "a.keras", LAMBDA),
        h5_file(tmp_path / "a.h5", LAMBDA),
        h5_file(tmp_path / "b.h5", keras_2),
    ):
        with pytest.raises(BadSource, match="tf_safe_mode"):
            location.check(path, safe_mode=True)
        assert location.check(path, safe_mode=False)


def raw_h5(path: Path, config: Any) -> str:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config
    return str(path)


def zipped(path: Path, config: bytes) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config)
    return str(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b'{"class_name": ', "its configuration cannot be read (Expecting value"),
        (b"\xff\xfe{}", "its configuration cannot be read ("),
        (b"[1, 2]", "its configuration is not that of a model"),
        (b"null", "its configuration is not that of a model"),
        (b"[" * 100_000 + b"]" * 100_000, "its configuration cannot be read (nested too deeply)"),
    ],
)
def test_damaged_configuration(tmp_path: Path, config: bytes, message: str) -> None:
    """Of each format: says so, and what to do."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_bytes(config)
    paths = [zipped(tmp_path / "a.keras", config), str(tmp_path / "folder")]
    if len(config) < 60_000:  # as much as an attribute holds
        paths.append(raw_h5(tmp_path / "a.h5", np.void(config)))
    for path in paths[:2]:
        with pytest.raises(BadSource) as caught:
            location.check(path, safe_mode=True)
        assert message in str(caught.value), path
    for path in paths[2:]:
        with pytest.raises(BadSource):
            location.check(path, safe_mode=True)


def test_configuration_that_grows_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "_MOST_CONFIG", 1000)
    with pytest.raises(BadSource, match="more than 1,000 bytes, which no model needs"):
        location.check(zipped(tmp_path / "a.keras", b" " * 10_000_000), safe_mode=True)


def test_deep_configuration(tmp_path: Path) -> None:
    """As deep as JSON can be read."""
    deep: Any = {"class_name": "__lambda__"}
    for _ in range(300):
        deep = {"config": [deep]}
    with pytest.raises(BadSource, match="tf_safe_mode"):
        location.check(keras_file(tmp_path / "a.keras", deep), safe_mode=True)


def test_unreadable(tmp_path: Path) -> None:
    """Files and folders that another user has closed: says that, and not that they are damaged."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    paths = [keras_file(tmp_path / "a.keras", {}), h5_file(tmp_path / "a.h5", {}), str(tmp_path / "saved")]
    for path in paths:
        os.chmod(path, 0)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    program = (
        "import os, sys; sys.path[:0] = eval(sys.argv[1])\n"
        "import h5py; from celery_tfpool.runners import location; os.seteuid(65534)\n"
        "for path in sys.argv[2:]:\n"
        "    try: location.check(path, safe_mode=True)\n"
        "    except location.BadSource as exc: print(exc)"
    )
    command = [sys.executable, "-c", program, repr(sys.path), *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    if os.geteuid() != 0:  # nobody else may become another user
        pytest.skip("only root may")
    assert ["it may not be read by user 65534 (Permission denied); change its owner or mode"] * 3 == (
        done.stdout.splitlines()
    )


def test_locked(tmp_path: Path) -> None:
    path = h5_file(tmp_path / "a.h5", {})
    program = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert "open\n" == writer.stdout.readline()
        with pytest.raises(BadSource, match="it is locked by a process that writes it"):
            location.check(path, safe_mode=True)
        writer.communicate()
    assert Kind.H5 is location.check(path, safe_mode=True)


def test_removed_working_directory(tmp_path: Path) -> None:
    program = (
        "import os, sys; from celery_tfpool.runners import location\n"
        "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "try: location.check('a.keras', safe_mode=True)\n"
        "except location.BadSource as exc: print(exc)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "the working directory has been removed; give the whole path" in done.stdout
