"""Forms of secrets: recognising them in a text, and hiding them."""

import re

# What may stand for = in an address or in JSON, and where a long word is cut into lines.
_EQUALS = r"\s{0,2}(?:=|%3d|\\u003d|&#61;)\s{0,2}"
_BREAK = r"(?:\s|\\[nr])"
_PART = rf"[\w-]+(?:{_BREAK}{{1,6}}(?:[\w-]{{12,}}|[\w-]+(?={_BREAK}*\.)))*"
_DOT = rf"{_BREAK}{{0,6}}\.{_BREAK}{{0,6}}"
# Names that have a secret after a colon too, and names that have one after = only.
_COLON = r"passw(?:or)?d|passphrase|(?:api|account|access|role|private|secret)[_-]?key"
_NAMES = rf"{_COLON}|(?:\b|_)pass|pwd|secret|token|signature|\bsig"
ASSIGNED = "a text with a password"
# No \b before a token: it may stand within a longer word.
FORMS = {
    "a Supabase secret key": r"(?i:sb_secret_)[A-Za-z0-9][\w-]*",
    "a Supabase access token": r"(?i:sbp_)\w{8,}",
    "a JSON Web Token": rf"eyJ(?=[\w-]{{5}}){_PART}{_DOT}(?=\S{{3}}){_PART}{_DOT}(?:{_PART})?",
    # The password may hold an @ that should have been %40. Left as they are: the form that errors tell, and Python's.
    "an address with a password": r"(?:(?<=:/{2})|(?<=:\\/\\/))(?!USER:PASSWORD@|\{)[^/\s@:]*:[^\s]+(?=@)|"
    r"(?i:(?<=%3a%2f%2f)[^\s@%]*%3a\S+(?=%40))",
    # The name is shown, and the name of a secret of Secret Manager.
    ASSIGNED: rf"(?i)((?:{_NAMES}){_EQUALS}|[\"'][\w-]*(?:{_NAMES})\\*[\"']\s*(?::|=>)\s*|(?:{_COLON})\s?:\s*|"
    rf"<(?:{_NAMES})>\s*|--[\w-]*passw(?:or)?d\s+(?!-)|authorization\\*[\"']?\s*[:=,]\s*b?\\*[\"']?(?:bearer|basic)\s+)"
    r"(?!projects/)[(\[{]{0,2}b?(?:\\*'[^']+'?|\\*\"[^\"]+\"?|[^\s&'\"…]+)",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY[\s\S]*",
    "a token of a cloud or a code host": r"AIza[\w-]{30,}|ya29\.[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|GOCSPX-[\w-]{20,}|"
    r"gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{30,}|"
    r"xox[abeprs]-[\w-]{10,}",
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
