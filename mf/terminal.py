"""Foreign text on a terminal, in a log or report: control characters as escapes."""

import re

# Control characters, bidi marks, separators of lines and other characters without a shape of their own (tags, fillers).
UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """``text`` with each unsafe character as an escape, such as ``\\x1b``, so that it has one line and no effect on a
    terminal."""
    return UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)
