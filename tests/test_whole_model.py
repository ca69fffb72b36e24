"""Everything but `predict` is that of the model that Keras itself would load, trained state included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from test_parity import assert_same
from zoo import chain, normal

from celery_tfpool.models.handle import Handle
from celery_tfpool.models.lazy_model import LazyModel
from celery_tfpool.packs.attach import load
from celery_tfpool.packs.compared import write_compared

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

X, Y = normal(3)(40), normal(1)(40)


def handle_of(path: Path, *, packed: bool) -> tuple[Handle, LazyModel]:
    """What a child has of the model, once it has predicted."""
    pack = None
    if packed:
        pack = str(path) + ".pack"
        Path(pack).mkdir()
        write_compared(load("model", str(path), safe_mode=True), pack)
    lazy = LazyModel("model", str(path), safe_mode=True, pack=pack)
    handle = Handle(lambda: lazy)
    handle.predict(X)
    assert lazy.packed == packed
    return handle, lazy


def trained(**options: Any) -> Any:
    model = chain((3,), layers.Dense(4), layers.Dense(1))
    model.compile(optimizer="adam", **options)
    model.fit(X, Y, epochs=2, verbose=0)
    return model


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_fit_and_evaluate(tmp_path: Path, name: str, packed: bool) -> None:
    """Training goes on where it was, and `predict` has the new weights; evaluating has the model's own metrics."""
    # Keras cannot read the short name "mse" from an .h5 file.
    trained(loss=keras.losses.MeanSquaredError(), metrics=[keras.metrics.MeanAbsoluteError()]).save(tmp_path / name)
    handle, _ = handle_of(tmp_path / name, packed=packed)
    theirs = keras.models.load_model(tmp_path / name)

    assert theirs.evaluate(X, Y, verbose=0) == handle.evaluate(X, Y, verbose=0)
    if name == "model.h5":
        return  # Keras 3 cannot go on training what it has loaded from one: "Unknown variable"
    before = handle.predict(X)
    for model in (handle, theirs):
        model.fit(X, Y, shuffle=False, verbose=0)
    assert_same(handle.predict(X), theirs.predict(X, verbose=0))
    assert not np.array_equal(before, handle.predict(X))


@pytest.mark.parametrize("packed", [True, False])
def test_unknown_loss(tmp_path: Path, packed: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A loss that is not imported here costs training only, with the reason."""

    def secret_loss(truth: Any, guess: Any) -> Any:
        return ops.mean(ops.abs(truth - guess))

    theirs = trained(loss=secret_loss)
    theirs.save(tmp_path / "model.keras")
    handle, _ = handle_of(tmp_path / "model.keras", packed=packed)
    assert "" == caplog.text

    assert 2 == len(handle.layers)
    assert "cannot be loaded with its loss, metrics and optimizer" in caplog.text
    assert "secret_loss" in caplog.text
    with pytest.raises(ValueError, match=r"compile\(\)"):
        handle.fit(X, Y)
    handle.compile(loss=secret_loss)
    handle.fit(X, Y, epochs=0)
    assert_same(handle.predict(X), theirs.predict(X, verbose=0))


def test_loaded_once(tmp_path: Path) -> None:
    """A model that was never compiled is not loaded again for what only Keras has."""
    chain((3,), layers.Dense(1)).save(tmp_path / "model.keras")
    handle, lazy = handle_of(tmp_path / "model.keras", packed=False)
    runner = lazy.load()

    assert 1 == len(handle.layers)
    assert runner is lazy.load()


def test_stays_the_same(tmp_path: Path) -> None:
    """Once somebody has it, it is not loaded again: his changes would be lost."""
    trained(loss="mse").save(tmp_path / "model.keras")
    handle, _ = handle_of(tmp_path / "model.keras", packed=True)
    layer = handle.layers[0]
    handle.fit(X, Y, verbose=0)

    assert layer is handle.layers[0]
