"""What a suite found, as JSON, a Markdown table and a picture."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib
from contestants import CONTESTANTS, NOOP, PLAIN_LOOP
from models import TITLES
from suites import soak
from tabulate import tabulate

matplotlib.use("Agg")
from matplotlib import pyplot

Row = dict[str, Any]
NAMES = {**{key: contestant.title for key, contestant in CONTESTANTS.items()}, "noop": NOOP.title, "plain": PLAIN_LOOP}
PACKAGES = ("celery", "kombu", "billiard", "redis", "tensorflow", "tensorflow-cpu", "keras", "numpy", "celery-tfpool")
OURS, OTHERS, LIMITS = "#d9480f", "#5c7cfa", "#adb5bd"


def write(suite: str, module: Any, rows: list[Row], folder: Path, *, quick: bool, seconds: float) -> str:
    """Write ``SUITE.json``, ``SUITE.md`` and, if anything worked, ``SUITE.png`` to ``folder``; what the second says."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"suite": suite, "quick": quick, "seconds": round(seconds), "when": time.strftime("%Y-%m-%d"), **machine()}
    (folder / f"{suite}.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    table = _TABLES[suite](rows) if _good(rows) else ""
    text = f"# {module.TITLE}\n\n{_heading(facts)}\n\n{table}{_failures(rows)}"
    (folder / f"{suite}.md").write_text(text)
    if _good(rows):
        figure = _PICTURES[suite](rows)
        figure.savefig(folder / f"{suite}.png", dpi=90, bbox_inches="tight")
        pyplot.close(figure)
    return text


def machine() -> Row:
    """Versions, and what the figures depend on."""
    versions = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"cpu": cpu[0] if cpu else platform.machine(), "cores": os.cpu_count(), "memory": memory},
    }


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _heading(facts: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    cores, memory = facts["machine"]["cores"], facts["machine"]["memory"] / 2**30
    how = f"`python benchmarks/bench.py {facts['suite']}{' --quick' if facts['quick'] else ''}`"
    return (
        f"{how}, {facts['when']}, took {facts['seconds'] // 60} min {facts['seconds'] % 60} s on "
        f"{facts['machine']['cpu']}, {cores} cores, {memory:.0f} GB, no GPU. {versions}."
    )


def _failures(rows: list[Row]) -> str:
    failed = [row for row in rows if "failed" in row]
    lines = [f"- {_where(row)}: {row['failed']}" for row in failed]
    return "\nFailed:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _where(row: Row) -> str:
    children = f"{row['children']} children" if row.get("children") else ""
    parts = [NAMES.get(row.get("contestant", ""), row.get("what", "")), row.get("model", ""), children]
    return ", ".join(part for part in parts if part)


def _table(rows: list[list[Any]], headers: Sequence[str]) -> str:
    return tabulate(
        rows, headers, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * (len(headers) - 1))
    )


