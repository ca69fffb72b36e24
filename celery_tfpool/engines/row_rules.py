"""How operations that compute numbers treat rows: what is known to keep them apart, by TensorFlow's names.

A rule is given an operation of which an input has rows, and says where they
are in its outputs; it raises `Mixes` where a number may come from two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .graph_nodes import NodeDef
from .row_axis import Value, of_rows, require


@dataclass(frozen=True)
class Operation:
    """A node of a graph, and what is known of its inputs and of the shapes of its outputs."""

    node: NodeDef
    inputs: Sequence[Value]
    shapes: Sequence[tuple[int, ...] | None]

    def attr(self, name: str) -> Any:
        """The attribute, as TensorFlow's message."""
        return self.node.attr[name]

    def plain(self, *numbers: int) -> None:
        """These inputs, or all but the first, have nothing of the rows."""
        require(all(self.inputs[n].is_plain for n in numbers or range(1, len(self.inputs))))

    def ints(self, number: int) -> list[int]:
        """What is in an input that has to be known."""
        return self.inputs[number].ints()


Rule = Callable[[Operation], Value | list[Value]]


def _names(words: str) -> list[str]:
    return words.split()


#: Each number by itself.
_ALIKE = _names("""
    Abs Acos Acosh Angle AsString Asin Asinh Atan Atanh BesselI0e BesselI1e Bucketize Cast Ceil CheckNumerics
    ComplexAbs Conj Cos Cosh DecodeBase64 Digamma Elu EncodeBase64 EnsureShape Erf Erfc Erfinv Exp Expm1
    FakeQuantWithMinMaxArgs Floor Identity Imag Inv Invert IsFinite IsInf IsNan LeakyRelu Lgamma Log Log1p LogicalNot
    Ndtri Neg OnesLike PlaceholderWithDefault PreventGradient Real Reciprocal Relu Relu6 Rint Round Rsqrt Selu Sigmoid
    Sign Sin Sinh Snapshot Softplus Softsign Sqrt Square StaticRegexFullMatch StaticRegexReplace StopGradient
    StringLength StringLower StringStrip StringToHashBucket StringToHashBucketFast StringToHashBucketStrong
    StringToNumber StringUpper Tan Tanh ZerosLike
""")
#: Numbers at the same place.
_BROADCAST = _names("""
    Add AddN AddV2 ApproximateEqual Atan2 BitwiseAnd BitwiseOr BitwiseXor ClipByValue Complex Div DivNoNan Equal
    FakeQuantWithMinMaxVars FloorDiv FloorMod Greater GreaterEqual Igamma Igammac LeftShift Less LessEqual LogicalAnd
    LogicalOr Maximum Minimum Mod Mul MulNoNan NextAfter NotEqual Polygamma Pow RealDiv RightShift SelectV2
    SquaredDifference StringJoin Sub TruncateDiv TruncateMod Xdivy Xlog1py Xlogy Zeta
""")
_ALONG_AXES = _names("Sum Mean Prod Max Min All Any EuclideanNorm ReduceJoin ArgMax ArgMin")
_CUMULATIVE = _names("Cumsum Cumprod CumulativeLogsumexp")
#: Of images, of which the first axis is that of rows; other inputs are weights.
_OF_IMAGES = _names("""
    AvgPool AvgPool3D Conv Conv2D Conv3D DepthToSpace DepthwiseConv2dNative Dilation2D ExtractImagePatches LRN MaxPool
    MaxPool3D MaxPoolV2 ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate
    SpaceToDepth
""")
#: Each number comes from all along so many of the last axes.
_ALONG_LAST = {
    **dict.fromkeys(_names("LogSoftmax Softmax TopK TopKV2 FFT IFFT RFFT IRFFT RGBToHSV HSVToRGB MatrixDiagV3"), 1),
    **dict.fromkeys(_names("AdjustContrastv2 AdjustHue AdjustSaturation FFT3D IFFT3D"), 3),
    **dict.fromkeys(
        _names("""
        BatchMatrixBandPart Cholesky FFT2D IFFT2D MatrixBandPart MatrixDeterminant MatrixDiagPart MatrixDiagPartV3
        IRFFT2D MatrixInverse MatrixSquareRoot RFFT2D Qr SelfAdjointEigV2 Svd
        """),
        2,
    ),
}


def _alike(op: Operation) -> Value:
    """Numbers, or lists of tensors, as the input has them."""
    x = op.inputs[0]
    return Value(axis=x.axis, per=x.per, element=x.element)


def _bitcast(op: Operation) -> Value:
    """Of numbers of another size there are more, or fewer, along the last axis."""
    import tensorflow as tf

    sizes = {tf.as_dtype(op.attr(name).type).size for name in ("T", "type")}
    require(len(sizes) == 1 or op.inputs[0].from_right > 1)
    return _alike(op)


def _broadcast(op: Operation) -> Value:
    """Numbers at the same place, of arrays that are broadcast to one shape."""
    rows = [x for x in op.inputs if x.axis is not None]
    if len(op.inputs) == 1:
        return _alike(op)
    require(bool(rows))
    from_right = rows[0].from_right
    for x in op.inputs:
        require(x.from_right == from_right if x.axis is not None else x.is_plain and x.lacks(from_right))
    return of_rows(max(x.rank for x in op.inputs) - from_right, rows[0].per)


