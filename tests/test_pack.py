"""Packs: the same numbers as Keras, bit for bit, from files that are mapped; damage is noticed."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import quiet
from keras import layers, ops
from test_parity import CASES, assert_same, for_keras, keras_itself
from zoo import ZOO, chain, normal

from celery_tfpool import ModelLoadError, SettingsError, errors, processes
from celery_tfpool.model_path import ModelPath
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.lazy_model import LazyModel
from celery_tfpool.packs import attach, build, manifest, write
from celery_tfpool.packs.attach import PackRunner, load
from celery_tfpool.packs.cache import PackCache
from celery_tfpool.packs.compared import write_compared
from celery_tfpool.pool import startup
from celery_tfpool.runners.keras_model import KerasRunner, declared
from celery_tfpool.runners.location import BadSource
from celery_tfpool.runners.options import LoadOptions
from celery_tfpool.runners.protocol import CannotPack
from celery_tfpool.settings import Settings

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:__array__")]

#: What cannot be packed, and why.
CANNOT = {
    "TextVectorization": "it looks words up in a table|lookup table or another resource",
    "TextVectorization, ragged": "it looks words up in a table|lookup table or another resource",
    "StringLookup": "it looks words up in a table|lookup table or another resource",
    "subclassed": "it does not say what inputs it takes",
    "subclassed, of a dict": "it does not say what inputs it takes",
    "never built": "it does not say what inputs it takes",
    "own predict_step": "a predict_step\\(\\) of its own",
}

Pair = tuple[Any, PackRunner]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A model of the zoo by its name, from one file: by Keras, and by way of a pack."""
    folder = tmp_path_factory.mktemp("packs")
    pairs: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in pairs:
            path = str(folder / f"{len(pairs)}.keras")
            with keras_itself():
                ZOO[name].build().save(path)
                theirs = keras.models.load_model(path)
            theirs.predict(for_keras(ZOO[name].rows(33)), verbose=0)  # as in test_parity
            pairs[name] = theirs, PackRunner(name, pack_of(path, folder / f"{len(pairs)}.pack"))
        return pairs[name]

    return get


def pack_of(path: str, folder: Path) -> str:
    folder.mkdir()
    write.write(load("model", path, safe_mode=True), str(folder))
    return str(folder)


@pytest.fixture
def of_model(tmp_path: Path) -> Callable[[Any], tuple[Any, LazyModel]]:
    """A model, and what a child has of it: its file and its pack."""

    def make(model: Any) -> tuple[Any, LazyModel]:
        path = str(tmp_path / "model.keras")
        model.save(path)
        folder = pack_of(path, tmp_path / "pack")
        return keras.models.load_model(path), LazyModel("model", path, safe_mode=True, pack=folder)

    return make


# -- the same numbers ------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows", "batch_size"), [case for case in CASES if case[0] not in CANNOT])
def test_same_numbers(packed: Callable[[str], Pair], name: str, rows: int, batch_size: int | None) -> None:
    """Every kind of model that can be packed: 1, 33 and 1,000 rows, in other batches as well."""
    theirs, ours = packed(name)
    x = ZOO[name].rows(rows)
    any_size = any(None in port.shape[1:] for port in declared(theirs, "inputs"))
    expected = theirs.predict(for_keras(x), batch_size=batch_size, verbose=0)

    assert_same(ours.predict(x, batch_size or 32), expected, rtol=1e-5 if any_size else 0)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in CANNOT])
def test_no_rows(packed: Callable[[str], Pair], name: str) -> None:
    """0 rows give 0 rows, in the shape and dtype of one."""
    _, ours = packed(name)
    some, none = (ours.predict(ZOO[name].rows(rows), 32) for rows in (4, 0))

    for one, other in zip(keras.tree.flatten(some), keras.tree.flatten(none), strict=True):
        assert (one.dtype, (0, *one.shape[1:])) == (other.dtype, other.shape)


@pytest.mark.parametrize("name", CANNOT)
def test_cannot_be_packed(tmp_path: Path, name: str) -> None:
    """What has no pack says so, and leaves no folder that looks like one."""
    path = str(tmp_path / "model.keras")
    with keras_itself():
        ZOO[name].build().save(path)

    with pytest.raises(CannotPack, match=CANNOT[name]):
        pack_of(path, tmp_path / "pack")
    assert not manifest.is_pack(str(tmp_path / "pack"))


