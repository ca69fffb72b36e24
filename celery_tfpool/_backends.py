"""Every private name of Keras's other back ends that is used, each with the public way that is missing.

Seen in JAX 0.4.30 to 0.12.  Of PyTorch only public names are used.  Nothing
here imports JAX before it is called.  `gone` says which names are not there any more.
"""

from __future__ import annotations

import os
import sys

from .processes import missing_names

_BRIDGE = "jax._src.xla_bridge"
#: Module → what of it is used.
NAMES = {_BRIDGE: "backends backends_are_initialized"}


def gone() -> list[str]:
    """Which names are not there any more, as ``module.name``; empty where JAX is not imported."""
    return missing_names(NAMES) if "jax" in sys.modules else []


def jax_is_initialised() -> bool:
    """Whether JAX has a client, whose threads would not survive a fork.

    Public way missing: every public question (``jax.devices``) initialises what it asks about.

    Raises:
        LookupError: JAX does not keep it where it did; says where.
    """
    if (module := sys.modules.get(_BRIDGE)) is None:
        return False
    if not hasattr(module, "backends_are_initialized"):
        raise LookupError(f"{_BRIDGE}.backends_are_initialized")
    return bool(module.backends_are_initialized())


def jax_first_calls() -> list[tuple[str, str]]:
    """Module and name of the function that is called when JAX is initialised.

    Public way missing: JAX tells nobody.
    """
    return [(_BRIDGE, "backends")]


def limit_jax_threads(count: int, *, explicit: bool) -> None:
    """Let JAX compute with so many threads on a CPU once it is initialised here.

    Public way missing: an environment variable that only XLA's source names, and before it another one.
    A number that the environment has already stays, unless ``explicit`` says that ours comes from a setting.
    """
    if explicit or not os.environ.keys() & {"PJRT_NPROC", "NPROC"}:
        os.environ["PJRT_NPROC"] = str(count)