def _select(op: Operation) -> Value:
    """Of the first input one number for each row, or for each number."""
    if all(x.axis == 0 for x in op.inputs):
        return of_rows(0, op.inputs[0].per)
    require(len({x.rank for x in op.inputs}) == 1)
    return _broadcast(op)


def _matmul(op: Operation) -> Value:
    """Matrices along the last two axes, of which the inner ones are summed over."""
    a, b = op.inputs
    require(a.has_rows or a.is_plain)
    require(b.has_rows or b.is_plain)
    batched = op.node.op.startswith("Batch")
    transposed = [op.attr(name).b for name in (("adj_x", "adj_y") if batched else ("transpose_a", "transpose_b"))]
    rank = max(a.rank, b.rank)
    if a.axis is not None and b.axis is not None:
        require(a.from_right == b.from_right > 2)
        return of_rows(rank - a.from_right, a.per)
    x, other = (a, b) if a.axis is not None else (b, a)
    if x.from_right > 2:
        require(other.lacks(x.from_right))
        return of_rows(rank - x.from_right, x.per)
    outer = (1 if transposed[0] else 2) if x is a else (2 if transposed[1] else 1)
    require(x.from_right == outer)
    return of_rows(rank - (2 if x is a else 1), x.per)


def _einsum(op: Operation) -> Value:
    """One letter for each axis; that of rows has to be kept, and to be that of all that have rows."""
    left, right = op.attr("equation").s.decode().replace(" ", "").split("->")
    rows = set()
    terms = left.split(",")
    require("." not in left + right)
    for x, letters in zip(op.inputs, terms, strict=True):
        require(x.axis is not None or x.is_plain)
        if x.axis is not None:
            rows.add(letters[x.axis])
    require(len(rows) == 1)
    (letter,) = rows
    require(right.count(letter) == 1)
    for x, letters in zip(op.inputs, terms, strict=True):
        require(letters.count(letter) == (1 if x.axis is not None else 0))
    return of_rows(right.index(letter), next(x.per for x in op.inputs if x.axis is not None))


def _along_axes(op: Operation) -> Value:
    x = op.inputs[0]
    op.plain()
    axes = {x.of(axis) for axis in op.ints(1)}
    require(x.axis not in axes)
    keeps = "keep_dims" in op.node.attr and op.attr("keep_dims").b
    return of_rows(x.rows_axis - (0 if keeps else sum(axis < x.rows_axis for axis in axes)), x.per)


def _cumulative(op: Operation) -> Value:
    require(op.inputs[0].axis != op.inputs[0].of(*op.ints(1)))
    return _alike(op)


def _along_last(op: Operation) -> list[Value]:
    op.plain()
    x, several = op.inputs[0], _ALONG_LAST[op.node.op]
    require(x.from_right > several)
    return [of_rows(x.rows_axis, x.per)] * len(op.shapes)


def _solve(along: int, op: Operation) -> Value:
    """Equations of so many last axes of both."""
    require(all(x.from_right > along for x in op.inputs if x.axis is not None))
    return _broadcast(op)


def _of_images(op: Operation) -> Value:
    op.plain()
    require(op.inputs[0].axis == 0)
    return of_rows(0, op.inputs[0].per)


def _transposed_convolution(op: Operation) -> Value:
    """The inputs are sizes of the output, weights, and what is convolved."""
    op.plain(1)
    sizes = op.inputs[0]
    require(op.inputs[2].axis == 0)
    require(sizes.is_plain or not any(size.rows for size in sizes.known()[1:]))
    return of_rows(0, op.inputs[2].per)


def _batch_norm(op: Operation) -> list[Value]:
    op.plain()
    require(op.inputs[0].axis == 0 and not op.attr("is_training").b)
    return [of_rows(0, op.inputs[0].per), *[Value()] * (len(op.shapes) - 1)]


def _bias(op: Operation) -> Value:
    op.plain()
    x = op.inputs[0]
    require(x.axis != (1 if op.attr("data_format").s == b"NCHW" else x.rank - 1))
    return _alike(op)


def _cudnn_rnn(op: Operation) -> list[Value]:
    """Time, rows and features, of states layers, rows and features; or rows first, in both."""
    x, *states = op.inputs[:3]
    axis = 0 if "time_major" in op.node.attr and not op.attr("time_major").b else 1
    require(x.axis == axis and all(state.axis == axis for state in states if state.rank == 3))
    op.plain(3)
    require(all(lengths.axis == 0 for lengths in op.inputs[4:]))
    return [of_rows(axis)] * 3 + [Value(counts=True)] * (len(op.shapes) - 3)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ALIKE, _alike),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_ALONG_AXES, _along_axes),
    **dict.fromkeys(_CUMULATIVE, _cumulative),
    **dict.fromkeys(_ALONG_LAST, _along_last),
    **dict.fromkeys(_OF_IMAGES, _of_images),
    **dict.fromkeys(["Conv2DBackpropInput", "Conv3DBackpropInputV2"], _transposed_convolution),
    **dict.fromkeys(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"], _batch_norm),
    **dict.fromkeys(["MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"], _matmul),
    **dict.fromkeys(["MatrixSolve", "MatrixTriangularSolve"], partial(_solve, 2)),
    **dict.fromkeys(["CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"], _cudnn_rnn),
    "BiasAdd": _bias,
    "Bitcast": _bitcast,
    "Cross": partial(_solve, 1),
    "Einsum": _einsum,
    "Select": _select,
}
