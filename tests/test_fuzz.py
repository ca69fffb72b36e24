"""Whatever bytes come over a socket: messages of ours with something wrong in them, in pieces of any size.

``TFPOOL_FUZZ_MESSAGES=1000000`` (``make fuzz``) runs it for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import struct
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import company
import numpy as np
import psutil
import pytest

from celery_tfpool.predictors import busyness
from celery_tfpool.predictors.codec import CannotDecode, decode, encode
from celery_tfpool.predictors.conversation import Conversation
from celery_tfpool.predictors.framing import BadMessage, Reader, message
from celery_tfpool.predictors.messages import AskPrediction, Outputs, Refusal, head_of
from celery_tfpool.predictors.scheduler import Scheduler
from celery_tfpool.predictors.served_model import ServedModel
from celery_tfpool.runners.keras_model import KerasRunner
from celery_tfpool.settings import Settings

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


def asking(description: Any, number: int = 1) -> dict[str, Any]:
    question = AskPrediction(number, "m", description, None, None, alone=False, again=False, deadline=1e9, limit=None)
    return question.to_json()


def valid() -> list[tuple[dict[str, Any], bytes]]:
    found = []
    for structure in STRUCTURES:
        description, body = encode(structure)
        found.append((asking(description), b"".join(map(bytes, body))))
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
    process = psutil.Process()
    before, largest = process.memory_info().rss, 0
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
        if number % 100 == 0:
            largest = max(largest, process.memory_info().rss)
    grown = largest - before
    print(f"{MESSAGES} messages: {whole} whole, {refused} refused; grown by {grown / 2**20:.0f} MB")
    assert whole > MESSAGES / 10
    assert refused > MESSAGES / 10
    assert grown < MOST


# -- a predictor that gets them --------------------------------------------------------------


class Peer(asyncio.Transport):
    """What a predictor says, and whether it has closed the connection; the other end is these tests."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.is_closed = Reader(), False
        self.heads: list[Any] = []

    def write(self, data: Any) -> None:
        left = memoryview(bytes(data))
        while left:
            buffer = self.reader.buffer()
            size = min(len(buffer), len(left))
            buffer[:size], left = left[:size], left[size:]
            self.heads += [(head_of(head), body) for head, body in self.reader.received(size)]

    def abort(self) -> None:
        self.is_closed = True


#: Each field of a question, right or not.
FIELDS: dict[str, list[Any]] = {
    "id": [1, 0, 2**63 - 1, -1, 2**63, 2**70, True, 1.0, 1e400, "1", None, [1]],
    "model": ["m", "n", "", None, 3, ["m"], {}],
    "batch_size": [None, 1, 32, 2**62, 0, -5, True, 2.5, "x", 1e400],
    "alone": [False, True, 0, None, "x"],
    "again": [False, True, 1, []],
    "deadline": [1e9, 0, 10**400, -1e400, float("nan"), None, "soon"],
    "limit": [None, "expires", 3, []],
    "is": ["predict", "stats", "hello", "outputs", "error", "counters", None, [], 3],
}
BODIES: list[Any] = [
    ({"list": [{"leaf": ["float32", [1, 1], 4]}]}, bytes(64)),
    ({"list": [{"leaf": ["float32", [40, 1], 160]}]}, bytes(192)),
    ({"list": [{"leaf": ["float32", [0, 1], 0]}]}, b""),
    ({"list": [{"leaf": ["float32", [3_000_000_000, 0], 0]}]}, b""),
    ({"list": [{"leaf": ["float32", [2**62, 0], 0]}]}, b""),
    ({"list": [{"leaf": ["float32", [], 4]}]}, bytes(64)),
    ({"list": [{"leaf": ["string", [1, 1], 9]}]}, b"\1" + bytes(63)),
    ({"list": []}, b""),
    ({"dict": [["input", {"leaf": ["float32", [1, 1], 4]}]]}, bytes(64)),
]


