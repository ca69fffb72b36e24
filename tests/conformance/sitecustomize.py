"""Substitute the pool in the workers that Celery's tests start as programs of their own.

Python imports a module of this name when it starts; `run` puts this folder on
PYTHONPATH for Celery's tests, and only for them.
"""

import substitute

substitute.aliases()
