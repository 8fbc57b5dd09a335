"""API keys of the embedded Supabase: random, in memory only unless they are kept in a file."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mf.errors import SupabaseError
from mf.files import written_aside

VALID_S = 7 * 86_400
KEPT = ("jwt_secret", "secret_key", "publishable_key")


def jwt(secret: str, role: str, *, valid_s: int = VALID_S, **claims: Any) -> str:
    """A JSON Web Token for ``role``, signed with HS256 (RFC 7515, 7519) and valid for ``valid_s`` seconds."""
    now = int(time.time())
    payload = {"iss": "mf-local", "role": role, "iat": now, "exp": now + valid_s, **claims}
    signed = b".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, payload))
    return b".".join([signed, _base64url(hmac.digest(secret.encode(), signed, hashlib.sha256))]).decode()


def jwt_claims(secret: str, token: str) -> dict[str, Any]:
    """The claims of a JSON Web Token of ``jwt``; empty: it has another signature, or has expired."""
    signed, _, signature = token.encode().rpartition(b".")
    if not hmac.compare_digest(_base64url(hmac.digest(secret.encode(), signed, hashlib.sha256)), signature):
        return {}
    payload = signed.rpartition(b".")[2]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    return claims if claims["exp"] > time.time() else {}


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


@dataclass(frozen=True, repr=False)
class Keys:
    """The four keys of a Supabase project: secret and publishable key, and the two legacy JWTs."""

    jwt_secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    secret_key: str = field(default_factory=lambda: f"sb_secret_{secrets.token_urlsafe(24)}")
    publishable_key: str = field(default_factory=lambda: f"sb_publishable_{secrets.token_urlsafe(24)}")
    service_role_key: str = field(init=False)
    anon_key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "service_role_key", jwt(self.jwt_secret, "service_role"))
        object.__setattr__(self, "anon_key", jwt(self.jwt_secret, "anon"))

    @classmethod
    def kept(cls, file: Path) -> "Keys":
        """The keys in ``file``, which is created if missing; only its owner may read it (mode 0600).

        Raises:
            SupabaseError: the file cannot be read or written.
        """
        try:
            if not file.exists():
                new = cls()
                file.parent.mkdir(parents=True, exist_ok=True)
                with written_aside(file) as aside:
                    aside.touch(mode=0o600)
                    aside.write_text(json.dumps({name: getattr(new, name) for name in KEPT}))
            found = json.loads(file.read_text())
            return cls(**{name: str(found[name]) for name in KEPT})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SupabaseError(f"{file}: cannot read or create the keys ({type(error).__name__}): delete it") from None

    def tokens(self) -> dict[str, str]:
        """The JWT that the gateway sends to PostgREST for each API key."""
        return {
            self.secret_key: self.service_role_key,
            self.service_role_key: self.service_role_key,
            self.publishable_key: self.anon_key,
            self.anon_key: self.anon_key,
        }
