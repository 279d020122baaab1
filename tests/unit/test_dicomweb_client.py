"""How a peer's DICOMweb services are reached, and what their failures are called."""

from __future__ import annotations

import base64
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from dicom_node.dicomweb.client import DicomWebError, answered, client
from dicom_node.errors import ConfigError
from dicom_node.peers import PeerConfig
from tests.fakes.web import Asked, Said, serving
from tests.peers import free_port

NOTHING = Said(204)


def peer(url: str, **web: Any) -> PeerConfig:
    return PeerConfig(
        ae_title="PACS", host="127.0.0.1", dicomweb={"url": url, **web}, connect_timeout_s=2, response_timeout_s=2
    )


def search(asked_of: PeerConfig, **keys: str) -> Any:
    with client(asked_of) as web, answered(asked_of):
        return web.search_for_studies(search_filters=keys)


def failure(asked_of: PeerConfig) -> DicomWebError:
    with pytest.raises(DicomWebError) as caught:
        search(asked_of, PatientID="SECRET-77")
    assert "SECRET-77" not in str(caught.value)
    return caught.value


def test_a_password_is_read_from_its_file_and_sent_as_utf_8(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("pässword\n")
    asked: list[Asked] = []
    with serving(lambda request: asked.append(request) or NOTHING) as url:
        search(peer(url, username="node", password_file=tmp_path / "password"))
    assert base64.b64decode(asked[0].headers["Authorization"].removeprefix("Basic ")).decode() == "node:pässword"


def test_a_token_is_read_anew_each_time(tmp_path: Path) -> None:
    asked: list[Asked] = []
    with serving(lambda request: asked.append(request) or NOTHING) as url:
        for token in ("one", "two"):
            (tmp_path / "token").write_text(token)
            search(peer(url, token_file=tmp_path / "token"))
    assert [request.headers["Authorization"] for request in asked] == ["Bearer one", "Bearer two"]


def test_host_names_the_port_too() -> None:
    asked: list[Asked] = []
    with serving(lambda request: asked.append(request) or NOTHING) as url:
        search(peer(url + "/"))
    assert asked[0].headers["Host"] == url.split("/")[2]
    assert asked[0].path == "/dicom-web/studies"


def test_an_environment_with_a_proxy_and_a_netrc_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    asked: list[Asked] = []
    with serving(lambda request: asked.append(request) or NOTHING) as url:
        search(peer(url))
    assert "Authorization" not in asked[0].headers


@pytest.mark.parametrize("content", [None, "", "two\nlines", b"\xff\xfe"])
def test_a_secret_that_cannot_be_read_is_named_without_its_text(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"dicomweb\.token_file") as caught:
        search(peer("http://127.0.0.1:9", token_file=file))
    assert "lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "text", "again"),
    [
        (401, "check dicomweb.username and password_file, or token_file", False),
        (403, "does not allow us", False),
        (404, "check dicomweb.url", False),
        (429, "too many requests", True),
        (500, "it failed", True),
        (503, "busy", True),
    ],
)
def test_a_status_says_what_to_check_and_whether_to_try_again(status: int, text: str, again: bool) -> None:
    asked: list[Asked] = []
    with serving(lambda request: asked.append(request) or Said(status, b"SECRET-77 is unknown")) as url:
        error = failure(peer(url))
    assert text in str(error)
    assert (error.status, error.retry_helps) == (status, again)
    assert len(asked) == 1, "nothing is asked twice behind our back"


@pytest.mark.parametrize(
    ("said", "expected"), [("17", 17.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("9" * 9, 86400.0)]
)
def test_how_long_to_wait_is_read_in_both_forms(said: str, expected: float | None) -> None:
    with serving(lambda request: Said(503, headers={"Retry-After": said})) as url:
        assert failure(peer(url)).retry_after_s == expected


def test_an_answer_that_is_no_dicomweb_is_an_error_without_its_text() -> None:
    page = Said(200, b"<html>SECRET-77</html>", {"Content-Type": "text/html"})
    with serving(lambda request: page) as url:
        error = failure(peer(url))
    assert "none of DICOMweb" in str(error)
    assert not error.retry_helps


def test_a_closed_port_and_a_cut_connection_are_told_apart_from_a_silence() -> None:
    closed = failure(peer(f"http://127.0.0.1:{free_port()}/dicom-web"))
    assert "is the peer running" in str(closed)
    with serving(lambda request: None) as url:
        cut = failure(peer(url))
    assert "cut" in str(cut)
    ended = threading.Event()

    def silent_until_ended(_: Asked) -> None:
        ended.wait(20)

    with serving(silent_until_ended) as url:
        silent = failure(peer(url))
        ended.set()
    assert "did not answer within 2 s" in str(silent)
    assert all(error.retry_helps and error.status is None for error in (closed, cut, silent))


def test_a_service_without_tls_behind_an_https_url_is_named_so() -> None:
    with serving(lambda request: NOTHING) as url:
        error = failure(peer(url.replace("http:", "https:")))
    assert "certificate" in str(error) or "no connection" in str(error)


def test_a_ca_that_is_no_file_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    with socket.socket(), pytest.raises(ConfigError, match=r"dicomweb\.ca"):
        search(peer("https://127.0.0.1:9", ca=tmp_path / "nothing.pem"))


def test_a_peer_without_dicomweb_is_told_so() -> None:
    plain = PeerConfig(ae_title="PACS", host="127.0.0.1", port=104)
    with pytest.raises(ConfigError, match="has no dicomweb"), client(plain):
        pass
