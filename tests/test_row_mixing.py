"""Which graphs keep rows apart: by operations, by what the rules do not know, and by chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from keras import layers

from celery_tfpool.engines.row_mixing import mixes_rows
from celery_tfpool.runners.protocol import graph_def_of

Function = Callable[[Any], Any]


def graph_of(function: Function, shape: tuple[int | None, ...] = (3,), dtype: str = "float32") -> Any:
    concrete = tf.function(function).get_concrete_function(tf.TensorSpec([None, *shape], dtype))
    return graph_def_of(concrete)()


def limited(found: Any, x: Any) -> Any:
    """``x``, unless what was found is beyond what any trial has."""
    return tf.where(found > 1e6, x * 0, x)


def scanned(x: Any) -> Any:
    """Each row and those before it, in a loop over rows."""
    return tf.scan(lambda total, row: total + row, x)


def rounded(x: Any) -> Any:
    """Half of a size, rounded down and doubled, is not the size; and so many places of each row are not the row."""
    half = tf.cast(tf.shape(x)[1], "float32") * 0.5
    places = tf.shape(x)[0] * tf.cast(half, "int32") * 2
    flat = tf.reshape(x, [tf.shape(x)[0] * tf.cast(half * 2.0, "int32")])
    return flat[:places]


def nothing() -> Any:
    return tf.constant([], tf.int32)


def switched(condition: Any) -> Any:
    """0 or 1, by constants that only wait for what decides."""
    no, yes = tf.raw_ops.Switch(data=condition, pred=condition)
    with tf.control_dependencies([no]):
        one = tf.constant(1.0)
    with tf.control_dependencies([yes]):
        zero = tf.constant(0.0)
    return tf.raw_ops.Merge(inputs=[one, zero])[0]


def rounds_of_a_loop(x: Any) -> Any:
    """The size that is unknown in a round of a loop is another one in the next."""
    made = tf.TensorArray("float32", 2, infer_shape=False)
    body = lambda n, made: (n + 1, made.write(n, tf.reshape(x[:, n:], [-1])))  # noqa: E731
    _, made = tf.while_loop(lambda n, _: n < 2, body, (0, made))
    first, second = made.read(0), made.read(1)
    return first[: tf.shape(second)[0]]


def listed(x: Any) -> Any:
    """Of a list of which nothing is set, a tensor of as many zeros as there are rows."""
    made = tf.raw_ops.TensorListReserve(element_shape=tf.shape(x), num_elements=1, element_dtype=tf.float32)
    return tf.raw_ops.TensorListGetItem(input_handle=made, index=0, element_shape=tf.shape(x), element_dtype=tf.float32)


@tf.function
def flattened(x: Any) -> Any:
    return tf.reshape(tf.identity(x, name="inner"), [-1])


def named_like_a_call(x: Any) -> Any:
    """Two sizes that nobody knows, of tensors in and beside a function, with names that would be one."""
    with tf.name_scope("foo"):
        first = flattened(x)
    with tf.name_scope("foo/PartitionedCall/"):
        second = tf.reshape(tf.identity(x[:, 1:], name="inner"), [-1])
    return first[: tf.shape(second)[0]]


#: Shape of a row → what of such rows looks at several, most of them only above a limit or below rounding.
MIXING: dict[tuple[int | None, ...], dict[str, Function]] = {
    (3,): {
        "largest of a column": lambda x: limited(tf.reduce_max(x, 0), x),
        "largest of a row, transposed": lambda x: limited(tf.reduce_max(tf.transpose(x), 1), x),
        "product with its transpose": lambda x: x + 1e-9 * tf.matmul(tf.matmul(x, x, transpose_b=True), x),
        "product of transposes": lambda x: x * tf.linalg.diag_part(tf.matmul(x, x, transpose_a=True)),
        "einsum over rows": lambda x: limited(tf.einsum("ij->j", x), x),
        "einsum of all pairs": lambda x: x + 1e-9 * tf.einsum("ij,kj->i", x, x)[:, None],
        "softmax of columns": lambda x: tf.transpose(tf.nn.softmax(tf.transpose(x))),
        "pooled, rows as places": lambda x: tf.nn.max_pool1d(x[None], 2, 1, "SAME")[0],
        "convolved, rows as places": lambda x: tf.nn.conv1d(x[None], tf.ones([2, 3, 3]), 1, "SAME")[0],
        "scattered": lambda x: tf.scatter_nd(tf.cast(x[:, :1], "int64") * 0, x, tf.shape(x, "int64")),
        "updated": lambda x: tf.tensor_scatter_nd_update(x, [[0]], [[1.0, 2.0, 3.0]]),
        "rolled": lambda x: tf.where(x > 1e6, tf.roll(x, 1, 0), x),
        "first row": lambda x: tf.where(x > 1e6, x[:1], x),
        "first row, by number": lambda x: tf.where(x > 1e6, x[0], x),
        "last row": lambda x: tf.where(x > 1e6, x[-1], x),
        "all but the first": lambda x: tf.pad(x[1:], [[0, 1], [0, 0]]),
        "rows backwards": lambda x: tf.where(x > 1e6, x[::-1], x),
        "rows reversed": lambda x: tf.where(x > 1e6, tf.reverse(x, [0]), x),
        "gathered rows": lambda x: tf.gather(x, tf.argsort(x[:, 0])),
        "gathered by numbers in the row": lambda x: tf.where(x > 1e6, tf.gather(x, tf.cast(x[:, 0], "int32") * 0), x),
        "scanned": lambda x: tf.where(x > 1e6, scanned(x), x),
        "cumulated": lambda x: tf.where(x > 1e6, tf.cumsum(x), x),
        "sorted": lambda x: tf.where(x > 1e6, tf.sort(x, axis=0), x),
        "how many rows there are": lambda x: x * tf.cast(tf.where(tf.shape(x)[0] > 1000, 0, 1), x.dtype),
        "a branch by how many there are": lambda x: tf.cond(tf.shape(x)[0] > 1000, lambda: x * 0, lambda: x),
        "as many rounds as rows": lambda x: tf.while_loop(
            lambda i, _: i < tf.shape(x)[0], lambda i, y: (i + 1, y + 1e-9), (0, x)
        )[1],
        "numbered": lambda x: x + 1e-9 * tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None],
        "numbered by a sum": lambda x: x + 1e-9 * tf.cumsum(tf.ones_like(x)),
        "columns as rows": lambda x: tf.reshape(tf.transpose(x), tf.shape(x)),
        "two rows in one": lambda x: tf.reshape(tf.reshape(x, [-1, 6]), [-1, 3]),
        "rows and columns by size": lambda x: tf.reshape(tf.reshape(x, [3, -1]) * 2, [-1, 3]),
        "reduced over a reshaped axis": lambda x: limited(tf.reduce_max(tf.reshape(x, [1, -1, 3]), 1), x),
        "all pairs": lambda x: limited(tf.reduce_max(x[:, None] - x[None], [1, 2])[:, None], x),
        "transposed rows beside rows": lambda x: x[:, :1] + 1e-9 * tf.transpose(x[:, :1]),
        "unique": lambda x: tf.gather(*tf.unique(x[:, 0])),
        "where": lambda x: limited(tf.cast(tf.size(tf.where(x > 1e6)), x.dtype) * 1e7, x),
        "segments": lambda x: tf.math.unsorted_segment_sum(x, tf.zeros(tf.shape(x)[0], "int32"), 1) + x,
        "norm of all": lambda x: tf.clip_by_norm(x, 1e6),
        "norm of columns": lambda x: tf.where(x > 1e6, tf.math.l2_normalize(x, 0), x),
        "moments of the batch": lambda x: limited(tf.nn.moments(x, [0])[1], x),
        "in training": lambda x: (
            tf.compat.v1.nn.fused_batch_norm(x[:, None, None], [1e-9] * 3, [0.0] * 3)[0][:, 0, 0] + x
        ),
        "rows into weights": lambda x: (
            x + 1e-9 * tf.nn.conv2d(x[:, None, None], tf.transpose(x)[None, None], 1, "SAME")[:, 0, 0, :1]
        ),
        "space from batch": lambda x: tf.reshape(tf.batch_to_space(x[:, None, None], [1, 1], [[0, 0]] * 2), [-1, 3]),
        "a branch by a row": lambda x: tf.cond(x[0, 0] > 1e6, lambda: x * 0, lambda: x),
        "a loop by rows": lambda x: tf.while_loop(lambda y: tf.reduce_max(y) > 1e6, lambda y: (y / 2,), (x,))[0],
        "a list of rows": lambda x: tf.map_fn(lambda row: row * 2, x),
        "rows by Python's loop": lambda x: tf.stack([x[n % 2] for n in range(3)]) + x[:3],
        "vectorized": lambda x: tf.vectorized_map(lambda row: row / tf.reduce_max(row), x) + x[0],
        "padded, by numbers side by side": lambda x: tf.pad(x, tf.stack([tf.constant([0, 0]), tf.constant([4, 0])], 1)),
        "tiled": lambda x: tf.tile(x, [2, 1])[: tf.shape(x)[0]],
        "tiled, two for each row": lambda x: (
            x + tf.tile(tf.constant([[0.0, 0, 0], [1, 1, 1]]), [tf.shape(x)[0], 1])[: tf.shape(x)[0]]
        ),
        "numbers in a shape of rows": lambda x: (
            x * tf.cast(tf.reshape([1, 2, 3, 4, 5, 6], tf.stack([tf.shape(x)[0], -1]))[0, -1], x.dtype)
        ),
        "the shape that rows leave": lambda x: (
            x * tf.cast(tf.shape(tf.reshape([1, 2, 3, 4, 5, 6], tf.stack([tf.shape(x)[0], -1])))[1], x.dtype)
        ),
        "as many of nothing as rows": lambda x: (
            x * tf.cast(tf.shape(tf.zeros_like(tf.reshape(nothing(), tf.stack([tf.shape(x)[0], 0]))))[0], x.dtype)
        ),
        "an axis that depends on how many there are": lambda x: (
            x * tf.cast(tf.shape(tf.expand_dims(tf.constant([7, 8]), tf.minimum(tf.shape(x)[0] - 1, 1)))[0], x.dtype)
        ),
        "an axis beyond 32 bits": lambda x: tf.cumsum(x, tf.cast(tf.constant(2**32, tf.int64), tf.int32)),
        "an axis that is a product": lambda x: tf.cumsum(x, tf.constant(65536) * tf.constant(65536)),
        "an axis in 8 bits": lambda x: tf.cumsum(
            x, tf.cast(tf.constant(200, tf.uint8) + tf.constant(56, tf.uint8), tf.int32)
        ),
        "an axis by broadcast shapes": lambda x: tf.transpose(
            tf.raw_ops.ReverseV2(tensor=tf.transpose(x), axis=tf.raw_ops.BroadcastArgs(s0=[1, 1], s1=[0])[:1])
        ),
        "a branch of TensorFlow 1": lambda x: x * switched(tf.reduce_max(x) > 1e6),
        "what a loop left in a list": rounds_of_a_loop,
        "a list of as many as rows": lambda x: (
            x
            * tf.cast(
                tf.shape(tf.TensorArray("float32", 1, element_shape=None).unstack(tf.ones([1, 1])).read(0))[0], x.dtype
            )
            * tf.cast(tf.shape(listed(x))[0], x.dtype)
        ),
        "a name like that of a call": named_like_a_call,
        "tiled into rows": lambda x: tf.reshape(tf.tile(x, [1, 2]), [2, -1, 3])[0],
        "concatenated rows": lambda x: tf.concat([x[:0] + 1, x], 0),
        "split rows": lambda x: x + 1e-9 * tf.reduce_sum(tf.split(x, 1, 0)[0], 0),
        "unstacked columns": lambda x: tf.stack(tf.unstack(tf.transpose(x), axis=0), 0),
    },
    (None,): {
        "rows to the back": lambda x: tf.transpose(tf.reshape(tf.transpose(x), tf.shape(x))),
        "rows and places swapped": lambda x: tf.reshape(x, [tf.shape(x)[1], tf.shape(x)[0]]),
        "largest along the first of unknown": lambda x: limited(tf.reduce_max(x, axis=-2), x),
        "two sizes rounded down": rounded,
        "flat": lambda x: limited(tf.reduce_max(tf.reshape(x, [-1])), x),
    },
    (2, 4): {
        "attention between rows": lambda x: tf.transpose(
            layers.Attention()([tf.transpose(x, [1, 0, 2])] * 2), [1, 0, 2]
        ),
        "normalised over rows": lambda x: limited(tf.nn.moments(x, [0, 1])[0], x),
        "rows as channels": lambda x: tf.transpose(tf.nn.softmax(tf.transpose(x, [1, 2, 0])), [2, 0, 1]),
        "rows in another order of axes": lambda x: tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, 2, 4]),
        "merged with time, then divided by time": lambda x: (
            tf.reshape(tf.reduce_max(tf.reshape(tf.transpose(x, [1, 0, 2]), [2, -1]), 1), [2])[None, :, None] + x
        ),
        "a recurrence over rows": lambda x: tf.transpose(
            tf.scan(lambda total, row: total + row, x) * 1e-9 + x, [0, 1, 2]
        ),
    },
}


@pytest.mark.parametrize(("shape", "name"), [(shape, name) for shape, named in MIXING.items() for name in named])
def test_mixing(shape: tuple[int | None, ...], name: str) -> None:
    assert mixes_rows(graph_of(MIXING[shape][name], shape))


dense = layers.Dense(4)
dense.build((None, None, 1))


def layers_up(x: Any) -> Any:
    count, height, width, _ = tf.unstack(tf.shape(x))
    sizes = tf.stack([count, 2 * height + 1, 2 * width + 1, 3])
    return tf.nn.conv2d_transpose(x, tf.ones([3, 3, 3, 2]), sizes, 2, "VALID")


#: What real models are made of.
APART: dict[tuple[int | None, ...], dict[str, Function]] = {
    (3,): {
        "a function in a function": tf.function(lambda x: tf.function(tf.nn.softmax)(x) + x),
        "largest of the row": lambda x: x / tf.reduce_max(tf.abs(x), -1, keepdims=True),
        "sorted": lambda x: tf.sort(x, axis=-1),
        "twice transposed": lambda x: tf.transpose(tf.transpose(x) * 2),
        "einsum": lambda x: tf.einsum("ij,jk->ik", x, tf.ones([3, 4])),
        "one-hot": lambda x: tf.one_hot(tf.argmax(x, -1), 3),
        "from a table": lambda x: tf.gather(tf.ones([4, 2]), tf.cast(x, "int32") * 0),
        "beside a constant for each row": lambda x: tf.concat([x, tf.fill([tf.shape(x)[0], 1], 7.0)], -1),
        "beside a constant that is broadcast": lambda x: tf.concat([x, tf.tile([[7.0]], [tf.shape(x)[0], 1])], -1),
        "beside a constant that is repeated": lambda x: tf.concat(
            [x, tf.repeat(tf.ones([1, 1]), tf.shape(x)[0], 0)], -1
        ),
        "one of several branches": lambda x: tf.switch_case(tf.constant(1), [lambda: x, lambda: x * 2, lambda: x * 3]),
        "a branch of its own constant": lambda x: tf.cond(tf.constant(1) > 0, lambda: x * 2, lambda: x),
        "images of the row": lambda x: tf.reshape(
            tf.nn.conv2d(tf.reshape(x, [-1, 3, 1, 1]), tf.ones([2, 1, 1, 4]), 1, "SAME"), [-1, 12]
        ),
        "unstacked": lambda x: tf.stack(tf.unstack(x, axis=1), 1),
        "distances from known points": lambda x: tf.reduce_sum((x[:, None] - tf.ones([5, 3])) ** 2, -1),
    },
    (None,): {
        "masked": lambda x: tf.where(x > 0, x, tf.zeros_like(x)) / tf.reduce_sum(x, -1, keepdims=True),
        "dense of each": dense,
    },
    (None, None, 2): {
        "a transposed convolution": layers_up,
        "central part": lambda x: tf.image.central_crop(x, 0.5)[:, ::2],
        "padded to a multiple": lambda x: tf.pad(x, [[0, 0], [0, -tf.shape(x)[1] % 8], [0, 0], [0, 0]])[:, :4],
        "two sizes multiplied": lambda x: tf.reshape(x, tf.stack([tf.shape(x)[0], tf.shape(x)[1] * tf.shape(x)[2], 2])),
    },
    (5, 4): {
        "pairs of places": lambda x: tf.matmul(x, x, transpose_b=True),
        "places first": lambda x: tf.transpose(tf.transpose(x, [1, 0, 2]) * tf.ones([5, 1, 4]), [1, 0, 2]),
        "backwards in time": lambda x: tf.reverse(x, [1])[:, ::-1][:, :3],
        "the last place": lambda x: x[:, -1, ...],
        "padded in time": lambda x: tf.pad(x, [[0, 0], [1, 0], [0, 0]])[:, :-1],
        "a dilated convolution": lambda x: tf.nn.conv1d(x, tf.ones([2, 4, 3]), 1, "SAME", dilations=2),
        "a Fourier transform": lambda x: tf.abs(tf.signal.rfft(x)),
        "inverse": lambda x: tf.linalg.inv(tf.matmul(x, x, transpose_a=True) + tf.eye(4)),
        "pieces of all rows": lambda x: tf.reshape(tf.reshape(x, [-1, 4]) @ tf.ones([4, 2]), [-1, 5, 2]),
    },
}


@pytest.mark.parametrize(("shape", "name"), [(shape, name) for shape, named in APART.items() for name in named])
def test_apart(shape: tuple[int | None, ...], name: str) -> None:
    assert "" == mixes_rows(graph_of(APART[shape][name], shape))


# -- by chance ----------------------------------------------------------------------


def looped(x: Any, axis: int) -> Any:
    """A running sum along an axis, by a loop with a list of tensors, as a recurrent layer has one."""
    order = [axis, *[n for n in range(len(x.shape)) if n != axis]]
    moved = tf.transpose(x, order)
    count = tf.shape(moved)[0]
    made = tf.TensorArray(x.dtype, count, element_shape=moved.shape[1:])

    def step(n: Any, total: Any, made: Any) -> Any:
        total = total + moved[n]
        return n + 1, total, made.write(n, total)

    _, _, made = tf.while_loop(lambda n, *_: n < count, step, (0, tf.zeros_like(moved[0]), made))
    return tf.transpose(made.stack(), [order.index(n) for n in range(len(order))])


def are_sequences(x: Any) -> bool:
    """Whether a convolution takes it; with other shapes TensorFlow's kernel ends the process."""
    return len(x.shape) == 3 and x.shape[2] == 3 and 0 not in x.shape


