"""ONNX Runtime as an engine: what it converts, the numbers, one copy of the weights, and nothing of TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import quiet
from keras import layers, ops
from test_parity import for_keras, keras_itself
from zoo import ZOO, Sampling, Specimen, chain, integers, mlp, normal

from celery_tfpool.engines import compared, large_weights, processor, to_onnx
from celery_tfpool.engines.onnxruntime import ENGINE
from celery_tfpool.engines.protocol import DESCRIPTION, CannotConvert, CannotOpen, Description, Flat, Opened
from celery_tfpool.packs import attach, write
from celery_tfpool.runners import subclassed
from celery_tfpool.runners.keras_model import KerasRunner

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__"),
    pytest.mark.filterwarnings("ignore:Setting the dtype"),  # TensorFlow does, and NumPy 2.5 minds
    pytest.mark.skipif(bool(ENGINE.cannot_convert_here()), reason=ENGINE.cannot_convert_here()),
]


# -- models beside the zoo -----------------------------------------------------


def with_statistics(model: keras.Model) -> keras.Model:
    """As after training: batch normalisation that does something."""
    random = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def transformer() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(50, 16, mask_zero=True)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(16)(layers.Dense(32, keras.activations.gelu)(x)))
    return keras.Model(tokens, layers.Dense(5, "softmax")(layers.GlobalAveragePooling1D()(x)))


def unet() -> keras.Model:
    image = keras.Input((None, None, 3))
    wide = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    deep = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.MaxPooling2D()(wide))
    x = layers.Concatenate()([layers.Conv2DTranspose(8, 2, strides=2)(deep), wide])
    return keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid")(x))


def padded(rows: int) -> Any:
    x = normal(12, 8)(rows)
    for row in range(rows):
        x[row, 12 - row % 9 :] = 0
    return x


def odd_ends() -> keras.Model:
    """An input that nobody looks at, one that is an output, one output twice, and a constant."""
    a, b, c = (keras.Input((3,), name=name) for name in "abc")
    doubled = layers.Rescaling(2.0)(a)
    return keras.Model([c, b, a], [doubled, doubled, b, ops.zeros_like(a) + 3])


def choice() -> keras.Model:
    """By inputs that are no floats."""
    chosen, pixels = keras.Input((3,), dtype="bool", name="chosen"), keras.Input((3,), dtype="uint8", name="pixels")
    return keras.Model([chosen, pixels], [ops.where(chosen, ops.cast(pixels, "float32"), -1.0), ops.any(chosen, -1)])


NAMED = {
    "bool and uint8": Specimen(choice, lambda rows: [normal(3)(rows) > 0, integers(3, below=256, dtype="uint8")(rows)]),
    "MobileNetV2": Specimen(
        lambda: with_statistics(keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None)), normal(32, 32, 3)
    ),
    "EfficientNetB0": Specimen(
        lambda: with_statistics(keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3))),
        normal(32, 32, 3),
    ),
    "LSTM": Specimen(lambda: chain((50, 64), layers.LSTM(128), layers.Dense(1)), normal(50, 64)),
    "bidirectional masked LSTM": Specimen(
        lambda: chain((None, 8), layers.Masking(), layers.Bidirectional(layers.LSTM(16))), padded
    ),
    "transformer, exact GELU": Specimen(transformer, integers(9, below=50, dtype="int32")),
    "U-Net": Specimen(unet, normal(16, 24, 3)),
    "odd ends": Specimen(odd_ends, lambda rows: [normal(3)(rows), normal(3)(rows) + 1, normal(3)(rows)]),
    "signed zeros": Specimen(
        lambda: keras.Model(x := keras.Input((4,)), ops.argmax(ops.round(x) * 0.0, axis=-1)), normal(4)
    ),
}
SPECIMENS = ZOO | NAMED
#: This version, to say what older ones cannot do.
ONNXRUNTIME = tuple(map(int, (ENGINE.version() or "0.0").split(".")[:2]))

#: Keras takes long to compile these.
SLOW = {"MobileNetV2", "EfficientNetB0"}
#: What cannot be converted, and why.
CANNOT = {
    "TextVectorization": "is of dtype string",
    "TextVectorization, ragged": "is of dtype string",
    "StringLookup": "is of dtype string",
    **{name: f"it computes in {name.removeprefix('mixed_')}, whose" for name in SPECIMENS if "float16" in name},
    "float64": "Could not find an implementation for Conv",
}


def runner_of(model: keras.Model) -> KerasRunner:
    return (subclassed.FreeRunner if subclassed.needed_by(model) else KerasRunner)("model", model)


def traced(runner: KerasRunner, x: Any) -> tuple[Any, list[Any]]:
    """The concrete function that a runner calls with ``x``, and its flat arguments."""
    compiled, values = runner.prepare(x)
    return compiled.function, list(map(np.asarray, values))


def convert(model: keras.Model | KerasRunner, x: Any, folder: Path) -> Description:
    folder.mkdir(exist_ok=True)
    function, _ = traced(model if isinstance(model, KerasRunner) else runner_of(model), x)
    return ENGINE.convert(function, str(folder), compared.call_of(function))


def relative(ours: Any, theirs: Any) -> float:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    ours, theirs = ours.astype("float64"), theirs.astype("float64")
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


@pytest.mark.parametrize("name", SPECIMENS)
def test_same_numbers(name: str, tmp_path: Path) -> None:
    """Converts, with the numbers of Keras itself; or says why not."""
    with keras_itself():
        model = SPECIMENS[name].build()
    runner = runner_of(model)
    rows = SPECIMENS[name].rows
    if name in CANNOT:
        with pytest.raises(CannotConvert, match=CANNOT[name]):
            convert(runner, rows(3), tmp_path)
        assert [] == os.listdir(tmp_path)
        return

    counts = (4,) if "fixed" in name else (1, 3, 33)
    description = convert(runner, rows(counts[-1]), tmp_path)
    opened = ENGINE.open(str(tmp_path), threads=2)

    assert max(description.differences) <= 1e-5
    assert description == opened.description
    assert "tuned.onnx" in description.files or ONNXRUNTIME < (1, 24)
    assert ("" == opened.remark) == ("tuned.onnx" in description.files)
    for count in counts:
        function, values = traced(runner, rows(count))
        if count == counts[-1] and name not in SLOW:
            theirs = model.predict(for_keras(rows(count)), batch_size=count, verbose=0)
        else:  # the same step as Keras compiles it, but once for any number of rows
            theirs = tf.nest.map_structure(lambda output: output.numpy(), function(*map(tf.constant, values)))
        for ours, other in zip(opened(*values), tf.nest.flatten(theirs), strict=True):
            assert relative(ours, other) <= 1e-5


@pytest.mark.parametrize("name", ["conv", "transformer, exact GELU", "several, named"])
def test_of_a_pack(name: str, tmp_path: Path) -> None:
    """A pack's graph converts as that of the model does, for engines that are tried later."""
    runner = KerasRunner("model", (model := SPECIMENS[name].build()))
    for folder in ("pack", "engine"):
        (tmp_path / folder).mkdir()
    write.write(runner, str(tmp_path / "pack"))
    _, compiled, _captured = attach.attach(str(tmp_path / "pack"))
    function, _, _variables = attach.concrete(str(tmp_path / "pack"))

    ENGINE.convert(function, str(tmp_path / "engine"), compared.call_of(compiled.function))

    x = SPECIMENS[name].rows(5)
    opened = ENGINE.open(str(tmp_path / "engine"), threads=1)
    theirs = tf.nest.flatten(model.predict(x, verbose=0))
    for ours, other in zip(opened(*traced(runner, x)[1]), theirs, strict=True):
        assert relative(ours, other) <= 1e-5


