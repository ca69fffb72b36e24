"""Hides what only the harness needs: Keras imports it where it is installed, and each worker would start 3 s later.

On the Python path of processes that tests and benchmarks start.
"""

import sys

for name in ("matplotlib", "pandas", "sklearn"):
    sys.modules[name] = None  # type: ignore[assignment]
