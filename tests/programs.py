"""Stand-ins for programs, written in Python."""

import shlex
import sys
from pathlib import Path


def write_program(file: Path, code: str, *flags: str) -> None:
    """Writes an executable Python program. A ``#!`` line cannot name an interpreter whose path has a blank."""
    source = file.with_name(f".{file.name}.py")
    source.write_text(code)
    file.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *flags, str(source)])} "$@"\n')
    file.chmod(0o755)