@contextlib.contextmanager
def scheduling(models: dict[str, Any], folder: str) -> Iterator[Scheduler]:
    settings = Settings(batch_timeout=0.0, max_enqueued_batches=1000)
    with ThreadPoolExecutor(1) as computing:
        yield Scheduler(models, settings, computing, threads=1, folder=folder, index=0)


async def ask(scheduler: Scheduler, head: dict[str, Any], body: bytes) -> tuple[Peer, weakref.ref[Conversation]]:
    """One question on a connection of its own, which is closed after the answer; and what is left of its other end."""
    peer, conversation = Peer(), Conversation(scheduler, 0, MAX_BODY)
    conversation.connection_made(peer)
    data = b"".join(message(head, [body]))
    while data and not peer.is_closed:
        buffer = conversation.get_buffer(-1)
        size = min(len(buffer), len(data))
        buffer[:size], data = data[:size], data[size:]
        conversation.buffer_updated(size)
    for _ in range(2000):
        if len(peer.heads) > 1 or peer.is_closed:
            break
        await asyncio.sleep(0.001)
    else:
        raise AssertionError(f"no answer to {head}")
    conversation.connection_lost(None)
    return peer, weakref.ref(conversation)


ONE_ROW: Any = {"list": [{"leaf": ["float32", [1, 1], 4]}]}
THREE = np.float32(3).tobytes() + bytes(60)


async def _hostile(models: dict[str, Any], folder: str, count: int, chance: random.Random) -> tuple[int, int, int]:
    """So many questions, each of its own peer; how many were answered, refused, and taken for nonsense."""
    answered = refused = closed = 0
    with scheduling(models, folder) as scheduler:
        for number in range(count):
            description, body = chance.choice(BODIES)
            head = asking(description, number)
            for field in chance.sample(list(FIELDS), chance.choice([0, 1, 1, 2])):
                head[field] = chance.choice(FIELDS[field])
            if head.get("deadline") == 0:
                head["limit"] = "expires"  # without, nobody wants an answer
            peer, _ = await ask(scheduler, head, body)
            closed += peer.is_closed
            answered += any(isinstance(said, Outputs) for said, _ in peer.heads)
            refused += any(isinstance(said, Refusal) for said, _ in peer.heads)
        peer, _ = await ask(scheduler, asking(ONE_ROW), THREE)
        (_, (_, body)) = peer.heads
        assert 6.0 == np.frombuffer(body[:4], "float32")
        facts = scheduler.facts()
        assert (0, 0) == (facts["pending_request_count"], facts["pending_row_count"])
    return answered, refused, closed


@pytest.fixture
def doubling(tmp_path: Path) -> dict[str, ServedModel]:
    busyness.make(str(tmp_path), 1)
    model = ServedModel(KerasRunner("m", company.double()), 8)
    model.warm_up()
    return {"m": model}


def test_nothing_is_left_of_a_connection(doubling: dict[str, ServedModel], tmp_path: Path) -> None:
    """Its buffers and arrays do not wait for the collector, which seldom looks."""

    async def left(head: dict[str, Any]) -> bool:
        with scheduling(doubling, str(tmp_path)) as scheduler:
            _, conversation = await ask(scheduler, head, THREE)
            await asyncio.sleep(0.1)  # what the loop had to call
            return conversation() is not None

    gc.disable()
    logging.disable()  # or pytest would keep what is logged, exceptions and all
    try:
        for head in (asking(ONE_ROW), asking(ONE_ROW) | {"deadline": 0, "limit": "expires"}, {"is": "what"}):
            assert not asyncio.run(left(head))
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


def test_predictor_under_hostile_questions(doubling: dict[str, ServedModel], tmp_path: Path) -> None:
    """Each field of a question wrong, in turn and together: an answer, a refusal or an end of the connection, and the
    next one is answered.
    """
    chance = random.Random(int(os.environ.get("TFPOOL_FUZZ_SEED", "1")))
    outcomes = asyncio.run(_hostile(doubling, str(tmp_path), MESSAGES // 10, chance))
    print("answered, refused, closed:", outcomes)
    assert min(outcomes) > MESSAGES / 200