def test_large_weights_stay_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that is looked up in, multiplied with, and used otherwise too, is the same in the end."""
    tokens = keras.Input((4,), dtype="int32")
    table = layers.Embedding(2048, 256)
    x = layers.Dense(1024)(layers.Flatten()(table(tokens)))
    model = keras.Model(tokens, [Tied(table)(x[:, :256]), x])

    taken: list[Any] = []
    put_back = large_weights.put_back

    def counting(onnx: Any, weights: dict[str, Any]) -> None:
        taken.extend(weights.values())
        put_back(onnx, weights)

    monkeypatch.setattr(large_weights, "put_back", counting)
    convert(model, integers(4, below=2048, dtype="int32")(2), tmp_path)
    assert [(1024, 1024)] == [array.shape for array in taken]

    rows = integers(4, below=2048, dtype="int32")(5)
    for ours, theirs in zip(ENGINE.open(str(tmp_path), 1)(rows), model.predict(rows, verbose=0), strict=True):
        assert relative(ours, theirs) <= 1e-5


class Tied(layers.Layer):
    """Scores by the weights of an embedding."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = table

    def call(self, x: Any) -> Any:
        return ops.matmul(x, ops.transpose(self.table.embeddings)) + ops.sum(self.table.embeddings)


# -- what is refused -----------------------------------------------------------


def test_random(tmp_path: Path) -> None:
    """A state that moves on with every call would stand still."""
    with pytest.raises(CannotConvert, match="it is random, keeps a state or looks things up"):
        convert(chain((3,), Sampling()), normal(3)(2), tmp_path)


