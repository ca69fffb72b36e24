"""Make packs before the pool starts, each in a process of its own that then ends.

Worker main must not initialise TensorFlow, and loading a model does.  A
process that crashes, hangs or fails over a model costs that model its pack
and nothing else: children load it the plain way then, and whoever uses it
sees the reason.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from celery.platforms import set_pdeathsig

from .. import processes
from ..runners import installed, legacy, location
from ..runners.convert import short
from ..runners.location import Kind
from ..runners.options import NOTHING, LoadOptions
from ..runners.protocol import CannotPack
from ..runners.stored import load_stored
from . import fingerprint, manifest
from .cache import CacheUnusable, PackCache
from .compared import write_compared
from .fingerprint import Content

#: Seconds between two looks at whether the worker should stop.
_TICK = 0.1
#: How often a model is packed again because its files were written meanwhile.
_TRIES = 3


@dataclass(frozen=True)
class Packing:
    """What became of one model: the folder of its pack, or why it has none."""

    name: str
    folder: str | None = None
    reason: str = ""
    #: Something is wrong, as opposed to a kind of model that has no pack.
    is_problem: bool = False
    seconds: float = 0.0
    #: The size of the pack, which may be removed from the cache later.
    bytes: int = 0
    #: Of the files that were packed, or looked at; None of a function.
    content: Content | None = None
    #: What is to be said of a pack that was made.
    remark: str = ""

    def facts(self) -> dict[str, Any]:
        """For ``celery inspect``; JSON-friendly."""
        if self.folder is None:
            return {"packed": False, "reason": self.reason}
        return {"packed": True, "folder": self.folder, "bytes_shared": self.bytes}


def pack_in_process(
    name: str,
    path: str,
    cache: PackCache,
    *,
    safe_mode: bool,
    options: LoadOptions = NOTHING,
    start_method: str,
    timeout: float,
    tick: Callable[[], None],
    import_app: Callable[[], Any] | None = None,
) -> Packing:
    """Find or make the pack of one model in a process of its own.

    Args:
        start_method: "fork", which knows the custom classes that this process
            knows, or "spawn" or "forkserver", which know those that ``import_app`` makes known.
        timeout: seconds until the process is killed.
        tick: called all the while; whatever it raises ends the process.
        import_app: imports, in a spawned process, the modules that spawned
            children have; can be pickled.
    """
    code = None
    if start_method == "fork":
        import_app = None
    else:  # it has other modules than this process, and is to find the packs that forked ones made
        code = fingerprint.code_of_this_process()
    started = time.monotonic()
    context: Any = multiprocessing.get_context(start_method)
    receiver, sender = context.Pipe(duplex=False)
    make = functools.partial(find_or_make, name, path, cache, safe_mode=safe_mode, options=options, code=code)
    parent = None if start_method == "forkserver" else os.getpid()  # it ends with the forkserver, which ends with us
    process = context.Process(target=_main, args=(sender, parent, make, timeout, import_app), daemon=True)
    try:
        if start_method == "forkserver":
            processes.start(process, tick, timeout)
        else:  # a fork of the main thread
            with processes.allowed_to_start():
                process.start()
    except (OSError, EOFError, pickle.PicklingError, AttributeError, TypeError) as exc:
        receiver.close()
        return Packing(name, reason=f"no process to pack it was started: {short(exc)}", is_problem=True)
    finally:
        sender.close()
    try:
        while not wait([receiver], _TICK):
            tick()
            if time.monotonic() - started > timeout:
                return Packing(name, reason=f"packing it took longer than {timeout:g} s", is_problem=True)
        said = json.loads(receiver.recv_bytes())
        content = said.pop("content", None)
        seconds = time.monotonic() - started
        return Packing(name, **said, seconds=seconds, content=Content.of_json(content) if content else None)
    except EOFError:
        process.join(_TICK)
        return Packing(name, reason=f"the process that packed it ended with {process.exitcode}", is_problem=True)
    finally:
        receiver.close()
        process.kill()
        process.join()


def _main(
    sender: Connection,
    parent: int | None,
    make: Callable[[], Found],
    timeout: float,
    import_app: Callable[[], Any] | None,
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    set_pdeathsig("SIGKILL")  # Celery handles signals later, until then SIGTERM kills worker main
    if parent is not None and os.getppid() != parent:
        os._exit(1)
    signal.alarm(int(timeout) + 1)  # where the kernel does not tell that worker main is gone
    try:
        if import_app is not None:
            import_app()
        found = make()
        answer: dict[str, Any] = {
            "folder": found.folder,
            "bytes": manifest.read_manifest(found.folder).bytes,
            "content": asdict(found.content),
            "remark": found.remark,
        }
    except CannotPack as exc:
        answer = {"reason": str(exc)}
    except (CacheUnusable, location.BadSource) as exc:
        answer = {"reason": str(exc), "is_problem": True}
    except Exception as exc:  # anything at all may come out of the user's file
        answer = {"reason": f"{type(exc).__name__}: {short(exc)}", "is_problem": True}
    sender.send_bytes(json.dumps(answer).encode())
    sender.close()
    # TensorFlow's threads, and what the user's modules registered for the end of worker main, have no say here.
    os._exit(0)


@dataclass(frozen=True)
class Found:
    """A pack that was found or made."""

    folder: str
    content: Content
    remark: str = ""


class _Touched(Exception):
    """The model's files were written while they were packed."""


