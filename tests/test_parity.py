"""Our predict against keras.Model.predict, on the same file in the same process.

Equal means equal bit for bit, in the same structure, dtype and shape; but to
a few units in the last place for inputs of variable size, which Keras compiles
anew for each size and we once for all.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from zoo import (
    KERAS,
    ZOO,
    OwnStep,
    Sampling,
    Subclassed,
    built,
    chain,
    mlp,
    normal,
    quantised,
    several_listed,
    several_named,
)

from celery_tfpool.model_path import ModelPath
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.of_process import Models
from celery_tfpool.runners.keras_model import declared

Pair = tuple[Any, Handle]

#: Keras remarks on forms that it takes all the same, and on its own age.
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:__array__")]

#: Names of the zoo, numbers of rows, batch sizes.
CASES = [
    (name, rows, batch_size)
    for name, specimen in ZOO.items()
    for rows, batch_size in ((1, None), (33, None), (33, 7), (1_000, 256))
    if rows < 1_000 or specimen.cheap
]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A model of the zoo by its name, twice from one file: by Keras and by us."""
    folder = tmp_path_factory.mktemp("zoo")
    pairs: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in pairs:
            specimen = ZOO[name]
            path = str(folder / f"{len(pairs)}.keras")
            with keras_itself():
                specimen.build().save(path)
                theirs = keras.models.load_model(path)
            ours = handle(path)
            # Keras compiles its first number of rows as a constant, and TensorFlow may then pick another
            # kernel: Keras's own numbers differ by 1e-7 from those it gives after two other numbers of rows.
            theirs.predict(for_keras(specimen.rows(33)), verbose=0)  # that is 32 and 1
            pairs[name] = theirs, ours
        return pairs[name]

    return get


@pytest.fixture
def twice(tmp_path: Path) -> Callable[[Any], Pair]:
    """A model, saved and loaded by Keras and by us."""

    def load(model: Any) -> Pair:
        path = str(tmp_path / "model.keras")
        model.save(path)
        return keras.models.load_model(path), handle(path)

    return load


def handle(path: str) -> Handle:
    return Models([ModelPath("model", path)], safe_mode=True).get()


