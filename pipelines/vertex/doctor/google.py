"""Google's REST APIs, as the person who runs this."""

from typing import Any, NamedTuple

import google.auth
import requests
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2.credentials import Credentials

from pipelines.vertex.doctor.finding import Finding, HaltError, missing, ok, unknown

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TIMEOUT_S = 8.0
LOGIN = "gcloud auth application-default login"


class Answer(NamedTuple):
    """An API's answer; ``body`` is empty when it is no JSON object."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        error = self.body.get("error")
        said = error.get("message") if isinstance(error, dict) else None
        return f"{self.status} {said or ''}".strip()

    @property
    def disabled(self) -> str | None:
        """The API that would have to be enabled first."""
        error = self.body.get("error")
        details = error.get("details", []) if isinstance(error, dict) else []
        reasons = [detail for detail in details if detail.get("reason") == "SERVICE_DISABLED"]
        return str(reasons[0].get("metadata", {}).get("service", "")) if reasons else None


class Google:
    """Asks as the application default credentials say.

    Args:
        project: what the requests are counted for.
        address: of an API's host.

    Attributes:
        online: something answered.
    """

    def __init__(self, project: str, address: str = "https://{host}") -> None:
        self.project, self._address = project, address
        self._session: AuthorizedSession | None = None
        self.online = False

    def sign_in(self) -> Finding:
        """Finds the credentials and tries them."""
        try:
            credentials, _ = google.auth.default(scopes=[SCOPE])
        except DefaultCredentialsError:
            return missing("none were found that can be read", LOGIN)
        # A person's own credentials belong to no project, and most of these APIs want to know one.
        if isinstance(credentials, Credentials) and self.project and not credentials.quota_project_id:
            credentials = credentials.with_quota_project(self.project)
        try:
            with requests.Session() as session:
                credentials.refresh(_timed(session))  # type: ignore[no-untyped-call]
        except TransportError:
            raise HaltError("no network (Google does not answer)") from None
        except GoogleAuthError:
            # Not shown: what it says may hold parts of a token.
            return missing("they are not valid any more", LOGIN)
        self._session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        self.online = True
        return ok(getattr(credentials, "service_account_email", None) or "your own")

    def ask(self, method: str, host: str, path: str, **options: Any) -> Answer:
        """One request; ``options`` are those of ``requests``.

        Raises:
            HaltError: there are no credentials, or no network.
        """
        if self._session is None:
            raise HaltError("there are no credentials")
        try:
            response = self._session.request(  # type: ignore[no-untyped-call]
                method, self._address.format(host=host) + path, timeout=TIMEOUT_S, **options
            )
        except (GoogleAuthError, requests.RequestException):
            raise HaltError(f"no network ({host} does not answer)") from None
        try:
            body = response.json()
        except ValueError:
            body = {}
        return Answer(response.status_code, body if isinstance(body, dict) else {})

    def refused(self, answer: Answer) -> Finding:
        """What an answer means that is none."""
        if answer.disabled is not None:
            return missing(f"the API {answer.disabled} is not enabled", self.enable(answer.disabled))
        return unknown(f"Google does not say ({answer.message})")

    def enable(self, *apis: str) -> str:
        return f"gcloud services enable {' '.join(apis)} --project={self.project}"


def _timed(session: requests.Session) -> Any:
    request = Request(session)

    def ask(*args: Any, **options: Any) -> Any:
        return request(*args, **{**options, "timeout": TIMEOUT_S})

    return ask
