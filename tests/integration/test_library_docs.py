"""The library's documentation and notebook run as they are written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mf.sample import write_sample

ROOT = Path(__file__).parents[2]


def run(program: str, folder: Path) -> None:
    """Runs a program in a folder, without a screen for plots and without Supabase."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    environment |= {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:mf", "-c", program],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample").ratings_csv.rename(tmp_path / "ratings.csv")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)
    assert len(blocks) > 6
    run("\n".join(blocks), tmp_path)


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.name)
def test_the_cells_of_the_notebook_run_one_after_the_other(notebook: Path, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert 12 <= len(cells) <= 18
    run("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), tmp_path)