@contextlib.contextmanager
def keras_itself() -> Iterator[None]:
    """What an old Keras cannot do at all is skipped, with its own words; the newest can do everything here."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as exc:
        if KERAS >= (3, 13):
            raise
        pytest.skip(f"Keras {keras.__version__} cannot: {' '.join(str(exc).split())[:150]}")


def for_keras(x: Any) -> Any:
    """Keras itself takes strings as tensors only."""
    return keras.tree.map_structure(lambda v: tf.constant(v) if v.dtype == np.dtype(object) else v, x)


def assert_same(ours: Any, theirs: Any, *, rtol: float = 0) -> None:
    assert type(theirs) is type(ours)
    if isinstance(theirs, dict):
        assert set(theirs) == set(ours)
        for key in theirs:
            assert_same(ours[key], theirs[key], rtol=rtol)
    elif isinstance(theirs, (list, tuple)):
        assert len(theirs) == len(ours)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b, rtol=rtol)
    else:
        assert (theirs.dtype, tuple(theirs.shape)) == (ours.dtype, tuple(ours.shape))
        if isinstance(theirs, tf.RaggedTensor):
            assert theirs.to_list() == ours.to_list()
        elif rtol and theirs.size:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max())
        else:
            np.testing.assert_array_equal(ours, theirs)


# -- the zoo -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows", "batch_size"), CASES)
def test_same_numbers(pair: Callable[[str], Pair], name: str, rows: int, batch_size: int | None):
    """Whatever the model, the outputs are those of Keras, bit for bit."""
    theirs, ours = pair(name)
    x = ZOO[name].rows(rows)
    any_size = any(None in symbol.shape[1:] for symbol in declared(theirs, "inputs"))

    expected = theirs.predict(for_keras(x), batch_size=batch_size, verbose=0)

    # TensorFlow may pick another kernel where it knows the size: for "attention", without oneDNN.
    assert_same(ours.predict(x, batch_size=batch_size), expected, rtol=2e-6 if any_size else 0)


@pytest.mark.parametrize("name", ZOO)
def test_no_rows(pair: Callable[[str], Pair], name: str):
    """0 rows, with which Keras crashes, give 0 rows of the dtype and shape of 33 rows."""
    _, ours = pair(name)

    one, none = (keras.tree.flatten(ours.predict(ZOO[name].rows(rows))) for rows in (33, 0))

    if "ragged" in name:  # the width of a batch depends on what is in it
        assert [(np.int64, (0, 0))] == [(v.dtype, v.shape) for v in none]
    else:
        assert [(v.dtype, (0, *v.shape[1:])) for v in one] == [(v.dtype, v.shape) for v in none]


@pytest.mark.parametrize("name", ZOO)
def test_tensors(pair: Callable[[str], Pair], name: str):
    """Tf tensors give what arrays give."""
    _, ours = pair(name)
    x = ZOO[name].rows(5)

    assert_same(ours.predict(keras.tree.map_structure(tf.constant, x)), ours.predict(x))


@pytest.mark.parametrize("name", ["dense", "lstm", "conv", "StringLookup", "TextVectorization", "several, nested"])
@pytest.mark.parametrize("rows", [1, 5])
def test_lists(pair: Callable[[str], Pair], name: str, rows: int):
    """Nested Python lists, which Keras refuses, give what arrays give."""
    _, ours = pair(name)
    x = ZOO[name].rows(rows)

    assert_same(ours.predict(keras.tree.map_structure(lambda part: part.tolist(), x)), ours.predict(x))


@pytest.mark.parametrize("name", ["subclassed", "several, listed", "several, named", "subclassed, of a dict"])
def test_lists_of_several(pair: Callable[[str], Pair], name: str):
    """Lists stand for arrays for each of several inputs, and for models that declare none."""
    _, ours = pair(name)
    x = ZOO[name].rows(3)
    lists = keras.tree.map_structure(lambda part: part.astype("float64").tolist(), x)

    assert_same(ours.predict(lists), ours.predict(x))


# -- forms of one input --------------------------------------------------------

FLOATS = normal(8)(40) * 3

FORMS = {
    **{dtype: FLOATS.astype(dtype) for dtype in ("float64", "float16", "int64", "int32", "int8", "bool")},
    "uint8": np.abs(FLOATS).astype("uint8"),
    "other byte order": FLOATS.astype(">f4"),
    "Fortran order": np.asfortranarray(FLOATS),
    "every second, backwards": FLOATS[::-2],
    "masked array": np.ma.masked_array(FLOATS, FLOATS > 0),
    "array in a list": [FLOATS],
    "array in a tuple": (FLOATS,),
    "dict": {"x": FLOATS},
    "tensor of float64": tf.constant(FLOATS, "float64"),
    "tensor of bfloat16": tf.cast(FLOATS, "bfloat16"),
    "tensor in a list": [tf.constant(FLOATS)],
    "variable": tf.Variable(FLOATS),
}


@pytest.fixture(scope="session")
def one_input(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = str(tmp_path_factory.mktemp("one") / "model.keras")
    x = keras.Input((8,), name="x")
    keras.Model(x, layers.Dense(3, "tanh")(x)).save(path)
    return keras.models.load_model(path), handle(path)


@pytest.mark.parametrize("form", FORMS)
def test_forms(one_input: Pair, form: str):
    """Every form and dtype that Keras takes."""
    theirs, ours = one_input

    assert_same(ours.predict(FORMS[form]), theirs.predict(FORMS[form], verbose=0))


@pytest.mark.parametrize(
    "form",
    [
        FLOATS.tolist(),
        tuple(map(tuple, FLOATS.tolist())),
        list(FLOATS),
        [tf.constant(row) for row in FLOATS],
        {"x": FLOATS.tolist()},
    ],
    ids=["lists", "tuples", "arrays for rows", "tensors for rows", "lists in a dict"],
)
def test_forms_beyond_keras(one_input: Pair, form: Any):
    """Rows as lists, tuples, arrays or tensors in a list give what their array gives."""
    _, ours = one_input

    assert_same(ours.predict(form), ours.predict(FLOATS))
    assert_same(ours.predict(form[:1] if not isinstance(form, dict) else form["x"][:1]), ours.predict(FLOATS[:1]))


@pytest.mark.parametrize("nothing", [[], (), {"x": []}, np.array([]), np.zeros((0, 8)), tf.zeros((0, 8))])
def test_nothing(one_input: Pair, nothing: Any):
    """An empty list, which knows no shape, is 0 rows too."""
    _, ours = one_input

    assert_same(ours.predict(nothing), np.empty((0, 3), "float32"))


def test_nothing_of_strings(pair: Callable[[str], Pair]):
    """An empty list, which knows no dtype, is 0 rows of strings where strings are expected."""
    assert (0, 3) == pair("TextVectorization")[1].predict([]).shape
    assert (0, 2) == pair("StringLookup")[1].predict({"animal": [], "size": []}).shape
    assert (0, 2) == pair("subclassed")[1].predict([]).shape


@pytest.mark.parametrize("x", [normal()(5), normal(1)(5), [normal()(5)], normal()(5).tolist()])
def test_last_dimension_of_one(pair: Callable[[str], Pair], x: Any):
    """A last dimension of 1 may be missing, as in Keras."""
    _, ours = pair("numbers, one a row")

    assert_same(ours.predict(x), ours.predict(normal()(5)[:, None]))


def test_extra_last_dimension(pair: Callable[[str], Pair]):
    """A last dimension of 1 may be too many, as in Keras."""
    _, ours = pair("no dimension")

    assert_same(ours.predict(normal()(5)[:, None]), ours.predict(normal()(5)))


@pytest.mark.parametrize("batch_size", [1, 32, np.int64(7), 1_000])
def test_batch_sizes(one_input: Pair, batch_size: Any):
    """Any batch size."""
    theirs, ours = one_input

    assert_same(
        ours.predict(FLOATS, batch_size=batch_size),
        theirs.predict(FLOATS, batch_size=batch_size, verbose=0),
    )


def test_strings_of_all_kinds(pair: Callable[[str], Pair]):
    """Strings as str, bytes, NumPy strings of fixed and variable width, tensors, flat or in columns."""
    theirs, ours = pair("TextVectorization")
    texts = ["cats chase mice", "dogs", "ünheard of"]
    expected = theirs.predict(tf.constant(texts)[:, None], verbose=0)
    kinds = [texts, [text.encode() for text in texts], np.array(texts), np.array(texts, dtype=object)]
    kinds += [np.char.encode(texts, "utf-8"), tf.constant(texts)]
    if hasattr(np.dtypes, "StringDType"):
        kinds.append(np.array(texts, dtype=np.dtypes.StringDType()))

    for kind in kinds:
        assert_same(ours.predict(kind), expected)


def test_bytes_keep_their_end(twice: Callable[[Any], Pair]):
    """Bytes in a list arrive whole; an array of NumPy's own strings would lose the NULs at their end."""
    text = keras.Input((), dtype="string")
    _, ours = twice(keras.Model(text, Length()(text)))

    assert [3, 1] == ours.predict([b"a\0\0", b"b"]).tolist()


