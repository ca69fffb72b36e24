"""Programs that a supervisor starts instead of predictors; they need no TensorFlow."""

import os
import signal
import sys
import time

from celery_tfpool.predictors.messages import Failed, ModelFacts, Ready, line_of

FACTS = ModelFacts("", None, "float32", "", frozen=False, packed=False, max_batch_size=1, parallel=1, layers=[])


def say(link, words):
    os.write(link.fileno(), line_of(words))


def ready(job, listener, link):
    """Is ready at once, and says no more."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as predictors do
    say(link, Ready({model.name: FACTS for model in job.models}))
    while True:
        time.sleep(60)


def dies_joining(job, listener, link):
    """A predictor that the kernel kills while it joins the parts of an answer."""
    from celery_tfpool.predictors import requests, server

    requests.concatenate = lambda parts: os.kill(os.getpid(), signal.SIGKILL)
    server.main(job, listener, link)


def half_a_word(job, listener, link):
    """Ends in the middle of what it says, once; then it is ready."""
    flag = os.path.join(job.folder, "flag")
    if os.path.exists(flag):
        ready(job, listener, link)
    open(flag, "w").close()
    os.write(link.fileno(), b'{"rea')
    os._exit(5)


def fails(job, listener, link):
    say(link, Failed("the weights are on the moon"))
    sys.exit(4)


def crashes(job, listener, link):
    os.kill(os.getpid(), signal.SIGSEGV)


def never_ready(job, listener, link):
    """Nor does it end when it is told to."""
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
    while True:
        time.sleep(60)


def ready_once(job, listener, link):
    """Is ready the first time only."""
    flag = os.path.join(job.folder, "flag")
    if os.path.exists(flag):
        sys.exit(6)
    open(flag, "w").close()
    ready(job, listener, link)
