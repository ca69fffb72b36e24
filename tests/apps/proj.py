"""The app that most tests run: its configuration comes from the test, through the environment."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_tfpool import InvalidInputError, get_model

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))


def slow_model():
    """A model that takes as long to make as TFPOOL_TEST_LOAD_SECONDS says."""
    import keras

    time.sleep(float(os.environ.get("TFPOOL_TEST_LOAD_SECONDS", "0")))
    return keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])


def stubborn_model():
    """As `slow_model`, and whatever interrupts it goes unheard, once."""
    with contextlib.suppress(Exception):
        slow_model()
    return slow_model()


def own_predict():
    """A model that predicts in its own way."""
    import keras

    class OwnPredict(keras.Sequential):
        def predict(self, x, **options):
            return super().predict(x, **options)

    return OwnPredict([keras.layers.Input((16,)), keras.layers.Dense(1, kernel_initializer="ones")])


def broken_model():
    raise RuntimeError("the weights are on the moon")


def model_of_no_graph():
    """Good enough to be loaded; TensorFlow cannot trace its step."""
    import keras

    model = slow_model()

    class Broken(keras.Sequential):
        def call(self, x, **options):
            raise ZeroDivisionError("one row of nothing")

    model.__class__ = Broken
    return model


def no_model():
    return "not a model"


class Detector:
    """What people wrap a model in."""

    def __init__(self):
        print("a detector was made", flush=True)
        self.labels = ["dog", "cat"]

    def predict(self, image, threshold=0.5, weights=()):
        if threshold is None or len(weights):
            return f"{self.labels[0]} {threshold} {len(weights)}"
        if threshold >= 1:
            raise ValueError("threshold must be below 1")
        return f"{self.labels[1]} {threshold}"


def upper():
    return str.upper


def hanging_model():
    """Stuck in native code that holds the GIL, where no Python signal handler runs: a mutex locked twice."""
    import ctypes

    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@app.task
def predict(rows=1, model=None, value=1.0):
    import numpy as np

    handle = get_model(model)
    try:
        return handle.predict(np.full((rows, 16), value)).tolist()  # the file of the tests
    except InvalidInputError:
        return handle.predict(np.full((rows, 2), value)).tolist()  # the functions above


@app.task
def predict_row(row, model=None):
    """Where it was predicted, and what."""
    return os.getpid(), get_model(model).predict([row]).tolist()


@app.task
def predict_and_meet(row, folder, count):
    """Keeps its child busy until as many others have predicted."""
    outputs = get_model().predict([row]).tolist()
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.05)
    return outputs


@app.task
def set_weights(value):
    """Changes the weights of this child's own copy."""
    import numpy as np

    handle = get_model()
    handle.set_weights([np.full_like(weight, value) for weight in handle.get_weights()])
    return predict_row([1.0] * 16)


@app.task
def train():
    """One step that changes the numbers of this child."""
    import numpy as np

    get_model().fit(np.ones((4, 16)), np.zeros((4, 1)), verbose=0)
    return predict_row([1.0] * 16)


@app.task
def predict_mapped(row, folder):
    """Whether a prediction made this process map files of ``folder``."""
    get_model().predict([row])
    with open("/proc/self/maps") as maps:
        return folder in maps.read()


@app.task
def imported(module):
    return module in sys.modules


