"""The cache of packs: one of each, whole or not at all, whatever is killed and however full the disk is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model, quiet, wait_until

from celery_tfpool.packs import build, fingerprint, manifest
from celery_tfpool.packs.attach import PackRunner
from celery_tfpool.packs.cache import CacheUnusable, PackCache, hold
from celery_tfpool.runners import location, stored
from celery_tfpool.runners.culprit import is_own_code
from celery_tfpool.runners.inputs import Named
from celery_tfpool.runners.protocol import CannotPack

#: A process that makes, or finds, the pack of a model in a cache, and prints where and whether it made it.
PACKER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from celery_tfpool.packs import build
    from celery_tfpool.packs.cache import PackCache
    path, folder, max_bytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    made = []
    original = build.write_compared
    def write_compared(*arguments):
        made.append(1)
        print("begins", flush=True)
        return original(*arguments)
    build.write_compared = write_compared
    found = build.find_or_make("model", path, PackCache(folder, max_bytes), safe_mode=True)
    print(found.folder, len(made), flush=True)
    """
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(str(tmp_path_factory.mktemp("models") / "sum.keras"))


@pytest.fixture
def cache(tmp_path: Path) -> PackCache:
    return PackCache(tmp_path / "cache", 2**30)


def start(path: str, cache: PackCache, *before: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", PACKER, path, str(cache.folder), str(cache.max_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet(os.environ))


def finish(process: subprocess.Popen[str]) -> tuple[str, int]:
    """The folder of the pack, and how often the process made it."""
    out, err = process.communicate(timeout=120)
    assert 0 == process.returncode, err
    folder, made = out.splitlines()[-1].split()
    return folder, int(made)


def fake(size: int = 100) -> Callable[[str], None]:
    """Make what passes for a pack without TensorFlow."""

    def make(folder: str) -> None:
        Path(folder, "graph.pb").write_bytes(os.urandom(size))
        Path(folder, "weights.bin").touch()
        files = {name: manifest.facts_of(os.path.join(folder, name)) for name in ("graph.pb", "weights.bin")}
        facts = manifest.Manifest("f", Named([], []), [], [], {}, files)
        Path(folder, "pack.json").write_text(json.dumps(facts.to_json()))

    return make


def never(folder: str) -> None:
    raise AssertionError("it is there already")


# -- fingerprints ------------------------------------------------------------------


def key_of(path: str, facts: list[str], *, code: Sequence[str] = ()) -> str:
    return fingerprint.key(fingerprint.content([path]), facts, code=code)


def test_fingerprint(tmp_path: Path) -> None:
    """Of content, not of names and times; of versions, of Keras's configuration, and of custom code."""
    first, second, code = tmp_path / "first.keras", tmp_path / "second.keras", tmp_path / "layers.py"
    first.write_text("model")
    second.write_text("model")
    code.write_text("class Layer: pass")
    facts = fingerprint.environment_facts({"keras": "3.15"}, {"KERAS_HOME": str(tmp_path)})
    known = [key_of(str(first), facts)]
    assert key_of(str(second), facts) == known[0]

    second.write_text("modem")
    known.append(key_of(str(second), facts))
    known.append(key_of(str(first), facts, code=[str(code)]))
    code.write_text("class Layer: fail")
    known.append(key_of(str(first), facts, code=[str(code)]))
    known.append(key_of(str(first), fingerprint.environment_facts({"keras": "3.16"}, {"KERAS_HOME": str(tmp_path)})))
    (tmp_path / "keras.json").write_text('{"floatx": "float16"}')
    known.append(key_of(str(first), fingerprint.environment_facts({"keras": "3.15"}, {"KERAS_HOME": str(tmp_path)})))
    assert len(set(known)) == len(known)


def test_fingerprint_of_folder(tmp_path: Path) -> None:
    (tmp_path / "saved" / "variables").mkdir(parents=True)
    (tmp_path / "saved" / "saved_model.pb").write_text("graph")
    before = key_of(str(tmp_path / "saved"), [])
    (tmp_path / "saved" / "variables" / "data").write_text("weights")
    assert before != key_of(str(tmp_path / "saved"), [])
    shutil.copytree(tmp_path / "saved", tmp_path / "copy")
    assert key_of(str(tmp_path / "copy"), []) == key_of(str(tmp_path / "saved"), [])


def test_own_version_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither packs nor notes outlive another version of this package, or another state of its code."""
    model = tmp_path / "m.keras"
    model.write_text("model")
    before = key_of(str(model), [])
    shutil.copytree(Path(fingerprint.__file__).parent.parent, tmp_path / "other" / "celery_tfpool")
    with open(tmp_path / "other" / "celery_tfpool" / "errors.py", "a") as file:
        file.write("#\n")
    program = (
        "import sys; from celery_tfpool.packs.fingerprint import content, key; print(key(content(sys.argv[1:]), []))"
    )
    keys = []
    for place in (Path(fingerprint.__file__).parents[2], tmp_path / "other"):
        command = [sys.executable, "-c", program, str(model)]
        env = {**os.environ, "PYTHONPATH": str(place)}
        keys.append(
            subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
        )
    assert before == keys[0] != keys[1]


def test_content_that_changes(tmp_path: Path) -> None:
    """Is seen when it is another, by whatever way; not when it was only touched."""
    model = tmp_path / "m.keras"
    model.write_text("version 1")
    first = fingerprint.content([str(model)])
    assert fingerprint.has_changed([str(model)], first) is None
    os.utime(model)
    assert fingerprint.has_changed([str(model)], first) is None
    assert fingerprint.was_touched([str(model)], first)
    stat = model.stat()
    model.write_text("version 2")
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = fingerprint.has_changed([str(model)], first)
    assert changed is not None
    assert changed.short != first.short
    model.write_text("version 1")
    assert fingerprint.has_changed([str(model)], first) is None


@pytest.mark.parametrize("is_put_back", [False, True])
def test_replaced_while_it_is_packed(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, is_put_back: bool
) -> None:
    """What is kept under a fingerprint is of the bytes that were loaded, also if they were there for a moment only."""
    path, cache = tmp_path / "m.keras", PackCache(tmp_path / "cache", 2**30)
    other = make_model(str(tmp_path / "other.keras"), "model.set_weights([w + 1 for w in model.get_weights()])")
    versions = {"1": Path(model).read_bytes(), "2": Path(other).read_bytes()}
    path.write_bytes(versions["1"])
    original, loads = stored.load_stored, []

    def load_amid_a_deployment(name: str, where: str, **options: Any) -> Any:
        loads.append(where)
        if len(loads) == 1:
            path.write_bytes(versions["2"])
            runner = original(name, where, **options)
            if is_put_back:
                path.write_bytes(versions["1"])
            return runner
        return original(name, where, **options)

    monkeypatch.setattr(build, "load_stored", load_amid_a_deployment)
    found = build.find_or_make("m", str(path), cache, safe_mode=True)
    assert 2 == len(loads)
    for version, expected in (("1", 16.0), ("2", 33.0)):
        path.write_bytes(versions[version])
        found = build.find_or_make("m", str(path), cache, safe_mode=True)
        assert expected == PackRunner("m", found.folder).predict(np.ones((1, 16)), None).item()
        assert found.content == fingerprint.content([str(path)])


def test_replaced_all_the_while(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = Path(shutil.copy(model, tmp_path / "m.keras")), PackCache(tmp_path / "cache", 2**30)
    original = stored.load_stored

    def load_and_touch(name: str, where: str, **options: Any) -> Any:
        os.utime(path)
        return original(name, where, **options)

    monkeypatch.setattr(build, "load_stored", load_and_touch)
    with pytest.raises(location.BadSource, match="its files change all the while"):
        build.find_or_make("m", str(path), cache, safe_mode=True)
    assert [] == cache.entries()


def test_own_code_counts() -> None:
    """The user's modules belong to a model with custom classes; the standard library and installed ones do not."""
    _, files = fingerprint.code_facts([sys.modules[__name__], pytest, os, manifest, None])
    assert [__file__] == files
    assert is_own_code(__file__)


def test_installed_code_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that was built again under its old version is another one."""
    installed = tmp_path / "own_layers-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: own-layers\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    known = []
    for content in ("one", "other"):
        (installed / "RECORD").write_text(f"own_layers.py,sha256={content},10\n")
        fingerprint._distributions.cache_clear()  # as in another process
        known.append(fingerprint.code_facts([])[0])
    assert known[0] != known[1]
    assert any(fact.startswith("own-layers 1.0 ") for fact in known[0])


# -- who may be trusted ------------------------------------------------------------


@pytest.mark.parametrize("name", ["temporary.making", "key.making"])
def test_links_in_the_cache(tmp_path: Path, name: str) -> None:
    """Nobody else's file is opened for one of ours, let alone cut off."""
    victim, folder = tmp_path / "victim", tmp_path / "cache"
    victim.write_text("precious")
    folder.mkdir(mode=0o700)
    (folder / name).symlink_to(victim)
    with pytest.raises(CacheUnusable):
        PackCache(folder, 10).get_or_make("key", fake())
    PackCache(folder, 10).trim(0)
    assert "precious" == victim.read_text()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777, 0o720])
