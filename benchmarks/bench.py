"""Every claim of speed, memory and start-up, measured beside what users would pick instead.

    python benchmarks/bench.py SUITE [--quick] [--only stock,tfpool]

Starts real workers on a Redis of its own.  Prints a table and writes it, a
picture and JSON to ``benchmarks/results/``; with ``--quick`` to
``benchmarks/results/quick/``, which is not kept.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import programs
import report
from contestants import CONTESTANTS
from session import Session
from suites import coldstart, crowd, leak, memory, overhead, soak, throughput
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
SUITES = {
    "throughput": throughput,
    "crowd": crowd,
    "coldstart": coldstart,
    "memory": memory,
    "overhead": overhead,
    "leak": leak,
    "soak": soak,
}
#: Twenty minutes that compare nothing: run when asked for.
NOT_IN_ALL = ("soak",)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["all", *SUITES])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, models, contestants and rounds")
    parser.add_argument("--only", metavar="A,B", type=_keys, default=[], help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where results go")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and stop what was started
    output = options.output or (RESULTS / "quick" if options.quick else RESULTS)
    wrong = []
    several = [name for name in SUITES if name not in NOT_IN_ALL]
    for name in several if options.suite == "all" else [options.suite]:
        started = time.monotonic()
        with programs.redis() as url, tqdm(unit="step", dynamic_ncols=True, disable=None) as progress:
            session = Session(url, name, options.quick, options.only, progress)
            try:
                SUITES[name].run(session)
            finally:  # what was measured before something broke is kept
                seconds = time.monotonic() - started
                print(report.write(name, SUITES[name], session.rows, output, quick=options.quick, seconds=seconds))
        if name == "soak":
            wrong = soak.wrong(session.rows)
    return 1 if wrong else 0


def _keys(text: str) -> list[str]:
    keys = text.split(",")
    unknown = [key for key in keys if key not in CONTESTANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no contestant is called {', '.join(unknown)}")
    return keys


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