@app.task
def predict_together(threads):
    """What several threads of one task get, and how often the model was loaded for them."""
    import numpy as np

    answers = []

    def run():
        answers.append(get_model().predict(np.ones((1, 2))).tolist())

    workers = [threading.Thread(target=run) for _ in range(threads)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    return answers


@app.task
def threads_of_tensorflow():
    import numpy as np
    import tensorflow as tf

    get_model().predict(np.ones((1, 2)))
    options = tf.config.threading
    return [options.get_intra_op_parallelism_threads(), options.get_inter_op_parallelism_threads()]


@app.task
def threads_of_torch():
    import torch

    return torch.get_num_threads()


@app.task
def threads_of_jax():
    """Of XLA, for operations."""
    names = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    return names.count("tf_XLAEigen\n")


@app.task
def predict_in_spite_of_errors():
    from celery_tfpool import ModelLoadError

    try:
        predict()
    except ModelLoadError as exc:
        return exc.args
    return None


@app.task
def pid():
    return os.getpid()


@app.task
def slot():
    import billiard

    return billiard.current_process().index


@app.task
def add(x, y):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def nap(seconds):
    """Waits in short steps, so that signals are seen; returns the process that waited."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
    return os.getpid()


@app.task
def nap_softly(seconds):
    try:
        nap(seconds)
    except SoftTimeLimitExceeded:
        return "soft limit"
    return "slept"


@app.task(bind=True, max_retries=2, default_retry_delay=0.1)
def succeed_at_last(self):
    if self.request.retries < 2:
        raise self.retry()
    return self.request.retries


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def die_once(self, marker):
    """Kills its own process the first time."""
    if not os.path.exists(marker):
        with open(marker, "w"):
            pass
        os.kill(os.getpid(), 9)
    return os.getpid()


@app.task
def eat(megabytes):
    """Touches so much private memory, and gives it back."""
    return len(bytearray(os.urandom(1024)) * (megabytes * 1024))


_kept = []


@app.task
def keep(megabytes):
    _kept.append(bytearray(os.urandom(1024)) * (megabytes * 1024))
    return os.getpid()


@app.task
def map_file(path, megabytes):
    """Reads a mapped file: shared pages, which are nobody's private memory."""
    import mmap

    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _kept.append(mapped)
    assert sum(mapped[i] for i in range(0, megabytes << 20, 4096)) == 0
    return os.getpid()


@app.task
def compute_threads():
    """How many threads the runtime has started for operations."""
    import keras
    import tensorflow as tf

    keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)]).predict(tf.ones((1, 2)), verbose=0)
    names = []
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/comm") as file:
            names.append(file.read().strip())
    return names.count("tf_Compute")


@app.task
def double(value, model=None):
    return get_model(model).predict([[float(value)]]).tolist()[0][0]


@app.task
def double_rows(values):
    return get_model().predict([[float(value)] for value in values]).ravel().tolist()


@app.task
def predict_in_a_fork():
    """What a helper says that the task forks, as billiard does."""
    import billiard

    def say(pipe):
        try:
            pipe.send(str(predict(1)))
        except Exception as exc:
            pipe.send(f"{type(exc).__name__}: {exc}")

    receiver, sender = billiard.Pipe(False)
    helper = billiard.get_context("fork").Process(target=say, args=(sender,))
    helper.start()
    said = receiver.recv() if receiver.poll(30) else "nothing"
    helper.terminate()
    helper.join()
    return said


@app.task
def change_folder(folder):
    os.chdir(folder)
    return os.getcwd()


@app.task
def has_runtime_after_predicting(model=None):
    from celery_tfpool.runners import tf_state

    predict(1, model)
    return tf_state.is_initialised()


@app.task
def count_layers():
    """Something that only Keras has."""
    return len(get_model().layers)


@app.task(acks_late=True, reject_on_worker_lost=True)
def double_whatever_dies(value):
    nap(0.1)  # so that there is always something to kill
    return double(value)


@app.task
def return_arrays():
    import tensorflow as tf

    predicted = get_model().predict([[1.0] * 16])
    number, flag = predicted.dtype.type(1.5), predicted[0, 0] > 3
    return {"predicted": predicted, "number": number, "tensor": tf.constant([1, 2]), "flag": flag}


@app.task
def echo(value):
    return {"value": value, "kinds": [type(part).__name__ for part in value.values()]}


@app.task
def detect(image, threshold=0.9):
    detector = get_model("detector")
    assert ["dog", "cat"] == detector.labels
    import numpy as np

    assert "dog None 2" == detector.predict(image, threshold=None, weights=np.ones(2))
    return [detector.predict(image), detector.predict(image, threshold=threshold)]


@app.task(name="proj.upper")
def upper_task(text):
    return get_model("upper")(text)
