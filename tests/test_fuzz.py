"""Whatever bytes come over a socket: messages of ours with something wrong in them, in pieces of any size.

``TFPOOL_FUZZ_MESSAGES=1000000`` (``make fuzz``) runs it for minutes.
"""

from __future__ import annotations

import os
import random
import resource
import struct
from typing import Any

import numpy as np

from celery_tfpool.predictors.codec import CannotDecode, decode, encode
from celery_tfpool.predictors.framing import BadMessage, Reader, message

MESSAGES = int(os.environ.get("TFPOOL_FUZZ_MESSAGES", "20000"))
MAX_BODY = 1 << 20
#: Bytes that the process may grow by, whatever comes.
MOST = 100 * 2**20

STRUCTURES: list[Any] = [
    np.zeros((1, 16), "float32"),
    [np.ones((3, 2), "int64"), np.ones((3,), "bool")],
    {"text": np.array(["a", b"bc", ""], object), "nested": (np.zeros((2, 0), "float16"), [np.zeros((), "complex64")])},
    [],
]
#: Values for any place of the JSON.
ODD = [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1e400, 0.5, "", "O", "string", "float32", [], {}, [[]], {"leaf": []}]


def valid() -> list[tuple[dict[str, Any], bytes]]:
    found = []
    for structure in STRUCTURES:
        description, body = encode(structure)
        found.append(({"do": "predict", "id": 1, "model": "m", "x": description}, b"".join(map(bytes, body))))
    return found


def with_odd_value(value: Any, chance: random.Random) -> Any:
    """Somewhere in the JSON something else."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.2:
        return chance.choice(ODD)
    copy = dict(value) if isinstance(value, dict) else list(value)
    place = chance.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    if chance.random() < 0.2:
        del copy[place]
    else:
        copy[place] = with_odd_value(copy[place], chance)
    return copy


def mutated(head: dict[str, Any], body: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(6)
    if kind == 0:
        head = with_odd_value(head, chance)
        head = head if isinstance(head, dict) else {"x": head}
    data = bytearray(b"".join(message(head, [body])))
    if kind == 1:
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 2:
        del data[chance.randrange(len(data)) :]
    elif kind == 3:
        place = chance.randrange(len(data))
        data[place:place] = chance.randbytes(chance.randint(1, 64))
    elif kind == 4:
        length = chance.choice([0, 1, 2**16, 2**20 + 1, 2**31, 2**32 - 1])
        data[4:8] = struct.pack("<I", length % 2**32)
    elif kind == 5:
        data[8:16] = struct.pack("<Q", chance.choice([0, 1, 63, 2**20, 2**20 + 1, 2**40, 2**63, 2**64 - 1]))
    return bytes(data)


def feed(reader: Reader, data: bytes, chance: random.Random) -> int:
    """How many messages it makes of ``data``."""
    count = 0
    while data:
        buffer = reader.buffer()
        size = min(len(buffer), len(data), chance.choice([1, 7, 16, 100, 1 << 16]))
        buffer[:size] = data[:size]
        data = data[size:]
        for head, body in reader.received(size):
            count += 1
            assert len(body) <= MAX_BODY
            decode(head.get("x"), body)
    return count


def test_fuzz() -> None:
    """Nothing but a refusal in one of two ways, and bounded memory."""
    seed = int(os.environ.get("TFPOOL_FUZZ_SEED", "1"))
    chance, samples = random.Random(seed), valid()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = refused = 0
    reader = Reader(MAX_BODY)
    for number in range(MESSAGES):
        data = mutated(*chance.choice(samples), chance)
        try:
            whole += feed(reader, data, chance)
            if chance.random() < 0.5:  # some go on where another has ended
                reader = Reader(MAX_BODY)
        except (BadMessage, CannotDecode):
            refused += 1
            reader = Reader(MAX_BODY)
        except BaseException as exc:
            raise AssertionError(f"message {number} of TFPOOL_FUZZ_SEED={seed}: {data!r}") from exc
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(f"{MESSAGES} messages: {whole} whole, {refused} refused; grown by {grown / 2**20:.0f} MB")
    assert whole > MESSAGES / 10
    assert refused > MESSAGES / 10
    assert grown < MOST
