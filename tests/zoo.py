"""Small models of many kinds, to compare our predict with that of Keras.

`ZOO` names them; each entry builds a model and makes rows for it.  Nothing
here knows what is compared, so the benchmark uses the same models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

#: This Keras, to say what older ones cannot do.
KERAS = tuple(int(part) for part in keras.__version__.split(".")[:2])

WORDS = np.array(["cats", "chase", "small", "mice", "and", "dogs", "sleep", "unheard"], dtype=object)


@dataclass(frozen=True)
class Specimen:
    """How to build a model, and how to make so many rows for it."""

    build: Callable[[], keras.Model]
    rows: Callable[[int], Any]
    #: Compared over 1,000 rows as well.
    cheap: bool = True


# -- rows ----------------------------------------------------------------------


def normal(*shape: int, dtype: str = "float32") -> Callable[[int], Any]:
    def make(rows: int) -> Any:
        return np.random.default_rng(rows).normal(size=(rows, *shape)).astype(dtype)

    return make


def integers(*shape: int, below: int, dtype: str = "int64") -> Callable[[int], Any]:
    def make(rows: int) -> Any:
        return np.random.default_rng(rows).integers(0, below, size=(rows, *shape)).astype(dtype)

    return make


def words(*, per_row: int) -> Callable[[int], Any]:
    def make(rows: int) -> Any:
        return np.random.default_rng(rows).choice(WORDS, size=(rows, per_row))

    return make


def sentences(rows: int) -> Any:
    """One sentence of 5 words for each row, as an array of shape (rows, 1)."""
    texts = [" ".join(row) for row in words(per_row=5)(rows)]
    return np.array(texts, dtype=object).reshape(rows, 1)


def growing_sentences(rows: int) -> Any:
    """Sentences of 1, 2, 3 … words, so that no two batches have the same longest."""
    texts = [" ".join(WORDS[np.arange(row + 1) % 7]) for row in range(rows)]
    return np.array(texts, dtype=object).reshape(rows, 1)


def named(**makers: Callable[[int], Any]) -> Callable[[int], dict[str, Any]]:
    return lambda rows: {name: make(rows) for name, make in makers.items()}


def listed(*makers: Callable[[int], Any]) -> Callable[[int], list[Any]]:
    return lambda rows: [make(rows) for make in makers]


# -- code that comes with a model ----------------------------------------------


@keras.saving.register_keras_serializable("tfpool_zoo")
class Scaled(layers.Layer):
    """A custom layer with a weight and an argument of its own."""

    def __init__(self, power: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.power = power

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="random_normal")

    def call(self, inputs: Any) -> Any:
        return ops.abs(inputs) ** self.power * self.scale

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable("tfpool_zoo")
class Subclassed(keras.Model):
    """A model that only its call() knows: one input."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden, self.drop, self.out = layers.Dense(8, "gelu"), layers.Dropout(0.5), layers.Dense(2)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.out(self.drop(self.hidden(inputs), training=training))


@keras.saving.register_keras_serializable("tfpool_zoo")
class SubclassedOfDict(keras.Model):
    """A model that only its call() knows: a dict of inputs, nested outputs."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.left, self.right = layers.Dense(2), layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        left, right = self.left(inputs["left"]), self.right(inputs["right"])
        return {"z": left, "a": (right, [ops.sum(left, axis=-1)])}


@keras.saving.register_keras_serializable("tfpool_zoo")
class OwnStep(keras.Model):
    """A functional model whose predict_step is the user's own."""

    def predict_step(self, data: Any) -> Any:
        logits = self(data, training=False)
        return {"class": ops.argmax(logits, axis=-1), "probability": ops.softmax(logits)}