@keras.saving.register_keras_serializable("tfpool_parity")
class Length(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return tf.strings.length(inputs)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, "int32")


# -- several inputs ------------------------------------------------------------


def test_order_of_several(pair: Callable[[str], Pair]):
    """A list or tuple is taken in the model's order, which is not the alphabet's; a dict by name in any order."""
    theirs, ours = pair("several, listed")
    second, first = normal(2)(40), normal(2)(41)[:40]

    expected = theirs.predict([second, first], verbose=0)

    for x in ([second, first], (second, first), {"first": first, "second": second}, [second.tolist(), first]):
        assert_same(ours.predict(x), expected)


def test_structures_of_several(pair: Callable[[str], Pair]):
    """Lists and tuples are the same in a nested structure, as in Keras."""
    theirs, ours = pair("several, nested")
    x = ZOO["several, nested"].rows(4)
    x["q"] = tuple(x["q"])

    assert_same(ours.predict(x), theirs.predict(x, verbose=0))


def test_list_for_sorted_dict(twice: Callable[[Any], Pair]):
    """A list serves a model of a dict when the dict's names are in alphabetical order, as in Keras."""
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    theirs, ours = twice(keras.Model({"a": a, "b": b}, a - b))
    x = [normal(2)(3), normal(2)(4)[:3]]

    assert_same(ours.predict(x), theirs.predict(x, verbose=0))


