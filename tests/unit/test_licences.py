"""The list of third-party licences is that of the installed packages, and it is in the images."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_list_of_licences_is_that_of_the_locked_packages() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "requirements" / "licences"], capture_output=True, text=True, check=True
    )
    found = (ROOT / "THIRD_PARTY.md").read_text()
    assert found == done.stdout, "run: .venv/bin/python requirements/licences > THIRD_PARTY.md"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines() if line.startswith("| ")]
    assert ["psycopg", "LGPL-3.0-only"] in [[name, licence] for name, _, licence, _ in rows]
    locked = re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements" / "image.lock").read_text(), re.M)
    on_windows_alone = {"colorama", "tzdata"}
    assert {name for name, *_ in rows} >= set(locked) - on_windows_alone
    assert [name for name, _, licence, _ in rows if not licence] == []


def test_the_images_hold_the_list() -> None:
    assert "COPY LICENSE THIRD_PARTY.md /opt/mf/" in (ROOT / "images" / "Dockerfile").read_text()
    assert "!THIRD_PARTY.md" in (ROOT / ".dockerignore").read_text().splitlines()