def test_cache_that_others_may_write_to(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    told = rf"cannot be trusted: others may write to it \(mode {mode:o}\); chmod 700 it, or set tf_cache_dir"
    for use in (lambda cache: cache.get_or_make("key", fake()), lambda cache: cache.trim(0)):
        with pytest.raises(CacheUnusable, match=told):
            use(PackCache(folder, 10))
    assert [] == list(folder.iterdir())


def test_cache_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give a folder away")
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    os.chown(folder, 12345, -1)
    with pytest.raises(CacheUnusable, match="cannot be trusted: it belongs to user 12345, not to user 0"):
        PackCache(folder, 10).get_or_make("key", fake())


def test_our_own_cache_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert PackCache(tmp_path / "cache", 2**30).get_or_make("key", fake())
        assert PackCache(tmp_path / "cache", 2**30).get_or_make("key", never)
    finally:
        os.umask(before)


def test_two_put_the_same(tmp_path: Path) -> None:
    """Or one puts what another removes at that moment."""
    cache = PackCache(tmp_path / "cache", 2**30)
    cache.folder.mkdir(mode=0o700)
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                cache._remove(cache.folder / "key")

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(200):
            for _ in range(2):
                temporary = Path(tempfile.mkdtemp(dir=cache.folder))
                (temporary / "file").touch()
                cache._put(temporary, "key")
    finally:
        stop.set()
        remover.join()


# -- making --------------------------------------------------------------------------


def test_found_again(model: str, cache: PackCache) -> None:
    folder, made = finish(start(model, cache))
    assert 1 == made
    assert (folder, 0) == finish(start(model, cache))
    manifest.verify(folder)


def test_two_at_once_make_one(model: str, cache: PackCache) -> None:
    found = [finish(process) for process in [start(model, cache) for _ in range(3)]]
    assert 1 == len({folder for folder, _ in found})
    assert 1 == sum(made for _, made in found)


def test_damaged_is_made_anew(model: str, cache: PackCache) -> None:
    folder, _ = finish(start(model, cache))
    weights = Path(folder, "weights.bin")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    assert (folder, 1) == finish(start(model, cache))
    manifest.verify(folder)
    assert [Path(folder).name] == sorted(path.name for path in cache.folder.iterdir() if path.is_dir())


def test_killed_at_random(model: str, cache: PackCache) -> None:
    """SIGKILL at any moment of packing leaves nothing that is trusted, and nothing that stays."""
    chance = random.Random(4)
    half_made = 0
    for after in (0, *(chance.uniform(0, 0.4) for _ in range(7))):
        process = start(model, cache)
        assert process.stdout is not None
        process.stdout.readline()  # "begins", unless an earlier one came through
        time.sleep(after)
        process.kill()
        process.communicate()
        half_made += bool(list(cache.folder.glob("temporary-*")))
        for entry in cache.entries():
            manifest.verify(str(entry.folder))
    assert half_made > 0
    folder, _ = finish(start(model, cache))
    manifest.verify(folder)
    assert [Path(folder).name] == [path.name for path in cache.folder.iterdir() if path.is_dir()]


def test_no_pack_is_remembered(cache: PackCache) -> None:
    def refuse(folder: str) -> None:
        Path(folder, "graph.pb").write_text("half")
        raise CannotPack("it looks words up in a table")

    for make in (refuse, never):
        with pytest.raises(CannotPack, match="it looks words up in a table"):
            cache.get_or_make("key", make)
    (entry,) = cache.entries()
    assert "it looks words up in a table" == entry.note


def test_failure_is_not_remembered(cache: PackCache) -> None:
    def fail(folder: str) -> None:
        Path(folder, "graph.pb").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("key", fail)
    assert [] == [path for path in cache.folder.iterdir() if path.is_dir()]
    manifest.verify(cache.get_or_make("key", fake()))


# -- no room, no right -----------------------------------------------------------------


def test_full_disk(model: str, cache: PackCache) -> None:
    """A file that cannot grow: said as such, and nothing is left."""
    command = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash"]  # 1 KiB; the graph needs more
    process = start(model, cache, *command)
    _, err = process.communicate(timeout=120)
    assert "CacheUnusable" in err
    assert "File too large" in err
    assert [] == [path for path in cache.folder.iterdir() if path.is_dir()]


def test_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheUnusable, match="file/cache cannot be used: Not a directory"):
        PackCache(tmp_path / "file" / "cache", 2**30).get_or_make("key", fake())


