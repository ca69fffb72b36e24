"""Command line: ``celery tfpool …``, ``--tf-model-path``, and ``--pool=celery_tfpool:TFPrefork``.

Celery loads this module through the entry point group ``celery.commands``
before it parses options and before it imports the app.  Stock Celery refuses
dotted pool names, so that is the moment to let ours through, to add options,
and, where this may become a worker of ours, to start watching who initialises
TensorFlow.  Other commands load it as well: it imports what one needs when that runs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption
from celery.utils.imports import cwd_in_path
from celery.utils.log import get_logger

from . import _celery, defer_loading
from .errors import ModelLoadError, TFPoolError
from .settings import MODEL_PATH_VARIABLE, MODELS_VARIABLE

logger: logging.Logger = get_logger(__name__)

POOL = "celery_tfpool:TFPrefork"


def _option(name: str, variable: str, description: str) -> CeleryOption:
    def to_environment(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        # As Celery does with --broker: children and every get_model() see it there.
        if value:
            os.environ[variable] = value
        return value

    return CeleryOption(
        [name],
        envvar=variable,
        callback=to_environment,
        expose_value=False,
        help_group="Pool Options",
        help=description,
    )


def _without_traceback(callback: Callable[..., Any]) -> Callable[..., Any]:
    """What we raise on purpose is a message for the reader, and an exit code."""

    @functools.wraps(callback)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except TFPoolError as exc:
            if kwargs.get("logfile"):  # a detached worker has no other place to say it
                logger.critical("%s", exc)
            raise click.ClickException(str(exc)) from exc

    return call


def extend_worker_command() -> None:
    """Teach ``celery worker`` our pool's name and options."""
    command, pools = _celery.worker_command()
    if POOL in pools.choices:
        return
    pools.choices = (*pools.choices, POOL)
    command.params += [
        _option(
            "--tf-model-path",
            MODEL_PATH_VARIABLE,
            f"Keras model for {POOL}: a .keras or .h5 file, a SavedModel folder, or module:function; or several, "
            f"NAME=PATH,NAME=PATH. Goes before {MODEL_PATH_VARIABLE} and the tf_model_path setting.",
        ),
        _option(
            "--tf-models",
            MODELS_VARIABLE,
            "Names of those models of tf_model_path that this worker needs, with commas; files of the others are not "
            "looked for.",
        ),
    ]
    command.callback = _without_traceback(command.callback)


def may_be_ours(arguments: Sequence[str]) -> bool:
    """Whether a command line starts a worker whose pool is ours, or may be, because its configuration says so."""
    pools = _pools(arguments)
    return "worker" in arguments and (not pools or pools[-1] in (POOL, "custom", "prefork"))


def is_ours(arguments: Sequence[str]) -> bool:
    """Whether a command line says that it starts a worker whose pool is ours."""
    is_custom = os.environ.get("CELERY_CUSTOM_WORKER_POOL") == POOL
    return "worker" in arguments and _pools(arguments)[-1:] in ([POOL], *([["custom"]] if is_custom else []))


def _pools(arguments: Sequence[str]) -> list[str]:
    pools = [after for before, after in itertools.pairwise(arguments) if before in ("-P", "--pool")]
    pools += [argument.partition("=")[2] for argument in arguments if argument.startswith("--pool=")]
    return pools + [argument[2:] for argument in arguments if argument.startswith("-P") and argument != "-P"]


extend_worker_command()
if may_be_ours(sys.argv):
    from .runners import runtimes

    runtimes.watch()
if is_ours(sys.argv):
    defer_loading()
if {"inspect", "control"} & set(sys.argv):
    from .pool import inspect as inspect  # registers `celery inspect tfpool`


@click.group(help="Keras models for the TFPrefork pool.")
def tfpool() -> None:
    """Keras models for the TFPrefork pool."""
    pass


