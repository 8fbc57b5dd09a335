"""Foreign text on a terminal, in a log or report: control characters as escapes."""

import re
from typing import Any, TextIO

# Control characters, bidi marks, separators of lines and other characters without a shape of their own (tags, fillers);
# and of combining marks those after the fourth, which would cover other lines.
_MARKS = r"\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
    rf"|(?<=[{_MARKS}]{{4}})[{_MARKS}]"
)


def printable(text: str) -> str:
    """``text`` with each unsafe character as an escape, such as ``\\x1b``, so that it has one line and no effect on a
    terminal."""
    return UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


class Printable:
    """A stream whose text acts on no terminal: what ``printable`` escapes, but line ends and tabs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(UNSAFE.sub(lambda match: match[0] if match[0] in "\n\t" else printable(match[0]), text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