def test_no_home() -> None:
    """A user id that nobody knows, without HOME: no place for packs, said as such."""
    program = (
        "import os\n"
        "from celery_tfpool.packs import cache, fingerprint\n"
        "from celery_tfpool.settings import Settings\n"
        "os.setuid(54321)\n"
        "fingerprint.environment_facts({}, {})\n"
        "try: cache.PackCache.of(Settings(), {}).get_or_make('key', print)\n"
        "except cache.CacheUnusable as exc: print(exc)"
    )
    if os.getuid():
        pytest.skip("only root may become somebody else")
    environ = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, cwd="/", capture_output=True, text=True, check=False
    )
    reason = "~/.cache/celery_tfpool cannot be used: there is no home directory; set tf_cache_dir\n"
    assert reason == done.stdout, done.stderr


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none, as some of a network: said as such.  No machine of the tests has one."""

    def flock(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CacheUnusable, match="cannot be locked: No locks available"):
        hold(str(tmp_path))
    with pytest.raises(CacheUnusable, match="cache cannot be used: No locks available"):
        PackCache(tmp_path / "cache", 2**30).get_or_make("key", fake())


# -- locks -------------------------------------------------------------------------------


def test_no_lock_is_left(cache: PackCache) -> None:
    """Not by whoever made a pack, and not by whoever was killed while making one."""
    cache.get_or_make("a", fake())
    assert ["a"] == [path.name for path in cache.folder.iterdir()]
    (cache.folder / "b.making").touch()
    cache.trim(cache.max_bytes)
    assert ["a"] == [path.name for path in cache.folder.iterdir()]


def test_lock_of_others_stays(cache: PackCache) -> None:
    """What somebody makes at the moment is neither removed nor made by another at the same time."""
    answers = []

    def make(folder: str) -> None:
        cache.trim(0)
        assert Path(folder).is_dir()
        assert (cache.folder / "key.making").exists()
        other = threading.Thread(target=lambda: answers.append(cache.get_or_make("key", never)))
        others.append(other)
        other.start()
        fake()(folder)

    others: list[threading.Thread] = []
    answers.append(cache.get_or_make("key", make))
    others[0].join(60)
    assert 1 == len(set(answers))
    assert 2 == len(answers)


# -- bounded ---------------------------------------------------------------------------


def names(cache: PackCache) -> list[str]:
    return [entry.folder.name for entry in cache.entries()]


def age(cache: PackCache, *keys: str) -> None:
    for number, key in enumerate(keys):
        os.utime(cache.folder / key, (number, number))


def test_least_recently_used_goes(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, 25_000)
    for key in ("a", "b"):
        cache.get_or_make(key, fake(10_000))
    age(cache, "a", "b")
    cache.get_or_make("a", never)  # used again
    cache.get_or_make("c", fake(10_000))
    assert ["a", "c"] == names(cache)


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    """Held by a process or by a fork of it, until the last one has ended."""
    cache = PackCache(tmp_path, 2**30)
    cache.get_or_make("a", fake())
    cache.get_or_make("b", fake())
    program = (
        "import os, sys, time; from celery_tfpool.packs import cache\n"
        "assert cache.hold(sys.argv[1]) is not None\n"
        "os.fork(); os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    pids = [int(holder.stdout.readline()) for _ in range(2)]

    for pid in pids:
        assert ["b"] == [entry.folder.name for entry in cache.trim(0)] or pid != pids[0]
        assert ["a"] == names(cache)
        os.kill(pid, signal.SIGKILL)
    holder.wait()
    wait_until(lambda: cache.trim(0), "the pack to be free")
    assert [] == names(cache)


def test_hold_what_is_gone(tmp_path: Path) -> None:
    assert hold(str(tmp_path / "nothing")) is None
