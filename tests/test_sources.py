"""What can be seen of a model path without TensorFlow."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import pytest

from celery_tfpool import sources
from celery_tfpool.sources import BadSource, Kind

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
    assert Kind.KERAS is sources.check(keras_file(tmp_path / "a.keras", {}), safe_mode=True)
    assert Kind.KERAS is sources.check(str(tmp_path / "unzipped"), safe_mode=True)
    assert Kind.H5 is sources.check(h5_file(tmp_path / "a.h5", {}), safe_mode=True)
    assert Kind.SAVED_MODEL is sources.check(str(tmp_path / "saved"), safe_mode=True)
    assert Kind.FUNCTION is sources.check("json:dumps", safe_mode=True)
    assert Kind.FUNCTION is sources.check("wave:nobody_has_imported_it_yet", safe_mode=True)
    assert Kind.REMOTE is sources.check("gs://bucket/model.keras", safe_mode=True)


def test_a_file_whose_name_has_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists is a path, whatever it looks like."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "saved_model.pb").touch()
    assert Kind.SAVED_MODEL is sources.check("a:b", safe_mode=True)


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
        "missing.keras": "no such file or folder (looked in ",
        "folder": "the folder is no model: it holds no saved_model.pb, Keras config.json or pack.json",
        "notes.txt": "unknown format: expected a .keras or .h5 file",
        "text.keras": "the file is damaged or truncated",
        "half.keras": "the file is damaged or truncated",
        "other.keras": "the file is no Keras model: it holds no config.json",
        "text.h5": "the file is damaged or truncated",
        "half.h5": "the file is damaged or truncated",
        "weights.h5": "the file holds weights only",
    }.items():
        with pytest.raises(BadSource) as caught:
            sources.check(str(tmp_path / path), safe_mode=True)
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
        sources.check(path, safe_mode=True)
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
            sources.check(path, safe_mode=True)
        assert sources.check(path, safe_mode=False)