def test_optional_input(twice: Callable[[Any], Pair]):
    """An optional input may be None."""
    x = normal(2)(3)
    forms = ([x, x], [x, None], {"a": x, "b": None})
    with keras_itself():
        a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b", optional=True)
        theirs, ours = twice(keras.Model([a, b], AddIfThere()(a, b)))
        expected = [theirs.predict(given, verbose=0) for given in forms]

    for given, numbers in zip(forms, expected, strict=True):
        assert_same(ours.predict(given), numbers)


@keras.saving.register_keras_serializable("tfpool_parity")
class AddIfThere(layers.Layer):
    def call(self, inputs: Any, more: Any = None) -> Any:
        return inputs if more is None else inputs + more


# -- one compiled call ---------------------------------------------------------


@keras.saving.register_keras_serializable("tfpool_parity")
class Counting(layers.Layer):
    """Counts how often Python runs its call(): once for each trace."""

    calls = 0

    def call(self, inputs: Any) -> Any:
        type(self).calls += 1
        return inputs * 2


@pytest.fixture
def traces() -> Iterator[Callable[[], int]]:
    """The number of traces since it was last asked."""

    def count() -> int:
        number, Counting.calls = Counting.calls, 0
        return number

    count()
    yield count
    count()


def test_one_trace(twice: Callable[[Any], Pair], traces: Callable[[], int]):
    """However many rows, batch sizes, dtypes and forms: one trace."""
    _, ours = twice(chain((3,), Counting()))
    ours.layers  # noqa: B018  loads
    traces()

    for rows in (1, 2, 33, 0, 50, 1_000):
        for batch_size in (None, 7):
            ours.predict(normal(3)(rows), batch_size=batch_size)
    for x in (normal(3)(2).astype("int8"), normal(3)(2).tolist(), tf.zeros((9, 3)), [], [normal(3)(4)]):
        ours.predict(x)

    assert 1 == traces()


def test_one_trace_of_any_length(twice: Callable[[Any], Pair], traces: Callable[[], int]):
    """A dimension that the model leaves open costs no trace for each size."""
    _, ours = twice(chain((None, 2), Counting(), layers.GRU(2)))
    ours.layers  # noqa: B018  loads
    traces()

    for length in range(1, 20):
        ours.predict(normal(length, 2)(1 + length % 3))

    assert 1 == traces()


def test_traces_of_undeclared_inputs(traces: Callable[[], int]):
    """A model that declares no inputs is traced again only until its sizes are known to vary."""
    ours = handle(f"{__name__}:subclassed")
    ours.layers  # noqa: B018  loads
    traces()

    for rows in (1, 2, 33):
        ours.predict(normal(5, 2)(rows))
    assert 1 == traces()

    for length in range(1, 20):
        ours.predict(normal(length, 2)(1 + length % 3))
    assert 2 >= traces()  # one to see that the second size fits, one for all sizes


