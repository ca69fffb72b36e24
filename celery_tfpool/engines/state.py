"""Operations that change something: a variable, a table, a queue, the state of random numbers.

A graph without any of them gives the same whenever it is called, and whatever of it is computed.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Their names, and how names of others begin.
_WRITING = {
    *("ResourceStridedSliceAssign", "LookupTableRemoveV2", "RngSkip", "RngReadAndSkip", "CountUpTo"),
    *("ResourceCountUpTo", "ScatterAdd", "ScatterSub", "ScatterMul", "ScatterDiv", "ScatterMin", "ScatterMax"),
    *("ScatterUpdate", "ScatterNdAdd", "ScatterNdSub", "ScatterNdUpdate", "ScatterNdMax", "ScatterNdMin"),
    *("StatefulStandardNormal", "StatefulStandardNormalV2", "StatefulUniform", "StatefulUniformFullInt"),
    *("StatefulUniformInt", "StatefulTruncatedNormal", "StatefulRandomBinomial"),
}
_WRITING_BEGIN = (
    *("Assign", "ResourceScatter", "ResourceApply", "ResourceSparseApply", "LookupTableInsert", "LookupTableImport"),
    *("QueueEnqueue", "QueueDequeue", "StackPush", "StackPop", "Stage", "Unstage", "MapStage", "OrderedMap"),
    *("MutableHashTable", "MutableDenseHashTable", "Barrier", "Iterator", "TensorForest", "Apply", "SparseApply"),
)


def keeps_state(operations: Iterable[str]) -> bool:
    """Whether any of ``operations`` does."""
    return any(map(_writes, operations))


def _writes(operation: str) -> bool:
    return operation in _WRITING or operation.startswith(_WRITING_BEGIN)
