"""python -m benchmarks accuracy|speed|limits|all: prints as it goes, and writes docs/benchmarks.md."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import accuracy, limits, speed
from benchmarks.planted import FULL
from benchmarks.report import machine, write_section


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=("limits", "accuracy", "speed", "all"), nargs="?", default="all")
    parser.add_argument("--ratings", type=Path, help="a CSV file of MovieLens ratings, for the accuracy")
    parser.add_argument(
        "--rows", type=lambda text: int(float(text)), default=FULL, help="planted ratings, for the speed"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"))
    given = parser.parse_args(argv)
    if given.ratings and not given.ratings.is_file():
        parser.error(f"--ratings: there is no file {given.ratings}")
    sections: dict[str, Callable[[], str]] = {
        "limits": limits.section,
        "accuracy": partial(accuracy.section, given.ratings),
        "speed": partial(speed.section, given.rows),
    }
    print(machine())
    for name, section in sections.items():
        if given.what in (name, "all"):
            text = section()
            write_section(given.output, name, text)
            print(f"\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