def find_or_make(
    name: str,
    path: str,
    cache: PackCache,
    *,
    safe_mode: bool,
    options: LoadOptions = NOTHING,
    code: tuple[list[str], list[str]] | None = None,
    interrupts: tuple[type[BaseException], ...] = (),
) -> Found:
    """The model's pack, from the cache or made anew; initialises TensorFlow when it makes one.

    Args:
        code: what `fingerprint.code_facts` says of the code that custom
            classes may come from; of this process's, unless given.
        interrupts: what ends the making and is no failure of the model (a time limit).

    Raises:
        CannotPack: this model has none.
        CacheUnusable: there is no place for it.
        BadSource: there is no such model.
        Exception: whatever loading the model raises.
    """
    kind = location.check(path, safe_mode=safe_mode, weights=options.weights)
    path = os.path.expanduser(path)
    if kind is Kind.PACK:
        manifest.check_versions(manifest.verify(path))
        return Found(path, fingerprint.content([path]))
    if kind is Kind.REMOTE:
        raise CannotPack("only a file or folder on this machine can be seen to have changed")
    if kind is Kind.FUNCTION and options.version is None:
        raise CannotPack(
            "what a function makes cannot be seen to have changed; give the model a `version`, and change it with that"
        )
    if kind is not Kind.SAVED_MODEL and (why := installed.why_unshared()):
        raise CannotPack(why)
    facts = [f"format {manifest.FORMAT}", kind.value, *fingerprint.environment_facts(installed.versions(), os.environ)]
    files: list[str] = []
    if legacy.loads(path, kind):
        facts.append(legacy.fact())
    if options != NOTHING:
        facts += options.facts()
    if options.custom_objects or location.has_custom_code(path, kind):
        more, files = code or fingerprint.code_of_this_process()
        facts += more
    for _ in range(_TRIES):
        content = _content(path, kind, options)
        remarks: list[str] = []

        def make(folder: str, content: Content = content, remarks: list[str] = remarks) -> None:
            loaded = load_stored(name, path, safe_mode=safe_mode, options=options)
            remarks.append(write_compared(loaded, folder, interrupts))
            if content.stamps and fingerprint.was_touched(options.files(path), content):  # it may be other bytes
                raise _Touched

        try:
            folder = cache.get_or_make(fingerprint.key(content, facts, code=files), make)
            return Found(folder, content, "".join(remarks))
        except _Touched:
            continue
    raise location.BadSource("its files change all the while; put them there under another name, and rename them")


def _content(path: str, kind: Kind, options: LoadOptions) -> Content:
    if kind is Kind.FUNCTION:
        return fingerprint.content_of_version(path, options.version or "")
    return fingerprint.content(options.files(path))
