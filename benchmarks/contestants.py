"""Who is compared, each with its best recipe; the recipes themselves are in ``apps/``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Contestant:
    """A way to serve Keras models to Celery tasks."""

    title: str
    app: str
    pool: str = "prefork"
    #: The environment it runs in; see `environments`.
    environment: str = "main"
    variables: dict[str, str] = field(default_factory=dict)
    #: A program beside the worker, in an environment of its own.
    server: str | None = None
    #: One copy of the model whatever the concurrency.
    one_process: bool = False
    #: Runs tasks one at a time, so its concurrency cannot be chosen.
    solo: bool = False
    task: str = "predict"
    #: The suites that it is in; none named: all.
    suites: tuple[str, ...] = ()


CONTESTANTS = {
    "stock": Contestant("prefork, model.predict", "stock"),
    # Starts as the stock recipe and is as large; 32 take minutes to start.
    "expert": Contestant("prefork, compiled call, 1 thread per child", "expert", suites=("throughput", "leak")),
    # As fast and as large as forked ones once they run, and 32 take minutes to start.
    "spawn": Contestant(
        "prefork with spawn, model.predict",
        "stock",
        variables={"BENCH_START_METHOD": "spawn"},
        suites=("throughput", "coldstart"),
    ),
    "threads": Contestant("threads, compiled call", "one_process", pool="threads", one_process=True),
    # Starts as "threads" does.
    "solo": Contestant(
        "solo, compiled call", "one_process", pool="solo", one_process=True, solo=True, suites=("throughput", "memory")
    ),
    # One thread computes, however many tasks there are; the program of "solo", which starts as soon and is as large.
    "gevent": Contestant(
        "gevent, compiled call", "one_process", pool="gevent", one_process=True, suites=("throughput",)
    ),
    "batches": Contestant(
        "celery-batches (threads), compiled call", "batches", pool="threads", environment="batches", one_process=True
    ),
    "server": Contestant("prefork, mosec beside it", "server_client", server="model_server"),
    "tfpool": Contestant("TFPrefork", "tfpool", pool="celery_tfpool:TFPrefork"),
    # Nothing of it is the pool's; as fast as TFPrefork once it has loaded.
    "deferred": Contestant(
        "TFPrefork, load_model() at the top of the module",
        "deferred",
        pool="celery_tfpool:TFPrefork",
        suites=("coldstart", "memory"),
    ),
    "predictors": Contestant(
        "TFPrefork, tf_predictors = 1",
        "tfpool",
        pool="celery_tfpool:TFPrefork",
        variables={"BENCH_PREDICTORS": "1"},
    ),
    "waiting": Contestant(
        "TFPrefork, tf_predictors = 1, tf_batch_timeout = 0.01",
        "tfpool",
        pool="celery_tfpool:TFPrefork",
        variables={"BENCH_PREDICTORS": "1", "BENCH_BATCH_TIMEOUT": "0.01"},
        suites=("throughput", "crowd"),
    ),
    # Whether a leak would be seen.
    "leaky": Contestant(
        "the same with a model that leaks",
        "leaky",
        pool="celery_tfpool:TFPrefork",
        variables={"BENCH_PREDICTORS": "1"},
        suites=("soak",),
    ),
    "unshared": Contestant(
        "TFPrefork, tf_preimport and tf_share_weights off",
        "tfpool",
        pool="celery_tfpool:TFPrefork",
        variables={"BENCH_SHARE": "no"},
        suites=("coldstart",),
    ),
    "first": Contestant(
        "TFPrefork, first start: makes the pack",
        "tfpool",
        pool="celery_tfpool:TFPrefork",
        variables={"BENCH_CACHE": "new"},
        suites=("coldstart",),
    ),
}
#: Celery's own limit: the same messages through the same pool, and nothing done with them.
NOOP = Contestant("ceiling: no-op tasks through TFPrefork", "tfpool", pool="celery_tfpool:TFPrefork", task="noop")
STOCK_NOOP = Contestant("no-op tasks through prefork", "stock", task="noop")
#: The machine's limit; see ``apps/plain_loop.py``.
PLAIN_LOOP = "ceiling: a plain loop, no Celery"