def _several(facts: Row | None, digits: int = 1, scale: float = 1) -> str:
    """``median (min – max)``, or the median alone where all are the same."""
    if facts is None:
        return "—"
    median, low, high = (f"{scale * facts[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} – {high})"


def _good(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if "failed" not in row and all(row.get(name) == wanted[name] for name in wanted)]


def _values(rows: list[Row], name: str) -> list[Any]:
    """The different values of ``name``, in the order of the rows."""
    return list(dict.fromkeys(row[name] for row in rows if row.get(name) is not None))


def _ratio(value: float, rows: list[Row], *path: str, **wanted: Any) -> str:
    """``value`` in units of the stock recipe's."""
    stock: Any = next(iter(_good(rows, contestant="stock", **wanted)), None)
    for name in path:
        stock = stock and stock[name]
    return f"{value / stock:.2f}" if stock else "—"


def _color(key: str) -> str:
    if key in ("tfpool", "deferred", "predictors", "waiting", "unshared", "first"):
        return OURS
    return LIMITS if key in ("noop", "plain") else OTHERS


# -- throughput ------------------------------------------------------------------


def _throughput_table(rows: list[Row]) -> str:
    parts = []
    for model in _values(rows, "model"):
        lines = []
        for row in _throughput_rows(rows, model):
            rates, children = row["tasks_per_second"], row.get("children")
            cells = [NAMES[row["contestant"]], children or "", _several(rates)]
            cells.append(_ratio(rates["median"], _compared(rows, model, children), "tasks_per_second", "median"))
            if "latency" in row:
                cells += [_several(row["burst_tasks_per_second"])]
                cells += [f"{1000 * row['latency'][q]:,.0f}" for q in ("p50", "p95", "p99")]
            else:
                cells += [row["how"], "", "", ""]
            lines.append(cells)
        headers = [
            "",
            "children",
            "tasks/s, 32 in flight",
            "× stock",
            "tasks/s, burst of 32",
            "p50 ms",
            "p95 ms",
            "p99 ms",
        ]
        parts.append(f"## {TITLES[model]}\n\n{_table(lines, headers)}\n")
    return "\n".join(parts)


def _compared(rows: list[Row], model: str, children: int | None) -> list[Row]:
    """The stock recipe with as many children, or with the next fewer that it was measured with."""
    own = _good(rows, contestant="stock", model=model)
    fewer = [row for row in own if children is None or row["children"] <= children]
    return sorted(fewer, key=lambda row: row["children"], reverse=children is not None)[:1]


def _throughput_rows(rows: list[Row], model: str) -> list[Row]:
    """Of one model, and the no-op tasks, which are measured with the first one's messages."""
    own = [row for row in _good(rows) if row["model"] == model or row["contestant"] == "noop"]
    return sorted(own, key=lambda row: row.get("children") or 99)


def _throughput_picture(rows: list[Row]) -> Any:
    models = _values(rows, "model")
    figure, axes = pyplot.subplots(len(models), 1, figsize=(9, 1 + 4.5 * len(models)), squeeze=False)
    for ax, model in zip(axes[:, 0], models, strict=True):
        found = _throughput_rows(rows, model)
        keys = _values(found, "contestant")
        sizes = _values(found, "children")
        height = 0.8 / max(len(sizes), 1)
        for index, children in enumerate(sizes):
            for row in _good(found, children=children):
                place, rates = keys.index(row["contestant"]) + index * height, row["tasks_per_second"]
                error = [[rates["median"] - rates["min"]], [rates["max"] - rates["median"]]]
                color = _color(row["contestant"])
                ax.barh(place, rates["median"], height * 0.9, xerr=error, color=color, alpha=1 - 0.25 * index)
                ax.text(rates["max"] * 1.05, place, f"{rates['median']:,.0f}  ({children})", va="center", fontsize=7)
        for row in _good(found, contestant="plain"):
            rate = row["tasks_per_second"]["median"]
            ax.barh(keys.index("plain"), rate, height * 0.9, color=LIMITS)
            ax.text(rate * 1.05, keys.index("plain"), f"{rate:,.0f}", va="center", fontsize=7)
        ax.set_xscale("log")
        ax.set_yticks(
            [place + 0.4 - height / 2 for place in range(len(keys))], [NAMES[key] for key in keys], fontsize=8
        )
        ax.invert_yaxis()
        ax.margins(x=0.15)
        ax.set_title(f"{TITLES[model]}: tasks per second with 32 in flight (number of children)", fontsize=9)
    figure.tight_layout()
    return figure


# -- coldstart ---------------------------------------------------------------------


def _coldstart_table(rows: list[Row]) -> str:
    lines = []
    for row in _good(rows):
        same = {"model": row["model"], "children": row["children"]}
        again = row["replacement"]
        lines.append(
            [
                NAMES[row["contestant"]],
                TITLES[row["model"]],
                row["children"],
                _several(row["start"]),
                _ratio(row["start"]["median"], rows, "start", "median", **same),
                _several(again),
                _ratio(again["median"], rows, "replacement", "median", **same) if again else "—",
            ]
        )
    headers = ["", "model", "children", "s from start to all answers", "× stock"]
    return _table(lines, [*headers, "s from SIGKILL to the replacement's answer", "× stock"]) + "\n"


def _coldstart_picture(rows: list[Row]) -> Any:
    good = _good(rows)
    models, keys = _values(good, "model"), _values(good, "contestant")
    figure, axes = pyplot.subplots(len(models), 2, figsize=(11, 1 + 2.8 * len(models)), squeeze=False, sharey=True)
    for line, model in zip(axes, models, strict=True):
        for ax, what, title in zip(line, ("start", "replacement"), ("start of the worker", "SIGKILL"), strict=True):
            sizes = _values(good, "children")
            height = 0.8 / len(sizes)
            for index, children in enumerate(sizes):
                for row in _good(good, model=model, children=children):
                    facts, place = row[what], keys.index(row["contestant"]) + index * height
                    if facts:
                        color = _color(row["contestant"])
                        ax.barh(place, facts["median"], height * 0.9, color=color, alpha=1 - 0.35 * index)
                        ax.text(facts["median"], place, f" {facts['median']:.1f} ({children})", va="center", fontsize=7)
            ax.set_yticks(
                [place + 0.4 - height / 2 for place in range(len(keys))], [NAMES[key] for key in keys], fontsize=8
            )
            ax.margins(x=0.15)
            ax.set_title(f"{TITLES[model]}: s from {title} to the answer (children)", fontsize=9)
        line[0].invert_yaxis()
    figure.tight_layout()
    return figure


# -- memory ------------------------------------------------------------------------


def _memory_table(rows: list[Row]) -> str:
    parts = []
    for model in _values(rows, "model"):
        found = _good(rows, model=model)
        sizes = _values(found, "children")
        compared = max(_values(_good(found, contestant="stock"), "children"), default=max(sizes, default=0))
        lines = []
        for key in _values(found, "contestant"):
            own = {row["children"]: row for row in _good(found, contestant=key)}
            cells = [f"{own[size]['pss'] / 1e6:,.0f}" if size in own else "—" for size in sizes]
            if None in own:  # one process, whatever the concurrency
                cells = [f"{own[None]['pss'] / 1e6:,.0f}"] * len(sizes)
            last = own.get(None) or own.get(compared) or own[max(own)]
            stock = _ratio(last["pss"], found, "pss", children=compared)
            lines.append([NAMES[key], *cells, stock, f"{last['private_per_child'] / 1e6:,.0f}"])
        headers = ["PSS in MB, by children", *map(str, sizes), f"× stock with {compared}", "private MB of one child"]
        parts.append(f"## {TITLES[model]}\n\n{_table(lines, headers)}\n")
    return "\n".join(parts)


def _memory_picture(rows: list[Row]) -> Any:
    models = _values(rows, "model")
    figure, axes = pyplot.subplots(1, len(models), figsize=(5.5 * len(models), 4.2), squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        found = _good(rows, model=model)
        sizes = _values(found, "children")
        for key in _values(found, "contestant"):
            own = _good(found, contestant=key)
            points = [(row["children"], row["pss"] / 1e6) for row in own if row["children"]]
            points = points or [(size, own[0]["pss"] / 1e6) for size in sizes]
            style = {"color": OURS, "linewidth": 3} if key in ("tfpool", "predictors") else {"linewidth": 1}
            ax.plot(*zip(*points, strict=True), marker="o", markersize=3, label=NAMES[key], **style)
        ax.set_xticks(sizes)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("children")
        ax.set_ylabel("MB")
        ax.set_title(f"{TITLES[model]}: PSS of the whole worker", fontsize=9)
        ax.legend(fontsize=7)
    figure.tight_layout()
    return figure


# -- overhead ----------------------------------------------------------------------


def _overhead_table(rows: list[Row]) -> str:
    noop = [
        [row["way"], _several(row["tasks_per_second"]) if "ratio" not in row else _several(row["ratio"], 3)]
        for row in _good(rows, what="no-op tasks")
    ]
    parts = [f"## No-op tasks per second\n\n{_table(noop, ['2 children, 32 in flight', ''])}\n"]
    lines = []
    for row in _good(rows):
        if "seconds" in row:
            own = {other["way"]: other["seconds"]["median"] for other in _good(rows, what=row["what"])}
            ratio = row["seconds"]["median"] / own["compiled call"]
            lines.append([TITLES[row["what"]], row["way"], _several(row["seconds"], 2, 1e3), f"{ratio:.2f}"])
    headers = ["", "", "ms for one row", "× compiled call"]
    parts.append(f"## One prediction\n\n{_table(lines, headers)}\n")
    lines = []
    for row in _good(rows):
        if "ready" in row:
            keras = _good(rows, what=row["what"], way="keras.models.load_model")[0]["ready"]["median"]
            ratio = row["ready"]["median"] / keras
            lines.append([TITLES[row["what"]], row["way"], _several(row["ready"], 0, 1e3), f"{ratio:.3f}"])
    headers = ["", "", "ms until the model is ready in a child", "× Keras"]
    parts.append(f"## A model made ready\n\n{_table(lines, headers)}\n")
    return "\n".join(parts)


def _overhead_picture(rows: list[Row]) -> Any:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4))
    for row in _good(rows, what="no-op tasks"):
        if "ratio" not in row:
            color = OURS if row["way"] == "TFPrefork" else OTHERS
            left.bar(row["way"], row["tasks_per_second"]["median"], color=color)
    left.set_title("no-op tasks per second, 2 children", fontsize=9)
    found = [row for row in _good(rows) if "seconds" in row]
    models = _values(found, "what")
    ways = _values(found, "way")
    width = 0.8 / max(len(ways), 1)
    theirs = [way for way in ways if not way.startswith("handle")]
    for index, way in enumerate(ways):
        values = [_good(found, what=model, way=way)[0]["seconds"]["median"] * 1e3 for model in models]
        places = [place + width * index for place in range(len(models))]
        color = (LIMITS, OTHERS)[theirs.index(way)] if way in theirs else OURS
        right.bar(places, values, 0.95 * width, label=way, color=color, alpha=1 if way in theirs else 1 - 0.2 * index)
    right.set_yscale("log")
    right.set_xticks([place + 0.3 for place in range(len(models))], [TITLES[model] for model in models], fontsize=6)
    right.set_title("one prediction of one row, ms", fontsize=9)
    right.legend(fontsize=7)
    figure.tight_layout()
    return figure