def test_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that gives other numbers is not used, and says by how much; nothing is left of it."""

    def wrong(graph: Any, node: Any, name: str, *rest: Any) -> None:
        node.type = "Sigmoid"

    monkeypatch.setitem(to_onnx._HANDLERS, "Relu", wrong)
    with pytest.raises(CannotConvert, match=r"differs from TensorFlow's by \d\.\de[+-]\d+ of its largest value, more"):
        convert(chain((8,), layers.Dense(8, "relu")), normal(8)(2), tmp_path)

    assert [] == os.listdir(tmp_path)


def test_sample_of_the_users(tmp_path: Path) -> None:
    """What noise does not show, a sample of the user's may: here, the ends of what a float can be."""
    model = chain((2,), layers.Rescaling(1.0))
    function, _ = traced(runner_of(model), normal(2)(1))
    ours = compared.differences
    seen = []

    def differences(opened: Any, outputs: Any, pairs: Any) -> Any:
        seen.extend(values[0].tolist() for values, _ in pairs)
        return ours(opened, outputs, pairs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "differences", differences)
        ENGINE.convert(
            function, str(tmp_path), compared.call_of(function), samples=[[np.array([[1e38, 7.0]], "float32")]]
        )

    assert [[float(np.float32(1e38)), 7.0]] == seen[-1]


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tf2onnx" else object())

    with pytest.raises(
        CannotConvert, match=r"tf2onnx missing: pip install 'celery-tfpool\[onnxruntime,onnx-convert\]'"
    ):
        convert(mlp(), normal(8)(1), tmp_path)


Y = Flat("y", "float32", (None, 2))


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.002], [1.0, 2.0], 1e-3),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0, 0.0], [1.0, np.nan], np.inf),
        ([0.0, 1e-9], [0.0, 0.0], np.inf),
    ],
)
def test_differences(ours: list[float], theirs: list[float], difference: float) -> None:
    """Relative to the largest value; what is no number must be none in both."""
    one, other = np.array([ours], "float32"), np.array([theirs], "float32")
    assert pytest.approx([difference], rel=1e-3) == compared.differences(lambda x: [one], [Y], [([one], [other])])


def test_differences_of_integers() -> None:
    """Must be none."""
    one, other = np.array([[1, 2]]), np.array([[1, 3]])
    assert (np.inf,) == compared.differences(lambda x: [one], [Y], [([one], [other])])


def test_other_dtype() -> None:
    one = np.ones((1, 2))
    with pytest.raises(CannotConvert, match=r"'y' is float64 \(1, 2\) instead of float32 \(1, 2\)"):
        compared.differences(lambda x: [one], [Y], [([one], [one.astype("float32")])])


def test_noise_that_is_taken() -> None:
    """Numbers of a range, and sizes, that the model takes: of 20 words, and of even length."""

    def expected(x: Any) -> list[Any]:
        if x.max() >= 20 or x.shape[1] % 2:
            raise ValueError("refused")
        return [x]

    taken = [values[0].shape for values, _ in compared.noise([Flat("x", "int32", (None, None))], expected)]
    assert [(3, 32), (1, 32), (33, 32), (2, 64)] == taken


def test_no_noise_is_taken() -> None:
    def expected(x: Any) -> list[Any]:
        raise ValueError("never")

    with pytest.raises(CannotConvert, match=r"takes no noise .*ValueError: never"):
        list(compared.noise([Flat("x", "float32", (None, 2))], expected))


# -- files, processes ----------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 MB of dense weights, and a convolution."""
    folder = tmp_path_factory.mktemp("large") / "engine"
    convert(chain((2048,), *(layers.Dense(2048, "relu") for _ in range(6))), normal(2048)(1), folder)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    convert(mlp(), normal(8)(1), tmp_path / "engine")
    return tmp_path / "engine"


def program(code: str, folder: Path) -> Any:
    """What a fresh process prints, as JSON."""
    start = "import json, os, sys, numpy as np\nfrom celery_tfpool.engines.onnxruntime import ENGINE\n"
    command = [sys.executable, "-c", start + code, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=quiet(os.environ))
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


FORKS = """
from celery_tfpool import processes
import onnxruntime
def child(ready, go, answer):
    before = processes.memory_of(os.getpid())["private"]
    opened = ENGINE.open(sys.argv[1], 1)
    outputs = [opened(np.ones((rows, 2048), "float32"))[0] for rows in (1, 8, 33)]
    os.write(ready, b".")
    os.read(go, 1)
    written = processes.memory_of(os.getpid())["private"] - before
    os.write(answer, json.dumps(written).encode() + b"\\n")
    os._exit(0)
(ready, said), (wait, go), (answers, answer) = os.pipe(), os.pipe(), os.pipe()
for _ in range(4):
    if not os.fork():
        child(said, wait, answer)
for _ in range(4):
    os.read(ready, 1)
os.write(go, b"....")
for _ in range(4):
    os.wait()
print("[" + os.read(answers, 1000).decode().strip().replace("\\n", ",") + "]")
"""


