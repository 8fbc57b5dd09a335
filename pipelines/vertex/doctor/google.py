"""Client of Google's REST APIs, with the credentials of the person who runs the command."""

from typing import Any, NamedTuple

import google.auth
import requests
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2.credentials import Credentials

from pipelines.doctor.finding import Finding, HaltError, missing, ok, unknown
from pipelines.vertex.grants import LOGIN

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TIMEOUT_S = 8.0


class Response(NamedTuple):
    """An API's response: status, and JSON body (empty when the body is not a JSON object)."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """The status and the error message."""
        error = self.body.get("error")
        message = error.get("message") if isinstance(error, dict) else None
        return f"{self.status} {message or ''}".strip()

    @property
    def disabled_api(self) -> str | None:
        """The API that the error says is not enabled, if that is the error."""
        error = self.body.get("error")
        details = error.get("details", []) if isinstance(error, dict) else []
        reasons = [detail for detail in details if detail.get("reason") == "SERVICE_DISABLED"]
        return str(reasons[0].get("metadata", {}).get("service", "")) if reasons else None


class Google:
    """Client of Google's REST APIs, signed in with the application default credentials.

    Args:
        project: quota project of the requests.
        url: URL of an API, with ``{host}`` in place of its host name.

    Attributes:
        online: a server has answered.
    """

    def __init__(self, project: str, url: str = "https://{host}") -> None:
        self.project, self._url = project, url
        self._session: AuthorizedSession | None = None
        self.online = False

    def sign_in(self) -> Finding:
        """Finds the credentials and gets a token with them."""
        try:
            credentials, _ = google.auth.default(scopes=[SCOPE])
        except DefaultCredentialsError:
            return missing("no readable credentials were found", LOGIN)
        # A person's own credentials belong to no project, and most of these APIs require a quota project.
        if isinstance(credentials, Credentials) and self.project and not credentials.quota_project_id:
            credentials = credentials.with_quota_project(self.project)
        try:
            with requests.Session() as session:
                credentials.refresh(_with_timeout(session))  # type: ignore[no-untyped-call]
        except TransportError:
            raise HaltError("no network (Google does not answer)") from None
        except GoogleAuthError:
            # The error is not shown: it may hold parts of a token.
            return missing("the credentials have expired or were revoked", LOGIN)
        self._session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        self.online = True
        return ok(getattr(credentials, "service_account_email", None) or "your own")

    def request(self, method: str, host: str, path: str, **options: Any) -> Response:
        """Sends one request; ``options`` are those of ``requests``.

        Raises:
            HaltError: there are no credentials, or there is no network.
        """
        if self._session is None:
            raise HaltError("there are no credentials")
        try:
            response = self._session.request(  # type: ignore[no-untyped-call]
                method, self._url.format(host=host) + path, timeout=TIMEOUT_S, **options
            )
        except (GoogleAuthError, requests.RequestException):
            raise HaltError(f"no network ({host} does not answer)") from None
        try:
            body = response.json()
        except ValueError:
            body = {}
        return Response(response.status_code, body if isinstance(body, dict) else {})

    def error(self, response: Response) -> Finding:
        """Turns an error response into a finding."""
        if response.disabled_api is not None:
            return missing(
                f"the API {response.disabled_api} is not enabled", self.enable_command(response.disabled_api)
            )
        return unknown(f"Google answered {response.message}")

    def enable_command(self, *apis: str) -> str:
        """The command that enables APIs."""
        return f"gcloud services enable {' '.join(apis)} --project={self.project}"


def _with_timeout(session: requests.Session) -> Any:
    """A transport for google.auth with our time limit in place of its two minutes."""
    request = Request(session)

    def send(*args: Any, **options: Any) -> Any:
        return request(*args, **{**options, "timeout": TIMEOUT_S})

    return send