class CountingModel(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.counting = Counting()

    def call(self, inputs: Any) -> Any:
        return self.counting(inputs)


def subclassed() -> Any:
    return built(CountingModel(), normal(5, 2)(1))


def test_wrong_shape_leaves_trace(traces: Callable[[], int]):
    """A call that does not fit costs later ones nothing."""
    ours = handle(f"{__name__}:never_built")
    ours.predict(normal(2)(3))
    with pytest.raises(ValueError, match="2"):
        ours.predict(normal(5)(3))
    traces()

    assert (3, 4) == ours.predict(normal(2)(3)).shape
    assert 0 == traces()


def never_built() -> Any:
    return keras.Sequential([Counting(), layers.Dense(4)])


# -- what users change ---------------------------------------------------------


def test_own_predict_step_sees_what_keras_gives(twice: Callable[[Any], Pair]):
    """A predict_step of the user's own gets data packed and typed as by Keras."""
    x, y = keras.Input((2,), name="x"), keras.Input((2,), name="y")
    theirs, ours = twice(Reporting([x, y], x + y))
    a, b = normal(2)(3), normal(2)(3).astype("int64")

    for given in ([a, b], (a, b), {"x": a, "y": b}):
        assert_same(ours.predict(given), theirs.predict(given, verbose=0))


@keras.saving.register_keras_serializable("tfpool_parity")
class Reporting(keras.Model):
    def predict_step(self, data: Any) -> Any:
        return {
            "data": tf.constant([f"{type(data).__name__} {[v.dtype.name for v in keras.tree.flatten(data)]}"]),
            "sum": self(data[0] if isinstance(data, tuple) else data),
        }


def test_own_predict():
    """A predict of the user's own is called, with arrays for lists."""
    ours = handle(f"{__name__}:own_predict")

    assert ("mine", (2, 3)) == ours.predict([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


class OwnPredict(keras.Model):
    def predict(self, x: Any, **options: Any) -> Any:
        return "mine", x.shape


def own_predict() -> Any:
    x = keras.Input((3,))
    return OwnPredict(x, layers.ReLU()(x))


def test_run_eagerly():
    """A model that runs eagerly, for debugging, does so."""
    ours = handle(f"{__name__}:of_layer_that_knows")
    x = normal(3)(40)
    ours.run_eagerly = True
    Knowing.seen.clear()

    np.testing.assert_array_equal(ours.predict(x), x)
    np.testing.assert_array_equal(ours.predict(x.tolist()), x)

    assert [True] * 4 == Knowing.seen

    ours.run_eagerly = False
    np.testing.assert_array_equal(ours.predict(x), x)

    assert [False] == Knowing.seen[4:]


class Knowing(layers.Layer):
    seen: list[bool] = []  # noqa: RUF012

    def call(self, inputs: Any) -> Any:
        self.seen.append(tf.executing_eagerly())
        return inputs


def of_layer_that_knows() -> Any:
    return chain((3,), Knowing())


def test_changed_weights(twice: Callable[[Any], Pair]):
    """Weights set through the handle are those that predict uses."""
    theirs, ours = twice(mlp())
    x = normal(8)(5)
    before = ours.predict(x)

    ours.set_weights([weight * 2 for weight in ours.get_weights()])
    theirs.set_weights([weight * 2 for weight in theirs.get_weights()])

    assert not np.array_equal(before, ours.predict(x))
    assert_same(ours.predict(x), theirs.predict(x, verbose=0))


def test_quantize_later(twice: Callable[[Any], Pair]):
    """A model that is quantised after its first predict predicts quantised."""
    theirs, ours = twice(mlp())
    x = normal(8)(5)
    before = ours.predict(x)

    for model in (theirs, ours):
        model.quantize("int8")

    assert not np.array_equal(before, ours.predict(x))
    assert_same(ours.predict(x), theirs.predict(x, verbose=0))


# -- state ---------------------------------------------------------------------


def test_state_between_calls(twice: Callable[[Any], Pair]):
    """A stateful RNN remembers from batch to batch and call to call, and forgets when told to."""
    x = keras.Input((5, 3), batch_size=4)
    theirs, ours = twice(keras.Model(x, layers.GRU(2, stateful=True)(x)))
    rows = normal(5, 3)(8)

    for _ in range(3):
        assert_same(ours.predict(rows, batch_size=4), theirs.predict(rows, batch_size=4, verbose=0))
    assert (0, 2) == ours.predict(rows[:0], batch_size=4).shape
    assert_same(ours.predict(rows, batch_size=4), theirs.predict(rows, batch_size=4, verbose=0))
    for model in (theirs, ours):
        model.layers[1].reset_state()
    assert_same(ours.predict(rows, batch_size=4), theirs.predict(rows, batch_size=4, verbose=0))


def test_random_numbers(twice: Callable[[Any], Pair]):
    """A layer that draws random numbers from a seed draws those that it draws in Keras."""
    theirs, ours = twice(chain((3,), Sampling()))
    rows = normal(3)(40)

    for _ in range(3):
        assert_same(ours.predict(rows), theirs.predict(rows, verbose=0))


# -- what goes to Keras itself -------------------------------------------------


def test_dataset(one_input: Pair, capsys: pytest.CaptureFixture[str]):
    """A dataset goes to Keras, without a progress bar."""
    theirs, ours = one_input
    dataset = tf.data.Dataset.from_tensor_slices(FLOATS).batch(16)

    assert_same(ours.predict(dataset), theirs.predict(dataset, verbose=0))
    assert "" == capsys.readouterr().out


def test_generator(one_input: Pair):
    """So does a generator."""
    theirs, ours = one_input

    def batches() -> Iterator[Any]:
        yield (FLOATS[:16],)
        yield (FLOATS[16:],)

    assert_same(ours.predict(batches()), theirs.predict(batches(), verbose=0))


def test_ragged_tensor(one_input: Pair):
    """So does a ragged tensor."""
    theirs, ours = one_input
    ragged = tf.RaggedTensor.from_tensor(FLOATS)

    assert_same(ours.predict(ragged), theirs.predict(ragged, verbose=0))


def test_pandas(one_input: Pair):
    """So does a DataFrame."""
    pandas = pytest.importorskip("pandas")
    theirs, ours = one_input
    frame = pandas.DataFrame(FLOATS)

    assert_same(ours.predict(frame), theirs.predict(frame, verbose=0))


def test_steps(one_input: Pair):
    """So does a call with steps."""
    theirs, ours = one_input

    assert_same(ours.predict(FLOATS, batch_size=8, steps=2), theirs.predict(FLOATS, batch_size=8, steps=2, verbose=0))


def test_callbacks(one_input: Pair):
    """Callbacks see each batch."""
    theirs, ours = one_input
    batches: list[int] = []

    class Note(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            batches.append(len(logs["outputs"]))

    assert_same(ours.predict(FLOATS, callbacks=[Note()]), theirs.predict(FLOATS, verbose=0))
    assert [32, 8] == batches


def test_progress_bar(one_input: Pair, capsys: pytest.CaptureFixture[str]):
    """Verbose is accepted, and draws nothing."""
    one_input[1].predict(FLOATS, verbose=1)

    assert "" == capsys.readouterr().out


# -- outputs of odd shapes -----------------------------------------------------


def test_outputs_without_rows(twice: Callable[[Any], Pair]):
    """A number for each batch comes as Keras gives it: a scalar for one batch, a vector for several."""
    theirs, ours = twice(built(Summary(), normal(2)(3)))

    for rows in (5, 40):
        x = normal(2)(rows)
        assert_same(ours.predict(x), theirs.predict(x, verbose=0))


@keras.saving.register_keras_serializable("tfpool_parity")
class Summary(keras.Model):
    def call(self, inputs: Any) -> Any:
        return {"mean": ops.mean(inputs), "rows": inputs + 1}


# -- other forms of a model ----------------------------------------------------


def one_hot_text() -> Any:
    lookup = layers.StringLookup(vocabulary=["cats", "mice"], output_mode="one_hot")
    return chain((1,), lookup, layers.Dense(2), dtype="string")


SAVED = {
    "dense": (mlp, ZOO["dense"].rows),
    "conv 1d, any length": (ZOO["conv 1d, any length"].build, ZOO["conv 1d, any length"].rows),
    "strings": (one_hot_text, lambda rows: np.array([["cats"], ["mice"], ["dogs"]] * rows, dtype=object)[:rows]),
    "bfloat16": (ZOO["bfloat16"].build, ZOO["bfloat16"].rows),
    "int8": (quantised, ZOO["int8"].rows),
    "several, listed": (several_listed, ZOO["several, listed"].rows),
    "several, named": (several_named, ZOO["several, named"].rows),
    "subclassed": (lambda: built(Subclassed(), normal(4)(2)), normal(4)),
}


def test_saved_model_of_keras_2():
    """TensorFlow itself cannot load what Keras 2 saved of a model compiled with its older Adam."""
    path = str(Path(__file__).parent / "models" / "keras2_adam")
    with pytest.raises(AttributeError, match="add_slot"):
        tf.saved_model.load(path)
    expected = np.array([[-1.0514154434204102, -0.8146740198135376, -0.05296938866376877]], np.float32)
    assert_same(handle(path).predict(np.ones((1, 4), np.float32)), expected)


def named(outputs: Any) -> Any:
    """Several outputs as a SavedModel names them."""
    if isinstance(outputs, list):
        return {f"output_{index}": value for index, value in enumerate(outputs)}
    return outputs


@pytest.mark.parametrize("name", SAVED)
def test_saved_model(tmp_path: Path, name: str):
    """A SavedModel gives the numbers of the model it was exported from; several outputs by their names.

    It is called once with all rows: only a ``batch_size`` cuts them, as Keras does without being told.
    """
    build, make = SAVED[name]
    model = build()
    path = str(tmp_path / "saved")
    with keras_itself():
        model.export(path)
    ours = handle(path)

    for rows in (1, 33):
        x = make(rows)
        assert_same(ours.predict(x), named(model.predict(for_keras(x), batch_size=rows, verbose=0)))
        assert_same(ours.predict(x, batch_size=32), named(model.predict(for_keras(x), verbose=0)))
    lists = keras.tree.map_structure(lambda part: part.tolist(), x)
    assert_same(ours.predict(lists), ours.predict(x))
    for value, none in zip(keras.tree.flatten(ours.predict(x)), keras.tree.flatten(ours.predict(make(0))), strict=True):
        assert (value.dtype, (0, *value.shape[1:])) == (none.dtype, none.shape)


def test_saved_model_keeps_order(tmp_path: Path):
    """The inputs of an exported model keep their order in a list, though a signature sorts them in its own."""
    names = ["m", "z", "a", "k"]
    inputs = [keras.Input((1,), name=name) for name in names]
    total = sum(10**power * part for power, part in enumerate(inputs))
    keras.Model(inputs, layers.Dense(1, use_bias=False, kernel_initializer="ones")(total)).export(
        str(tmp_path / "saved")
    )
    ours = handle(str(tmp_path / "saved"))
    columns = [np.full((2, 1), digit, "float32") for digit in (1, 2, 3, 4)]

    assert [[4321.0]] * 2 == ours.predict(columns).tolist()
    assert [[4321.0]] * 2 == ours.predict(dict(zip(names, columns, strict=True))).tolist()


@pytest.mark.parametrize("name", ["dense", "lstm", "several, listed", "custom layer"])
def test_h5(tmp_path: Path, name: str):
    """A legacy .h5 file."""
    path = str(tmp_path / "model.h5")
    ZOO[name].build().save(path)
    x = ZOO[name].rows(33)
    theirs = keras.models.load_model(path)

    assert_same(handle(path).predict(x), theirs.predict(x, verbose=0))


def test_function():
    """A model that a function makes; what it returns is what the handle gives access to."""
    ours = handle("zoo:own_step")
    x = normal(5)(33)

    assert isinstance(ours.get_layer(index=0), layers.InputLayer)
    assert_same(ours.predict(x), OwnStep.predict(ours.call.__self__, x, verbose=0))


# -- cost ----------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="private memory is read from Linux's /proc")
def test_memory(pair: Callable[[str], Pair]):
    """5,000 calls with changing numbers of rows take no memory for good: 400 bytes a call would fail."""
    _, ours = pair("dense")
    rows = normal(8)(64)
    for index in range(1_000):
        ours.predict(rows[: 1 + index % 64])
    before = private_memory()

    for index in range(5_000):
        ours.predict(rows[: 1 + index % 64])

    assert private_memory() - before < 2 * 2**20


def private_memory() -> int:
    """Bytes written; clean pages are libraries', and count as shared when another process has them too."""
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Private_Dirty"))


def test_overhead(pair: Callable[[str], Pair]):
    """One row takes a small part of Keras's time; benchmarks/parity.py measures which (50 and more)."""
    theirs, ours = pair("dense")
    row = normal(8)(1)

    def median(predict: Callable[..., Any], times: int) -> float:
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            predict(row, verbose=0)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    assert median(ours.predict, 100) * 10 < median(theirs.predict, 20)