def test_one_copy(large: Path) -> None:
    """Each of four forks has little of its own: they map the weights."""
    written = program(FORKS, large)

    assert 4 == len(written)
    assert max(written) < 16 * 2**20, written


def test_nothing_of_tensorflow(large: Path) -> None:
    """To open and to call needs NumPy and ONNX Runtime only, and pins no thread to a core."""
    code = """
opened = ENGINE.open(sys.argv[1], 3)
opened(np.ones((40, 2048), "float32"))
cores = lambda task: [line for line in open(f"/proc/self/task/{task}/status") if line.startswith("Cpus_allowed_list")]
tasks = os.listdir("/proc/self/task")
print(json.dumps([sorted({name.split(".")[0] for name in sys.modules}), [cores(task) for task in tasks]]))
"""
    modules, cores = program(code, large)

    assert "onnxruntime" in modules
    assert [] == [name for name in modules if name in ("tensorflow", "keras", "onnx", "tf2onnx")]
    assert len(cores) >= 3
    assert all(one == cores[0] for one in cores)


def test_fork(small: Path) -> None:
    """A fork that calls what its parent opened is told to open its own."""
    code = """
opened = ENGINE.open(sys.argv[1], 2)
if not (pid := os.fork()):
    try:
        opened(np.ones((1, 8), "float32"))
    except Exception as exc:
        print(json.dumps(str(exc)), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    assert "has to open its own" in program(code, small)


KILLED = """
import signal
import keras
from celery_tfpool.runners.keras_model import KerasRunner
from celery_tfpool.engines import compared, protocol
def die(*paths):
    os.kill(os.getpid(), signal.SIGKILL)
protocol.os.replace = die
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
function = KerasRunner("model", model).compiled().function
ENGINE.convert(function, sys.argv[1], compared.call_of(function))
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """At the last moment; the folder is none that opens, and may be written again."""
    with pytest.raises(AssertionError):
        program(KILLED, tmp_path)
    assert {"graph.onnx", "tuned.onnx"} <= set(os.listdir(tmp_path))
    with pytest.raises(CannotOpen, match=f"{DESCRIPTION} cannot be read"):
        ENGINE.open(str(tmp_path), 1)

    convert(mlp(), normal(8)(1), tmp_path)

    assert (2, 3) == ENGINE.open(str(tmp_path), 1)(normal(8)(2))[0].shape


def cut(folder: Path) -> None:
    os.truncate(folder / "tuned.data", 100)


def remove(folder: Path) -> None:
    (folder / "tuned.data").unlink()


def garbage(folder: Path) -> None:
    path = folder / "tuned.onnx"
    path.write_bytes(bytes(path.stat().st_size))


def of_another(folder: Path) -> None:
    path = folder / DESCRIPTION
    path.write_text(path.read_text().replace('"onnxruntime"', '"openvino"'))


def of_later(folder: Path) -> None:
    path = folder / DESCRIPTION
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "tuned.data has 100 bytes instead of"),
        (remove, "tuned.data has None bytes"),
        (garbage, "onnxruntime cannot read .*tuned.onnx"),
        (of_another, "is for 'openvino', not for 'onnxruntime'"),
        (of_later, "is of format 9; this version of celery_tfpool knows 1"),
    ],
)
def test_damage(small: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(small)
    with pytest.raises(CannotOpen, match=words):
        ENGINE.open(str(small), 1)


def test_on_another_processor(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tuned for one processor is not used on another: the model is, and says what that costs."""
    x = normal(8)(5)
    expected = ENGINE.open(str(small), 1)(x)[0]
    (small / "tuned.onnx").write_bytes(bytes((small / "tuned.onnx").stat().st_size))  # so nobody reads it
    monkeypatch.setattr(processor, "name", lambda: "riscv64, another")

    opened: Opened = ENGINE.open(str(small), 1)

    assert "here is onnxruntime" in opened.remark
    assert "on riscv64, another, so each process has a copy of its weights" in opened.remark
    assert relative(opened(x)[0], expected) <= 1e-6


def test_processor() -> None:
    """Its name says what it can do, whatever the order; of the first one that is listed."""
    intel = "model name\t: Xeon\nflags\t\t: {}\n\nmodel name\t: Other\n"
    arm = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"

    assert processor.of_cpuinfo(intel.format("a b"), "x86_64") == processor.of_cpuinfo(intel.format("b a"), "x86_64")
    assert processor.of_cpuinfo(intel.format("a b"), "x86_64") != processor.of_cpuinfo(intel.format("a"), "x86_64")
    assert processor.of_cpuinfo(intel.format("a"), "x86_64").startswith("x86_64, Xeon, ")
    assert processor.of_cpuinfo(arm, "aarch64").startswith("aarch64, 0x41, 0xd0c, ")
