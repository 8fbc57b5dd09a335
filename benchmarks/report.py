"""Tables in Markdown, and the document that holds them."""

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
LIBRARIES = ("torch", "numpy", "scikit-surprise", "cornac", "cmfrec", "myfm")
TITLES = {
    "limits": "What the machine can do",
    "accuracy": "Accuracy",
    "speed": "Speed",
    "csv": "From a CSV file to Parquet",
    "import": "From a table to Parquet",
    "export": "Embeddings into the database",
    "publish": "Publishing under fire",
    "ranking": "Evaluation",
    "retrieval": "Recommendations",
    "fold_in": "New users from a few ratings",
}
INTRODUCTION = """# Benchmarks

`make bench` writes this page; `make bench PEERS=1` first installs the libraries to compare with into `.venv`
(`requirements/bench.in`; some are compiled, which needs a C++ compiler). `RATINGS=ratings.csv` adds MovieLens
latest-small, or another file of its layout, to the accuracy, and new users; `ROWS=2000000` makes speed, imports and
the evaluation smaller; `ONLY=limits`, or another section's name, leaves the rest of the page as it is. Every
measurement runs in a process of its own, on a machine that should do nothing else: threads that share cores wait for
one another, the naive loop's most.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first and those of long text are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [i > 0 and all(len(line[i]) < 30 for line in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(header), f"|{rule}|", *map(line, cells)])


def ratio(of: float | None, to: float | None) -> str:
    """``of / to`` in three digits; a dash when either is not there."""
    if of is None or not to:
        return NONE
    value = of / to
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def number(value: float | None, digits: int) -> str:
    """``value`` with so many digits behind the point; a dash when it is not there."""
    return NONE if value is None else f"{value:,.{digits}f}"


def failures(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each measurement that there is not, with the reason."""
    return "\n".join(f"- {name} was not measured: {r['error']}" for name, r in results.items() if "error" in r)


def machine() -> str:
    """What it was measured on and with, in a paragraph."""
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
    """Puts ``text`` into the document at ``path`` as its section ``name``, in place of what it had there."""
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
