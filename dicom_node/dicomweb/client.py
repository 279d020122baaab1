"""A peer's settings -> a dicomweb-client with its identity, CA and time limits; HTTP's errors -> what to check.

Nothing is retried here and no redirect of an upload is followed: whoever asks decides what an error means.
"""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.exceptions import NewConnectionError

from dicom_node.errors import ConfigError, DeliveryError
from dicom_node.peers import DicomWebConfig, PeerConfig

# PS3.18 8.5: a service that is busy, or behind a proxy whose backend is down, may take the same request later.
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
MEANINGS = {
    400: "it calls the request wrong",
    401: "it does not know us: check dicomweb.username and password_file, or token_file",
    403: "it does not allow us this: check what our account may do there",
    404: "there is no such service or object: check dicomweb.url",
    405: "there is no such service: check dicomweb.url",
    406: "it has no representation that we read",
    408: "it gave up waiting for us",
    409: "it conflicts with what is there",
    413: "it is too large for it",
    415: "it does not take this kind of object or Transfer Syntax",
    429: "it has too many requests just now",
    503: "it is busy just now",
}


class DicomWebError(DeliveryError):
    """A DICOMweb service did not do what it was asked. The text says what to check; `status`: HTTP's, where one came.

    refused: nothing was acted on, for certain. retry_after_s: how long the service asks us to wait.
    """

    def __init__(
        self, text: str, *, status: int | None = None, retry_after_s: float | None = None, refused: bool = False
    ) -> None:
        super().__init__(text)
        self.status, self.retry_after_s, self.refused = status, retry_after_s, refused
        self.retry_helps = status is None or status in PASSING


class _Bearer(AuthBase):
    """RFC 6750. As authentication, not as a header: requests takes it away when another host is redirected to."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def settings(peer: PeerConfig) -> DicomWebConfig:
    """The peer's `dicomweb`. Raises ConfigError where it has none."""
    if peer.dicomweb is None:
        raise ConfigError(f"{peer.ae_title} has no dicomweb: give the peer dicomweb: {{url: ...}}")
    return peer.dicomweb


@contextlib.contextmanager
def session(peer: PeerConfig) -> Iterator[requests.Session]:
    """Connections to the peer's services that know who we are. Secrets are read now, so a changed one counts.

    Raises ConfigError for a secret or a CA that cannot be read.
    """
    web = settings(peer)
    with requests.Session() as opened:
        # Else proxies, a netrc file and another CA would come from whatever environment the role was started in.
        opened.trust_env = False
        if web.username is not None and web.password_file is not None:
            # Bytes: requests would encode text as Latin-1, and RFC 7617 lets a password be UTF-8.
            password = _secret(web.password_file, "password_file")
            opened.auth = HTTPBasicAuth(web.username.encode(), password.encode())
        elif web.token_file is not None:
            opened.auth = _Bearer(_secret(web.token_file, "token_file"))
        if web.ca is not None:
            if not web.ca.is_file():
                raise ConfigError(f"{peer.ae_title}: dicomweb.ca {web.ca} is no file")
            opened.verify = str(web.ca)
        yield opened


@contextlib.contextmanager
def client(peer: PeerConfig) -> Iterator[DICOMwebClient]:
    """QIDO-RS and WADO-RS of the peer, each call to be made within `answered(peer)`."""
    with session(peer) as opened:
        url = settings(peer).url.rstrip("/")
        made = DICOMwebClient(url=url, session=opened, timeout=timeouts_s(peer), permissive_uid=True)
        made.set_http_retry_params(retry=False)
        # The library leaves out the port, and reads "[" as the host of an IPv6 address (RFC 9110 7.2: both belong).
        made.host = urlsplit(url).netloc.rpartition("@")[2]
        yield made


def service_answers(peer: PeerConfig) -> None:
    """A query for nothing: that it is answered is enough. Raises DicomWebError with what to check."""
    with client(peer) as asked, answered(peer):
        asked.search_for_studies(limit=1, search_filters={"StudyInstanceUID": "2.25.0"})


def timeouts_s(peer: PeerConfig) -> tuple[float, float]:
    """To connect; and without a byte of the answer."""
    return peer.connect_timeout_s, peer.response_timeout_s


@contextlib.contextmanager
def answered(peer: PeerConfig) -> Iterator[None]:
    """What goes wrong in the block is raised as DicomWebError, with what to check and nothing that was sent."""
    url = settings(peer).url
    try:
        yield
    except requests.HTTPError as err:
        raise _error_of(peer, err.response) from None
    except requests.exceptions.SSLError:
        text = f"{url}: its certificate is not trusted or not for this host: check dicomweb.ca and url"
        raise DicomWebError(text, refused=True) from None
    except requests.ConnectTimeout:
        raise DicomWebError(f"{url} does not answer: check url and firewall", refused=True) from None
    except requests.Timeout:
        raise DicomWebError(f"{url} did not answer within {peer.response_timeout_s:g} s") from None
    except requests.ConnectionError as err:
        text = f"{url}: no connection, or it was cut: is the peer running, and is its url right?"
        raise DicomWebError(text, refused=_never_connected(err)) from None
    except (requests.RequestException, ValueError, KeyError) as err:
        # Without its text: requests and pydicom quote the URL with its query, or what was in the answer.
        raise DicomWebError(f"{url}: its answer is none of DICOMweb ({type(err).__name__})", status=200) from None


def error_of_status(
    peer: PeerConfig, status: int, headers: requests.structures.CaseInsensitiveDict[str]
) -> DicomWebError:
    """A refusal by HTTP status."""
    meaning = MEANINGS.get(status)
    if meaning is None:
        meaning = "it redirects us: check dicomweb.url" if 300 <= status < 400 else "it failed"
    return DicomWebError(
        f"{settings(peer).url} answered {status}: {meaning}",
        status=status,
        retry_after_s=_retry_after_s(headers.get("Retry-After", "")),
        refused=status < 500 or status == 503,
    )


def _error_of(peer: PeerConfig, response: requests.Response) -> DicomWebError:
    return error_of_status(peer, response.status_code, response.headers)


def _never_connected(err: requests.ConnectionError) -> bool:
    cause = err.args[0] if err.args else None
    return isinstance(getattr(cause, "reason", cause), NewConnectionError)


def _retry_after_s(text: str) -> float | None:
    """RFC 9110 10.2.3: seconds, or a date. At most a day; None where there is none to be understood."""
    try:
        seconds = float(int(text))
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, seconds), 86400.0)


def _secret(path: Path, name: str) -> str:
    """The one line of a file. The text of an error never holds it."""
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(
            f"dicomweb.{name} {path} cannot be read ({type(err).__name__}): check its path and owner"
        ) from None
    if not text or len(text.splitlines()) != 1:
        raise ConfigError(f"dicomweb.{name} {path} must hold one line")
    return text