def steps_of(shape: tuple[int, ...]) -> list[Function]:
    """What may be done with a tensor of this rank, most of it with any axis."""
    rank = len(shape)
    steps: list[Function] = [
        tf.nn.softmax,
        tf.tanh,
        tf.function(lambda x: tf.function(tf.sort)(x) * 2),
        lambda x: x + tf.ones([3]),
        lambda x: x * 2 + tf.reverse(x, [rank - 1]),
        lambda x: x + tf.reshape(tf.cast(tf.range(tf.shape(x)[0]), x.dtype), [-1, *[1] * (rank - 1)]),
        lambda x: x + tf.cast(tf.shape(x)[rank - 1], x.dtype),
        lambda x: tf.reshape(x, [-1, *shape[1:]]),
        lambda x: tf.reshape(x, [tf.shape(x)[0], -1]),
        lambda x: tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0)),
        lambda x: tf.reshape(x, tf.stack([tf.shape(x)[0] * 2, -1])),
        lambda x: tf.reshape(x, tf.stack([tf.size(x) // 3, 3])),
        lambda x: tf.reshape(x, tf.stack([1, *tf.unstack(tf.shape(x))])),
        lambda x: tf.reshape(x, tf.reverse(tf.shape(x), [0])),
        lambda x: tf.reshape(x, [-1, 6]),
        lambda x: tf.reshape(x, [2, -1, 3]),
        lambda x: tf.reshape(x, [-1, 2, 3]),
        lambda x: tf.reshape(x, [1, -1, 3]),
        lambda x: tf.matmul(x, x, transpose_b=True),
        lambda x: tf.matmul(x, x, transpose_a=True),
        lambda x: tf.matmul(x, tf.ones([x.shape[-1], 3])) if x.shape[-1] else x,
        lambda x: tf.einsum("ab,cb->ac", x, x),
        lambda x: tf.einsum("abc,acd->abd", x, tf.transpose(x, [0, 2, 1])),
        lambda x: tf.einsum("abc,bac->abc", x, x),
        lambda x: tf.einsum("abc,dc->bad", x, tf.ones([2, 3])),
        lambda x: tf.nn.conv1d(x, tf.ones([2, 3, 3]), 1, "SAME") if are_sequences(x) else x,
        lambda x: tf.nn.max_pool1d(x, 2, 1, "SAME") if are_sequences(x) else x,
        lambda x: tf.gather(x, tf.cast(x[..., 0] > 0, "int32"), axis=-1, batch_dims=rank - 1),
        lambda x: tf.gather(tf.ones([2, 3]) * [1.0, 2.0, 3.0], tf.cast(x > 0, "int32")),
        lambda x: tf.one_hot(tf.argmax(x, -1), 3),
        lambda x: tf.math.top_k(x, 1)[0],
        lambda x: tf.cond(tf.shape(x)[0] > 2, lambda: x * 2, lambda: x),
        lambda x: tf.cond(tf.shape(x)[-1] > 2, lambda: x * 2, lambda: x),
        lambda x: tf.concat([x, tf.fill(tf.shape(x), 7.0)], -1),
        lambda x: tf.broadcast_to(x[..., :1], tf.shape(x)) + tf.broadcast_to([5.0], tf.shape(x)),
        lambda x: tf.where(x > 0, x, tf.reduce_min(x, -1, keepdims=True)),
        lambda x: tf.reverse_sequence(x, tf.ones(tf.shape(x)[0], "int32"), 1, 0),
        lambda x: x[None, ..., ::-1][0],
        lambda x: x[tf.newaxis, :, ...][:, :, 0],
    ]
    for axis in range(rank):
        order = [axis, *[n for n in range(rank) if n != axis]]
        steps += [
            lambda x, axis=axis: tf.reduce_sum(x, axis),
            lambda x, axis=axis: x - tf.reduce_mean(x, axis, keepdims=True),
            lambda x, axis=axis: tf.cumsum(x, axis),
            lambda x, axis=axis: tf.reverse(x, [axis]),
            lambda x, axis=axis: tf.expand_dims(x, axis),
            lambda x, axis=axis: tf.squeeze(tf.expand_dims(x, axis), [axis]),
            lambda x, axis=axis: tf.concat([x, x * 3], axis),
            lambda x, axis=axis: tf.concat(tf.split(x, [1, -1], axis)[::-1], axis),
            lambda x, axis=axis: tf.stack([x, x + 1], axis),
            lambda x, axis=axis: tf.stack(tf.unstack(x, axis=axis)[::-1], axis),
            lambda x, axis=axis: tf.gather(x, [0, 0], axis=axis),
            lambda x, order=order: tf.transpose(x, order),
            lambda x, order=order: x + tf.transpose(x, order),
            lambda x, order=order: tf.transpose(tf.tanh(tf.transpose(x, order)), [order.index(n) for n in range(rank)]),
            lambda x, axis=axis: x[(slice(None),) * axis + (slice(0, 1),)],
            lambda x, axis=axis: x[(slice(None),) * axis + (slice(None, None, -1),)],
            lambda x, axis=axis: x[(slice(None),) * axis + (0,)],
            lambda x, axis=axis: tf.slice(x, [0] * rank, [1 if n == axis else -1 for n in range(rank)]),
            lambda x, axis=axis: tf.pad(x, [[1, 0] if n == axis else [0, 0] for n in range(rank)]),
            lambda x, axis=axis: tf.tile(x, [2 if n == axis else 1 for n in range(rank)]),
            lambda x, axis=axis: tf.repeat(x, 2, axis),
            lambda x, axis=axis: tf.roll(x, 1, axis),
            lambda x, axis=axis: looped(x, axis),
        ]
    return steps


def built(data: Any, length: int) -> Function:
    """A function of so many steps, each of which may follow the last."""
    steps: list[Function] = []
    value = tf.constant(np.random.default_rng(0).normal(size=(2, 2, 3)), tf.float32)
    for _ in range(length):
        step = data.draw(st.sampled_from(steps_of(tuple(value.shape))))
        try:
            value = step(value)
        except (ValueError, tf.errors.OpError):
            continue
        if 1 <= len(value.shape) <= 4 and 0 < tf.size(value) <= 1000:
            steps.append(step)
        else:
            break

    def function(x: Any) -> Any:
        for step in steps:
            x = step(x)
        return x

    return function


@given(st.data(), st.integers(1, 6))
@settings(max_examples=300, deadline=None, derandomize=True)  # a kernel that crashes shall do so at home
def test_rows_alone_and_together(data: Any, length: int) -> None:
    """Whatever is said to keep rows apart gives each the numbers that it has alone."""
    function = built(data, length)
    try:
        graph = graph_of(function, (2, 3))
        values = np.random.default_rng(1).normal(size=(3, 2, 3)).astype("float32")
        alone = [function(tf.constant(value[None])).numpy() for value in values]
        together = function(tf.constant(values)).numpy()
    except (ValueError, tf.errors.OpError):
        assume(False)
    is_apart = not mixes_rows(graph)
    event("apart" if is_apart else "mixing")
    if is_apart and all(len(one) == 1 for one in alone):
        np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-4, atol=1e-5)
