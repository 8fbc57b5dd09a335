"""Markdown tables and the sections of docs/benchmarks.md."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mf.files import written_aside
from mf.version import git_sha

NONE = "–"
LIBRARIES = ("torch", "numpy", "scikit-surprise", "cornac", "cmfrec", "myfm", "implicit", "sansa")
TITLES = {
    "limits": "What the machine can do",
    "accuracy": "Accuracy",
    "speed": "Speed",
    "processes": "Several processes",
    "csv": "From a CSV file to Parquet",
    "import": "From a table to Parquet",
    "export": "Embeddings into the database",
    "publish": "Publishing under fire",
    "lists": "Lists",
    "ranking": "Evaluation",
    "retrieval": "Recommendations",
    "million": "Recommendations of a million movies",
    "fold_in": "New users from a few ratings",
    "whole": "A whole run",
    "gpu": "On a GPU",
    "steps": "Steps on 100 million ratings",
}
INTRODUCTION = """# Benchmarks

`make bench` writes this page. `make bench PEERS=1` first installs the libraries to compare with into `.venv`
(`requirements/bench.in`; some are compiled and need a C++ compiler). `RATINGS=ratings.csv` adds MovieLens
latest-small, or another file of that layout, to accuracy and lists, and measures new users. `ROWS=2000000` makes speed,
imports, the cost of lists, the evaluation and whole runs smaller. `ONLY=limits`, or another section, leaves the rest of
the page unchanged; `ONLY=gpu` needs a GPU, `ONLY=steps` 20 GB of disk and `ONLY=million` half an hour and
6 GB of memory: they are not part of the whole. Every
measurement runs in a process of its own. The machine should be idle: threads that share cores wait for each other,
those of the naive loop most.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, right-aligned but for the first column and columns of long text."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [i > 0 and all(len(line[i]) < 30 for line in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(header), f"|{rule}|", *map(line, cells)])


def ratio(of: float | None, to: float | None) -> str:
    """``of / to`` in three digits; a dash when either is missing."""
    if of is None or not to:
        return NONE
    value = of / to
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def number(value: float | None, digits: int) -> str:
    """``value`` with ``digits`` decimals; a dash when it is missing."""
    return NONE if value is None else f"{value:,.{digits}f}"


REPRODUCED = 0.05  # relative difference of two runs up to which one figure stands for both


def figure(result: Mapping[str, Any], key: str, digits: int) -> str:
    """A measured value as ``number``; as a range where the second run, ``result["again"]``, has another."""
    found = [run[key] for run in (result, result.get("again", {})) if run.get(key) is not None]
    if not found or max(found) - min(found) <= REPRODUCED * max(found):
        return number(found[0] if found else None, digits)
    return f"{number(min(found), digits)}–{number(max(found), digits)}"


def failures(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per failed measurement, with the reason."""
    return "\n".join(f"- {name} was not measured: {r['error']}" for name, r in results.items() if "error" in r)


def machine() -> str:
    """Machine, library versions and commit, as a sentence."""
    versions = [f"Python {platform.python_version()}"]
    for library in LIBRARIES:
        try:
            versions.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{library} not installed")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GB of memory; {', '.join(versions)}; commit {git_sha()}."
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def write_section(path: Path, name: str, text: str) -> None:
    """Replaces, or appends, section ``name`` of the document at ``path``."""
    document = path.read_text() if path.exists() else INTRODUCTION
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n## {TITLES[name]}\n\n{text}\n\n{machine()}\n{end}"
    if begin in document:
        before, rest = document.split(begin)
        document = before + section + rest.split(end)[1]
    else:
        document = f"{document.rstrip()}\n\n{section}\n"
    with written_aside(path) as aside:
        aside.write_text(document)