@tfpool.command(cls=CeleryCommand)
@click.argument("path")
@click.option("--unsafe", is_flag=True, cls=CeleryOption, help="Allow a model that carries code (tf_safe_mode=False).")
def check(path: str, unsafe: bool) -> None:
    """Load the model at PATH outside a worker, show what it is, and predict once.

    PATH is a .keras or .h5 file, a SavedModel folder, or module:function.
    """
    import numpy as np

    from .models.lazy_model import LazyModel
    from .packs import trial
    from .runners import any_object, installed, location
    from .runners.dtypes import itemsize

    lazy = LazyModel("model", path, safe_mode=not unsafe)
    with cwd_in_path():
        try:
            kind = location.check(path, safe_mode=not unsafe).value
            runner = lazy.load()
        except (location.BadSource, ModelLoadError) as exc:
            raise click.ClickException(f"{path}: {exc.args[-1]}") from exc
    click.echo(f"{path}: {kind}, loaded in {lazy.load_time:.2f} s")
    click.echo("versions: " + ", ".join(" ".join(item) for item in installed.versions_in_use().items()))
    for title, ports in (("input", runner.inputs), ("output", runner.outputs)):
        for port in ports:
            click.echo(f"{title:<7} {port}")
    numbers = [(int(np.prod(v.shape)), itemsize(v)) for v in runner.variables()]
    click.echo(f"weights {sum(n for n, _ in numbers):,} numbers, {sum(n * size for n, size in numbers) / 1e6:.1f} MB")
    if isinstance(runner, any_object.ObjectRunner):
        return click.echo(f"predict is not tried: {runner.only_here()}")
    started = time.monotonic()
    try:
        runner.predict(runner.sample(), None)
    except Exception as exc:  # whatever the model's own code raises is what the user wants to see
        raise click.ClickException(f"predict failed on one row of zeros: {type(exc).__name__}: {exc}") from exc
    click.echo(f"predict one row of zeros: ok, {time.monotonic() - started:.2f} s the first time")
    click.echo("\n".join(trial.table(runner)))


@tfpool.command(cls=CeleryCommand)
@click.argument("path")
@click.option("-o", "--output", required=True, type=click.Path(), cls=CeleryOption, help="The folder to make.")
@click.option("--unsafe", is_flag=True, cls=CeleryOption, help="Allow a model that carries code (tf_safe_mode=False).")
def pack(path: str, output: str, unsafe: bool) -> None:
    """Convert the model at PATH into a pack ahead of time, for an image build say.

    Set tf_model_path to the folder then. Workers map it as it is, and the original is needed no more.
    """
    from .models.lazy_model import LazyModel
    from .packs import manifest
    from .packs.compared import write_compared
    from .runners.convert import short
    from .runners.protocol import CannotPack

    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise click.ClickException(f"{output} is there already; give a folder that is empty or does not exist")
    try:
        with cwd_in_path(), made_aside(target) as folder:
            remark = write_compared(LazyModel("model", path, safe_mode=not unsafe).load(), str(folder))
    except CannotPack as exc:
        reason = f"cannot be packed: {exc}"
    except OSError as exc:
        reason = f"cannot be written to {output}: {exc.strerror or exc}"
    except ModelLoadError as exc:
        reason = exc.args[2]
    except Exception as exc:  # whatever TensorFlow says of the user's model
        reason = f"cannot be packed: {type(exc).__name__}: {short(exc)}"
    else:
        click.echo(
            f"{output}: {manifest.read_manifest(output).bytes / 1e6:.1f} MB, made of {path}"
            + (f"; {remark}" if remark else "")
        )
        return
    raise click.ClickException(f"{path}: {reason}")


@contextlib.contextmanager
def made_aside(target: Path) -> Iterator[Path]:
    """A folder whose content is in ``target`` at the end of the block, or nowhere if the block was left otherwise.

    ``target`` is an empty folder, perhaps one that cannot be replaced (a
    volume), or does not exist.
    """
    from .packs.manifest import MANIFEST

    existed = target.exists()
    aside = (target if existed else target.parent) / f".{target.name}-{uuid.uuid4().hex}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        aside.mkdir()
        yield aside
        if existed:
            # The manifest comes last: a folder without one is no pack.
            for part in sorted(aside.iterdir(), key=lambda part: part.name == MANIFEST):
                part.rename(target / part.name)
        else:
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@tfpool.command(cls=CeleryCommand)
@click.option("--clear", is_flag=True, cls=CeleryOption, help="Remove all packs that no worker uses.")
@click.pass_context
def cache(ctx: click.Context, clear: bool) -> None:
    """List the packs that workers have made, or remove them."""
    from .packs.cache import PackCache
    from .settings import read

    packs = PackCache.of(read(ctx.obj.app.conf, os.environ), os.environ)
    if clear:
        removed = packs.trim(0)
        click.echo(f"removed {len(removed)} of {packs.folder}, {sum(entry.bytes for entry in removed) / 1e6:.1f} MB")
    entries = packs.entries()
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        what = f"no pack: {entry.note}" if entry.note else f"{entry.bytes / 1e6:.1f} MB"
        click.echo(f"{entry.folder.name}  used {used}{', in use' if entry.in_use else ''}  {what}")
    click.echo(f"{len(entries)} in {packs.folder}, {sum(entry.bytes for entry in entries) / 1e6:.1f} MB")
