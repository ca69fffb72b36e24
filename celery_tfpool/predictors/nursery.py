"""What predictors are forked from: the forkserver of `multiprocessing` imports this module, and forks after that.

So TensorFlow is imported once for all predictors and their replacements, in a
process of one thread, with no connections and nothing of the user's, that never
initialises it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import signal

from ..runners import installed
from . import server  # noqa: F401 - the program of each predictor

# It ends with worker main and the last predictor, whatever signals their group gets.
for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(_number, signal.SIG_IGN)
for _module in installed.modules():
    with contextlib.suppress(Exception):  # each predictor says what is wrong with it
        importlib.import_module(_module)
# What is there now stays for all: the collector would write to the pages of each object it looks at.
gc.collect()
gc.freeze()
