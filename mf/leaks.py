"""Forms of secrets: recognising them in a text, and hiding them."""

import re

# No \b before a token: it may stand within a longer word.
FORMS = {
    "a Supabase secret key": r"(?i:sb_secret_)[A-Za-z0-9]\w*",
    "a Supabase access token": r"sbp_(?:oauth_)?[A-Za-z0-9]{8,}",
    "a JSON Web Token": r"eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*",
    "an address with a password": r"(?<=://)[^/\s@:]*:[^\s@]+(?=@)",
    "a text with a password": r"(?i)(?<=password=)[^\s&'\"]+|(?<=password = )[^\s&'\"]+|(?<=pwd=)[^\s&'\"]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY[\s\S]*",
    "a Google API key or token": r"AIza[\w-]{30,}|ya29\.[\w-]{10,}",
}
HIDDEN = "…"


def kind_of(text: str) -> str:
    """What kind of secret ``text`` holds, empty if none."""
    return next((kind for kind, pattern in FORMS.items() if re.search(pattern, text)), "")


def hidden(text: str) -> str:
    """``text`` with each secret in it replaced by an ellipsis."""
    for pattern in FORMS.values():
        text = re.sub(pattern, HIDDEN, text)
    return text