@keras.saving.register_keras_serializable("tfpool_zoo")
class Sampling(layers.Layer):
    """Noise at inference, from a seed that moves on with every call."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, inputs: Any) -> Any:
        return inputs + keras.random.normal(ops.shape(inputs), seed=self.seeds)


# -- models --------------------------------------------------------------------


def chain(shape: tuple[int | None, ...], *parts: Any, dtype: str | None = None) -> keras.Model:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


def built(model: keras.Model, rows: Any) -> keras.Model:
    model(rows)
    return model


def mlp() -> keras.Model:
    return chain((8,), layers.Dense(64, "relu"), layers.Dense(64, "gelu"), layers.Dense(3, "softmax"))


def conv() -> keras.Model:
    return chain(
        (16, 16, 3),
        layers.Rescaling(1 / 255),
        layers.Conv2D(8, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(),
        layers.SeparableConv2D(8, 3),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4, "softmax"),
    )


def norms() -> keras.Model:
    model = chain(
        (6,),
        layers.Dense(8),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.LayerNormalization(),
        layers.GaussianNoise(0.3),
        layers.Dense(2),
    )
    model.layers[1].set_weights([np.linspace(0.5, 2, 8) * sign for sign in (1, -1, 1, 1)])
    return model


def attention() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(tokens)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(tokens, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def bag_of_words() -> keras.Model:
    text = layers.TextVectorization(output_mode="int", output_sequence_length=6, vocabulary=list(WORDS[:-1]))
    return chain((1,), text, layers.Embedding(12, 3, mask_zero=True), layers.GlobalAveragePooling1D(), dtype="string")


def lookups() -> keras.Model:
    animal, size = keras.Input((1,), dtype="string", name="animal"), keras.Input((2,), name="size")
    one_hot = layers.StringLookup(vocabulary=list(WORDS[:-1]), output_mode="one_hot")(animal)
    scaled = layers.Normalization(mean=[1.0, 2.0], variance=[4.0, 0.25])(size)
    return keras.Model({"animal": animal, "size": size}, layers.Dense(2)(layers.Concatenate()([one_hot, scaled])))


def adapted() -> keras.Model:
    normalization = layers.Normalization()
    normalization.adapt(normal(4)(200) * 3 + 5)
    return chain((4,), normalization, layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0]))


def several_listed() -> keras.Model:
    """Inputs in an order that is not alphabetical, several outputs in a list."""
    second, first = keras.Input((2,), name="second"), keras.Input((2,), name="first")
    x = layers.Concatenate()([first, layers.Rescaling(2.0)(second)])
    return keras.Model([second, first], [layers.Dense(1, name="score")(x), layers.Dense(3, name="class")(x)])


def several_named() -> keras.Model:
    inputs = {"wide": keras.Input((4,), name="wide"), "ids": keras.Input((3,), dtype="int32", name="ids")}
    x = layers.Concatenate()([inputs["wide"], layers.Flatten()(layers.Embedding(10, 2)(inputs["ids"]))])
    return keras.Model(inputs, {"z": layers.Dense(1)(x), "a": layers.Dense(2, dtype="float64")(x)})


def nested() -> keras.Model:
    a, b, c = (keras.Input((2,), name=name) for name in "abc")
    return keras.Model({"q": [b, a], "p": {"c": c}}, {"out": [a - b, (c * 3,)]})


def with_policy(policy: str) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        image = keras.Input((8, 8, 3))
        x = layers.Conv2D(4, 3, activation="relu", dtype=policy)(image)
        x = layers.Dense(8, "relu", dtype=policy)(layers.Flatten(dtype=policy)(x))
        return keras.Model(image, [layers.Dense(3, dtype=policy)(x), layers.Dense(3, dtype="float32")(x)])

    return build


def quantised() -> keras.Model:
    model = chain((8,), layers.Dense(16, "relu"), layers.Dense(16, "relu"), layers.Dense(3))
    model.quantize("int8")
    return model


def own_step() -> keras.Model:
    inputs = keras.Input((5,))
    return OwnStep(inputs, layers.Dense(4)(inputs))


def transfer() -> keras.Model:
    """A model in a model."""
    image = keras.Input((16, 16, 3))
    return keras.Model(image, layers.Dense(2)(conv()(image)))


ZOO: dict[str, Specimen] = {
    "dense": Specimen(mlp, normal(8)),
    "conv": Specimen(conv, integers(16, 16, 3, below=256, dtype="uint8"), cheap=False),
    "conv, any size": Specimen(
        lambda: chain((None, None, 1), layers.Conv2D(4, 3), layers.GlobalMaxPooling2D()), normal(9, 7, 1)
    ),
    "conv 1d, any length": Specimen(
        lambda: chain((None, 3), layers.Conv1D(4, 3, padding="same", activation="tanh")), normal(11, 3)
    ),
    "lstm": Specimen(lambda: chain((6, 4), layers.LSTM(3, return_sequences=True), layers.Flatten()), normal(6, 4)),
    "gru, any length": Specimen(lambda: chain((None, 4), layers.Bidirectional(layers.GRU(5))), normal(7, 4)),
    "simple rnn": Specimen(lambda: chain((5, 2), layers.Masking(), layers.SimpleRNN(3)), normal(5, 2)),
    "attention": Specimen(attention, integers(6, below=20, dtype="int32")),
    "embedding": Specimen(lambda: chain((5,), layers.Embedding(30, 4), layers.Flatten()), integers(5, below=30)),
    "batch norm, dropout": Specimen(norms, normal(6)),
    "Normalization": Specimen(adapted, normal(4)),
    "TextVectorization": Specimen(bag_of_words, sentences),
    "TextVectorization, ragged": Specimen(
        lambda: chain((1,), layers.TextVectorization(vocabulary=list(WORDS)), dtype="string"), growing_sentences
    ),
    "StringLookup": Specimen(lookups, named(animal=words(per_row=1), size=normal(2))),
    "several, listed": Specimen(several_listed, listed(normal(2), normal(2))),
    "several, named": Specimen(several_named, named(wide=normal(4), ids=integers(3, below=10, dtype="int32"))),
    "several, nested": Specimen(
        nested, lambda rows: {"q": [normal(2)(rows), normal(2)(rows)], "p": {"c": normal(2)(rows)}}
    ),
    "mixed_float16": Specimen(with_policy("mixed_float16"), normal(8, 8, 3), cheap=False),
    "mixed_bfloat16": Specimen(with_policy("mixed_bfloat16"), normal(8, 8, 3), cheap=False),
    "bfloat16": Specimen(with_policy("bfloat16"), normal(8, 8, 3), cheap=False),
    "float16": Specimen(with_policy("float16"), normal(8, 8, 3), cheap=False),
    "float64": Specimen(with_policy("float64"), normal(8, 8, 3), cheap=False),
    "int8": Specimen(quantised, normal(8)),
    "custom layer": Specimen(lambda: chain((3,), Scaled(1.5), layers.Dense(2)), normal(3)),
    "subclassed": Specimen(lambda: built(Subclassed(), normal(4)(2)), normal(4)),
    "subclassed, of a dict": Specimen(
        lambda: built(SubclassedOfDict(), {"left": normal(2)(2), "right": normal(3)(2)}),
        named(left=normal(2), right=normal(3)),
    ),
    "never built": Specimen(lambda: keras.Sequential([layers.Flatten()]), normal(2, 3)),
    "own predict_step": Specimen(own_step, normal(5)),
    "model in model": Specimen(transfer, integers(16, 16, 3, below=256, dtype="uint8"), cheap=False),
    "fixed number of rows": Specimen(
        lambda: keras.Sequential([keras.Input((3,), batch_size=4), layers.Dense(2)]), normal(3)
    ),
    "numbers, one a row": Specimen(lambda: chain((1,), layers.Dense(2)), normal()),
    "no dimension": Specimen(lambda: chain((), layers.Rescaling(2.0)), normal()),
    "bool out": Specimen(
        lambda: keras.Model(x := keras.Input((3,)), [ops.greater(x, 0.0), ops.cast(x * 10, "int8")]), normal(3)
    ),
}