def test_python_function_cannot_be_packed(tmp_path: Path) -> None:
    """A graph that calls back into Python."""

    @keras.saving.register_keras_serializable("test_pack")
    class Python(layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            y = tf.numpy_function(lambda array: array * 2, [x], tf.float32)
            y.set_shape(x.shape)
            return y

    path = str(tmp_path / "model.keras")
    chain((3,), Python()).save(path)
    with pytest.raises(CannotPack, match=r"calls a Python function"):
        pack_of(path, tmp_path / "pack")


class Answer(NamedTuple):
    first: Any
    second: Any


def layer(call: Callable[[Any], Any]) -> Any:
    """A model of 3 numbers whose only layer has this ``call``."""

    @keras.saving.register_keras_serializable("test_pack", name=f"Layer{next(_numbers)}")
    class Custom(layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return call(x)

    return chain((3,), Custom())


def model_with(**members: Any) -> Any:
    """A model of 3 numbers whose class has ``members``."""
    cls = keras.saving.register_keras_serializable("test_pack", name=f"Model{next(_numbers)}")(
        type("Custom", (keras.Model,), members)
    )
    x = keras.Input((3,))
    return cls(x, layers.Dense(1)(x))


_numbers = itertools.count()

#: What `docs/limits.md` lists beside `CANNOT`, and the reason that the log gives.
LISTED = {
    "ragged": (lambda: layer(tf.RaggedTensor.from_tensor), "one of its outputs is a .*Ragged"),
    "sparse": (lambda: layer(tf.sparse.from_dense), "one of its outputs is a .*Sparse"),
    "names": (lambda: layer(lambda x: {1: x, 2: x}), "its inputs or outputs have names that are not strings"),
    "named tuple": (lambda: layer(lambda x: Answer(x, x)), "its inputs or outputs are a named tuple"),
    "predict": (
        lambda: model_with(predict=functools.partialmethod(keras.Model.predict)),
        r"it has a predict\(\) or make_predict_function\(\) of its own",
    ),
    "make_predict_function": (
        lambda: model_with(make_predict_function=functools.partialmethod(keras.Model.make_predict_function)),
        r"it has a predict\(\) or make_predict_function\(\) of its own",
    ),
    "eager": (lambda: model_with(run_eagerly=True), "or runs eagerly"),
    "strings": (
        lambda: layer(functools.partial(with_constant, tf.constant(["a", "bc"]))),
        "one of its constants is of dtype string",
    ),
}


def with_constant(words: Any, x: Any) -> Any:
    return x + tf.cast(tf.strings.length(words)[0], x.dtype)


@pytest.mark.parametrize("kind", LISTED)
def test_listed_in_limits(tmp_path: Path, kind: str) -> None:
    """Each kind that the documentation lists is refused with its reason, and the next worker knows without trying."""
    make, reason = LISTED[kind]
    path = str(tmp_path / "model.keras")
    make().save(path)
    cache = PackCache(tmp_path / "cache", 2**30)

    for _ in range(2):
        with pytest.raises(CannotPack, match=reason):
            build.find_or_make("model", path, cache, safe_mode=True)
    (entry,) = cache.entries()
    assert entry.note


def test_remote_is_not_packed(tmp_path: Path) -> None:
    """Nobody can see from here whether what stands at a URL has changed."""
    with pytest.raises(CannotPack, match="only a file or folder on this machine can be seen to have changed"):
        build.find_or_make("model", "gs://bucket/model.keras", PackCache(tmp_path, 2**30), safe_mode=True)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["dense", "lstm", "several, listed", "several, named"])
def test_saved_model(tmp_path: Path, name: str) -> None:
    """A SavedModel's signature, its inputs by name and in the model's order."""
    with keras_itself():
        ZOO[name].build().export(str(tmp_path / "saved"))
    plain = load("model", str(tmp_path / "saved"), safe_mode=True)
    ours = PackRunner("model", pack_of(str(tmp_path / "saved"), tmp_path / "pack"))

    for rows in (1, 33):
        assert_same(ours.predict(ZOO[name].rows(rows), 32), plain.predict(ZOO[name].rows(rows), 32))


def test_two_of_one_kind(tmp_path: Path) -> None:
    """Functions of two models that were traced under the same names do not meet in one process."""
    answers = []
    for number in (1, 2):
        path = str(tmp_path / f"{number}.keras")
        chain((2,), layers.Dense(1, kernel_initializer=keras.initializers.Constant(number))).save(path)
        program = f"import test_pack; from pathlib import Path; test_pack.pack_of({path!r}, Path({path + '.pack'!r}))"
        run_python(program)
    for number in (1, 2):
        answers.append(PackRunner("model", str(tmp_path / f"{number}.keras.pack")).predict([[1.0, 2.0]], 32).item())
    assert [3.0, 6.0] == answers


def run_python(program: str) -> str:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=quiet(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


# -- what a child has --------------------------------------------------------------


class Several(tf.Module):
    """Two signatures, none of which is the usual one."""

    @tf.function(input_signature=[tf.TensorSpec((None, 2), "float32", "x")])
    def double(self, x: Any) -> Any:
        return 2 * x

    @tf.function(input_signature=[tf.TensorSpec((None, 2), "float32", "x")])
    def embed(self, x: Any) -> Any:
        return x[:, :1]


def test_signature(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Named, it is taken, and makes a pack of its own; not named, the one that is taken is said."""
    module, path, cache = Several(), str(tmp_path / "saved"), PackCache(tmp_path / "cache", 2**30)
    tf.saved_model.save(module, path, {"double": module.double, "embed": module.embed})
    x = np.array([[1, 2], [3, 4]], "float32")
    folders = set()
    for name, answer in (("double", 2 * x), ("embed", x[:, :1])):
        options = LoadOptions(signature=name)
        folder = build.find_or_make("model", path, cache, safe_mode=True, options=options).folder
        folders.add(folder)
        for lazy in (
            LazyModel("model", path, safe_mode=True, options=options),
            LazyModel("model", path, safe_mode=True, pack=folder),
        ):
            assert np.array_equal(answer, lazy.load().predict(x, None))
    assert 2 == len(folders)
    with caplog.at_level("INFO"):
        LazyModel("model", path, safe_mode=True).load()
    assert "predicts by signature 'double' of 'double', 'embed'" in caplog.text
    with pytest.raises(ModelLoadError, match=r"has no signature 'rank'; it has 'double', 'embed'"):
        LazyModel("model", path, safe_mode=True, options=LoadOptions(signature="rank")).load()


class Twice(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 2


class Thrice(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 3


def test_another_custom_object(tmp_path: Path) -> None:
    """Of the same name makes another pack, whether it is given or named."""
    path, cache = str(tmp_path / "model.keras"), PackCache(tmp_path / "cache", 2**30)
    keras.Sequential([layers.Input((2,)), Twice()]).save(path)
    answers = []
    for where in (Twice, Thrice, f"{__name__}:Twice", f"{__name__}:Thrice"):
        options = LoadOptions(custom_objects=(("Twice", where),))
        folder = build.find_or_make("model", path, cache, safe_mode=True, options=options).folder
        answers.append(float(PackRunner("model", folder).predict(np.ones((1, 2)), None)[0, 0]))
    assert [2, 3, 2, 3] == answers


def test_errors_are_the_models_own(of_model: Callable[[Any], tuple[Any, LazyModel]]) -> None:
    """Through a pack, what does not fit is refused in the same words."""
    _, lazy = of_model(ZOO["several, named"].build())
    plain = LazyModel("model", lazy.path, safe_mode=True)
    for x in ({"wide": np.ones((1, 4))}, np.ones((1, 4)), {"wide": np.ones((1, 5)), "ids": np.ones((1, 3))}):
        said = []
        for model in (lazy, plain):
            with pytest.raises(errors.InvalidInputError) as caught:
                Handle(lambda model=model: model).predict(x)  # type: ignore[misc]
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_only_what_is_needed(of_model: Callable[[Any], tuple[Any, LazyModel]]) -> None:
    """No Keras model until something is asked that only Keras has; from then on its weights count."""
    theirs, lazy = of_model(chain((2,), layers.Dense(1)))
    handle = Handle(lambda: lazy)
    x = normal(2)(3)

    assert_same(handle.predict(x), theirs.predict(x, verbose=0))
    assert lazy.packed
    assert lazy.load().keras_model is None

    handle.layers[0].set_weights([np.ones((2, 1)), np.zeros(1)])
    assert not lazy.packed
    assert_same(handle.predict(x), x.sum(axis=1, keepdims=True))

    assert_same(keras.models.load_model(lazy.path).predict(x, verbose=0), theirs.predict(x, verbose=0))


def test_dataset_goes_to_keras(of_model: Callable[[Any], tuple[Any, LazyModel]]) -> None:
    theirs, lazy = of_model(chain((2,), layers.Dense(1)))
    data = tf.data.Dataset.from_tensor_slices(normal(2)(5)).batch(2)

    assert_same(Handle(lambda: lazy).predict(data, verbose=0), theirs.predict(data, verbose=0))


def test_state_between_calls(of_model: Callable[[Any], tuple[Any, LazyModel]]) -> None:
    """Variables that the graph assigns live in the process, and the files stay as they are."""
    model = keras.Sequential([keras.Input((3, 2), batch_size=1), layers.LSTM(2, stateful=True)])
    theirs, lazy = of_model(model)
    x = normal(3, 2)(1)

    expected = [theirs.predict(x, verbose=0) for _ in range(3)]
    assert not np.array_equal(expected[0], expected[1])
    for _ in range(2):  # another process would begin anew, as a second attachment does
        runner = PackRunner("model", lazy.pack or "")
        for answer in expected:
            assert_same(runner.predict(x, 1), answer)
    manifest.verify(lazy.pack or "")


def test_random_numbers(of_model: Callable[[Any], tuple[Any, LazyModel]]) -> None:
    """A layer that draws numbers in predict draws Keras's own, and new ones at each call."""

    @keras.saving.register_keras_serializable("test_pack")
    class Noise(layers.Layer):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.generator = keras.random.SeedGenerator(7)

        def call(self, x: Any) -> Any:
            return x + keras.random.normal(ops.shape(x), seed=self.generator)

    theirs, lazy = of_model(chain((3,), Noise()))
    x = normal(3)(2)
    handle = Handle(lambda: lazy)

    first, second = (theirs.predict(x, verbose=0) for _ in range(2))
    assert not np.array_equal(first, second)
    assert_same(handle.predict(x), first)
    assert_same(handle.predict(x), second)


def test_weights_are_shared(tmp_path: Path) -> None:
    """Two processes with 80 MB of weights have written next to nothing of them."""
    path = str(tmp_path / "model.keras")
    chain((3200,), layers.Dense(3200), layers.Dense(3200)).save(path)
    folder = pack_of(path, tmp_path / "pack")
    program = f"""
import numpy as np
from celery_tfpool.packs.attach import load
from celery_tfpool import processes
small = load("small", {pack_of(str(small_model(tmp_path)), tmp_path / "small")!r}, safe_mode=True)
small.predict(np.ones((1, 2)), 1)
before = processes.written_here()
model = load("model", {{}}, safe_mode=True)
model.predict(np.ones((1, 3200)), 1)
print(processes.written_here() - before)
"""
    packed, plain = (int(run_python(program.format(repr(source)))) for source in (folder, path))
    assert plain > 80e6
    assert packed < 8e6


def small_model(folder: Path) -> Path:
    chain((2,), layers.Dense(1)).save(folder / "small.keras")
    return folder / "small.keras"


# -- damage ------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["graph.pb", "weights.bin", "pack.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    """Any byte of any file; what is cut off or missing is noticed by whoever attaches it, too."""
    folder = pack_of(str(small_model(tmp_path)), tmp_path / "pack")
    damage(tmp_path / "pack" / name)

    with pytest.raises(manifest.DamagedPack):
        manifest.verify(folder)
    if damage is not flip:
        with pytest.raises(manifest.DamagedPack):
            attach.attach(folder)


def test_format_of_the_future(tmp_path: Path) -> None:
    folder = pack_of(str(small_model(tmp_path)), tmp_path / "pack")
    facts = json.loads((tmp_path / "pack" / "pack.json").read_text())
    (tmp_path / "pack" / "pack.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(manifest.DamagedPack, match="format 99; this version of celery_tfpool knows 3"):
        attach.attach(folder)


def test_damaged_pack_is_left_for_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A child whose pack cannot be used loads the model itself, and says why."""
    path = str(small_model(tmp_path))
    folder = pack_of(path, tmp_path / "pack")
    cut(tmp_path / "pack" / "graph.pb")
    lazy = LazyModel("model", path, safe_mode=True, pack=folder)

    theirs = keras.models.load_model(path)
    assert_same(Handle(lambda: lazy).predict(np.ones((1, 2))), theirs.predict(np.ones((1, 2)), verbose=0))
    assert "its pack" in caplog.text
    assert "graph.pb has" in caplog.text


def test_manifest_survives_json(tmp_path: Path) -> None:
    """Structures of inputs and outputs, tuples and lists told apart."""
    path = str(tmp_path / "model.keras")
    with keras_itself():
        ZOO["several, nested"].build().save(path)
    folder = tmp_path / "pack"
    folder.mkdir()
    written = write.write(load("model", path, safe_mode=True), str(folder))

    assert written == manifest.read_manifest(str(folder))
    assert processes.memory_of(os.getpid())["private"] > 0


# -- whose pack it is -----------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A pack of a small model."""
    folder = tmp_path / "pack"
    folder.mkdir()
    write.write(KerasRunner("m", keras.Sequential([layers.Input((2,)), layers.Dense(1)])), str(folder))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change its manifest as somebody would who knows its checksum."""
    facts = json.loads((folder / "pack.json").read_text())
    del facts["checksum"]
    change(facts)
    (folder / "pack.json").write_text(json.dumps({**facts, "checksum": manifest._checksum(facts)}))


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "graph/../../outside", "link"])
def test_files_elsewhere(made: Path, name: str) -> None:
    """A manifest has no say about files that are not in its folder."""
    (made.parent / "outside").write_text("secret")
    (made / "link").symlink_to(made.parent / "outside")
    rewrite(made, lambda facts: facts["files"].update({name: {"bytes": 6, "sha256": "0"}}))
    for look in (manifest.read_manifest, manifest.verify, attach.attach):
        with pytest.raises(manifest.DamagedPack, match=f"names '{name}', which is not in its folder"):
            look(str(made))


@pytest.mark.parametrize("name", ["weights.bin", "graph.pb"])
def test_files_that_nobody_verifies(made: Path, name: str) -> None:
    rewrite(made, lambda facts: facts["files"].pop(name))
    with pytest.raises(manifest.DamagedPack, match=f"has no checksum of '{name}'"):
        manifest.read_manifest(str(made))


@pytest.mark.parametrize("name", ["tensorflow", "keras", "celery_tfpool"])
@pytest.mark.parametrize("version", ["0.0.1", None])
def test_pack_of_another_version(made: Path, name: str, version: str | None) -> None:
    """Is refused, by whoever might use it, with both versions and what to do."""
    assert PackRunner("m", str(made)).predict(np.ones((1, 2)), None).shape == (1, 1)
    assert load("m", str(made), safe_mode=True)
    here = manifest.versions_here()[name]
    rewrite(made, lambda facts: facts["versions"].update({name: version}) if version else facts["versions"].pop(name))
    told = rf"the pack was made by {name} {version or 'of unknown version'}; here is {name} {here}. Make it again"
    with pytest.raises(BadSource, match=told):
        load("m", str(made), safe_mode=True)
    with pytest.raises(BadSource, match=told):
        build.find_or_make("m", str(made), PackCache(made.parent / "cache", 2**30), safe_mode=True)
    with pytest.raises(SettingsError, match=told):
        startup.check_models(Settings(model_path=(ModelPath("m", str(made)),)))


class Noise(layers.Layer):
    """Other numbers at each call."""

    def call(self, x: Any) -> Any:
        return x + tf.random.uniform(tf.shape(x))


def test_random_model(tmp_path: Path) -> None:
    """Is packed, and said to be random; a pack with other numbers than a model that is not is refused."""
    model = keras.Sequential([layers.Input((2,)), Noise()])
    assert "its outputs are random: they differ from call to call" in write_compared(
        KerasRunner("m", model), str(tmp_path)
    )


def test_pack_with_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([layers.Input((2,)), layers.Dense(1, kernel_initializer="ones", bias_initializer="ones")])
    original = write._write_weight

    def write_other(file: Any, captured: Any) -> Any:
        return original(file, (captured[0] + 1, captured[1]))

    monkeypatch.setattr(write, "_write_weight", write_other)
    with pytest.raises(CannotPack, match="its pack gives other numbers than the model itself"):
        write_compared(KerasRunner("m", model), str(tmp_path))
