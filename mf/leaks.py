"""Forms of secrets: recognising them in a text, and hiding them."""

import re

_NAMES = r"passw(?:or)?d|passphrase|pwd|secret(?:_?(?:access_?)?key)?|api_?key|token|signature"
ASSIGNED = "a text with a password"
# No \b before a token: it may stand within a longer word.
FORMS = {
    "a Supabase secret key": r"(?i:sb_secret_)[A-Za-z0-9][\w-]*",
    "a Supabase access token": r"(?i:sbp_)\w{8,}",
    "a JSON Web Token": r"eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*",
    # The password may hold an @ that should have been %40. Left as they are: the form that errors tell, and Python's.
    "an address with a password": r"(?<=:/{2})(?!USER:PASSWORD@|\{)[^/\s@:]*:[^\s]+(?=@)",
    # The name is shown, and the name of a secret of Secret Manager.
    ASSIGNED: rf"(?i)((?:{_NAMES})\s?=\s?|[\"'](?:{_NAMES})[\"']\s?:\s?|authorization: bearer\s)"
    r"(?!projects/)(?:'[^']+'?|\"[^\"]+\"?|[^\s&'\"…]+)",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY[\s\S]*",
    "a token of a cloud or a code host": r"AIza[\w-]{30,}|ya29\.[\w-]{10,}|AKIA[A-Z0-9]{16}|"
    r"gh[opsur]_\w{20,}|github_pat_\w{20,}",
}
HIDDEN = "…"


def kind_of(text: str, code: bool = False) -> str:
    """What kind of secret ``text`` holds, empty if none. In code, ``password = …`` is none."""
    patterns = {kind: pattern for kind, pattern in FORMS.items() if not (code and kind == ASSIGNED)}
    return next((kind for kind, pattern in patterns.items() if re.search(pattern, text)), "")


def hidden(text: str) -> str:
    """``text`` with each secret in it replaced by an ellipsis."""
    for pattern in FORMS.values():
        text = re.sub(pattern, lambda found: (found[1] if found.re.groups else "") + HIDDEN, text)
    return text
