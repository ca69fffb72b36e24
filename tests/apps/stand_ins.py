"""Programs that a supervisor starts instead of predictors; they need no TensorFlow."""

import json
import os
import signal
import sys
import time


def say(link, **words):
    os.write(link.fileno(), json.dumps(words).encode() + b"\n")


def ready(job, listener, link):
    """Is ready at once, and says no more."""
    say(link, ready={model.name: {} for model in job.models})
    while True:
        time.sleep(60)


def half_a_word(job, listener, link):
    """Ends in the middle of what it says, once; then it is ready."""
    flag = os.path.join(job.folder, "flag")
    if os.path.exists(flag):
        ready(job, listener, link)
    open(flag, "w").close()
    os.write(link.fileno(), b'{"rea')
    os._exit(5)


def fails(job, listener, link):
    say(link, failed="the weights are on the moon")
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
