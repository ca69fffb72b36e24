"""Celery's ground: the pool, its bootstep, and the processes that run tasks.

Decides which settings hold, what all children are told, whether to fork, when a child is overdue, and what is seen of a
worker from outside.  Knows Celery and billiard, which no other room does; not how a model is loaded, packed or called.

    prefork          `TFPrefork`: which engine, which start method, and the predictors that go with it
    startup          the bootstep: settings, model files, packs, plan
    plan             what worker main decides for all its children
    deferral         what the app loads while worker main imports it becomes a model of the worker
    inspect          ``celery inspect tfpool`` and ``stats``, the banner
    fork_guard       fork, spawn, or refuse
    watched          follow, kill and replace children, in both engines
    bases            classes of Celery and billiard that are extended
    async_engine     the pool for brokers with an event loop
    blocking_engine  the pool for the others
    child_rules      when a child is overdue
    child_main       the program of a child
    child            its state: which models it has, what it tells worker main
    interruption     end what takes too long in the middle of a task
    deadlines        until when the task that runs may wait
"""
