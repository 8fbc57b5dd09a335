"""python -m benchmarks [SECTION]: runs benchmarks, prints their results and writes docs/benchmarks.md."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import (
    accuracy,
    csv_ingest,
    export,
    fold_in,
    gpu,
    limits,
    lists,
    processes,
    publish,
    ranking,
    retrieval,
    speed,
    steps,
    table_import,
    whole,
)
from benchmarks.planted import FULL
from benchmarks.report import TITLES, machine, write_section

NOT_OF_THE_WHOLE = ("gpu", "steps", "million")  # a GPU, 20 GB of disk, and half an hour


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=(*TITLES, "all"), nargs="?", default="all")
    parser.add_argument("--ratings", type=Path, help="CSV file of MovieLens ratings, for accuracy, lists and new users")
    parser.add_argument(
        "--rows",
        type=lambda text: int(float(text)),
        default=FULL,
        help="number of planted ratings, for speed, imports, lists' cost, evaluation, recommendations, whole runs",
    )
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"))
    given = parser.parse_args(argv)
    if given.ratings and not given.ratings.is_file():
        parser.error(f"--ratings {given.ratings}: no such file")
    sections: dict[str, Callable[[], str]] = {
        "limits": limits.section,
        "accuracy": partial(accuracy.section, given.ratings),
        "speed": partial(speed.section, given.rows),
        "processes": partial(processes.section, given.rows),
        "csv": partial(csv_ingest.section, given.rows),
        "import": partial(table_import.section, given.rows),
        "export": export.section,
        "publish": publish.section,
        "lists": partial(lists.section, given.ratings, given.rows),
        "ranking": partial(ranking.section, given.rows),
        "retrieval": partial(retrieval.section, given.rows),
        "million": partial(retrieval.million, min(given.rows, 1_000_000)),
        "whole": partial(whole.section, given.rows),
        "gpu": gpu.section,
        "steps": partial(steps.section, steps.ROWS if given.rows == FULL else given.rows),
        **({"fold_in": partial(fold_in.section, given.ratings)} if given.ratings else {}),
    }
    if given.what not in (*sections, "all"):
        parser.error(f"{given.what} needs --ratings")
    print(machine())
    for name, section in sections.items():
        if given.what == name or (given.what == "all" and name not in NOT_OF_THE_WHOLE):
            text = section()
            write_section(given.output, name, text)
            print(f"\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