# -- leak --------------------------------------------------------------------------


def _leak_table(rows: list[Row]) -> str:
    lines = []
    for key in _values(_good(rows), "contestant"):
        points = [(row["predictions"], row["private"] / 1e6) for row in _good(rows, contestant=key)]
        half = points[len(points) // 2 :]
        per_thousand = (half[-1][1] - half[0][1]) / (half[-1][0] - half[0][0]) * 1000
        cells = [f"{points[0][1]:,.1f}", f"{points[-1][1]:,.1f}", f"{per_thousand:+.2f}"]
        lines.append([NAMES[key], f"{points[-1][0]:,}", *cells])
    headers = ["", "predictions", "MB at first", "MB at last", "MB per 1,000 in the second half"]
    return _table(lines, headers) + "\n"


def _leak_picture(rows: list[Row]) -> Any:
    figure, ax = pyplot.subplots(figsize=(8, 4))
    for key in _values(_good(rows), "contestant"):
        points = [(row["predictions"], row["private"] / 1e6) for row in _good(rows, contestant=key)]
        style = {"color": OURS, "linewidth": 3} if key in ("tfpool", "predictors") else {"linewidth": 1}
        ax.plot(*zip(*points, strict=True), label=NAMES[key], **style)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("predictions of 1 to 64 rows")
    ax.set_ylabel("private MB of the child")
    ax.legend(fontsize=7)
    return figure


# -- soak --------------------------------------------------------------------------

_PARTS = {**soak.KINDS, "pss": "PSS of the whole worker"}


def _soak_table(rows: list[Row]) -> str:
    lines = []
    for key in _values(_good(rows), "contestant"):
        own = _good(rows, contestant=key)
        for part, title in _PARTS.items():
            slope, error = soak.trend(own, part)
            sizes = [f"{row[part] / 1e6:,.1f}" for row in (own[0], own[-1])]
            descriptors = [str(row[f"{part}_descriptors"]) if part in soak.KINDS else "" for row in (own[1], own[-1])]
            cells = [f"{own[-1]['tasks']:,}", *sizes, f"{slope:+.2f} ± {error:.2f}", *descriptors]
            lines.append([f"{NAMES[key]}: {title}", *cells])
    headers = ["", "tasks", "MB at first", "MB at last", "MB per minute", "descriptors at first", "at last"]
    wrong = soak.wrong(rows)
    verdict = "Not as it should be: " + "; ".join(wrong) if wrong else "Nothing grows, and the leak is seen."
    return (
        f"{_table(lines, headers)}\n\nMB per minute: slope of the second half, by least squares, and its standard "
        f"error. More than {soak.LEAK:g} and twice the error is a leak. {verdict}\n"
    )


def _soak_picture(rows: list[Row]) -> Any:
    figure, ax = pyplot.subplots(figsize=(8, 4))
    for key in _values(_good(rows), "contestant"):
        own = _good(rows, contestant=key)
        for part, title in _PARTS.items():
            ax.plot([row["seconds"] for row in own], [row[part] / 1e6 for row in own], label=f"{NAMES[key]}: {title}")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("seconds, 32 tasks in flight")
    ax.set_ylabel("MB")
    ax.legend(fontsize=7)
    return figure


_TABLES = {
    "throughput": _throughput_table,
    "crowd": _throughput_table,
    "coldstart": _coldstart_table,
    "memory": _memory_table,
    "overhead": _overhead_table,
    "leak": _leak_table,
    "soak": _soak_table,
}
_PICTURES = {
    "throughput": _throughput_picture,
    "crowd": _throughput_picture,
    "coldstart": _coldstart_picture,
    "memory": _memory_picture,
    "overhead": _overhead_picture,
    "leak": _leak_picture,
    "soak": _soak_picture,
}
