"""STOW-RS: each object has an outcome, whatever the service says; nothing counts as stored that it did not store."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_node.dicomweb import stow
from dicom_node.dimse.scu import Outcome
from dicom_node.peers import PeerConfig
from dicom_node.sending import send
from tests.fakes.instances import fake_instance
from tests.fakes.web import Asked, Said, serving
from tests.peers import Orthanc, free_port

JSON = {"Content-Type": "application/dicom+json"}


def peer(url: str, **web: Any) -> PeerConfig:
    return PeerConfig(
        ae_title="PACS",
        host="127.0.0.1",
        deliver_by="stow_rs",
        dicomweb={"url": url, **web},
        connect_timeout_s=2,
        response_timeout_s=1,
    )


def files(folder: Path, count: int = 2) -> list[Path]:
    return [fake_instance(n).write(folder) for n in range(1, count + 1)]


def answer(*, stored: dict[str, int] | None = None, failed: dict[str, int] | None = None) -> bytes:
    def items(found: dict[str, int], tag: str) -> dict[str, Any]:
        return {
            "vr": "SQ",
            "Value": [
                {
                    "00081155": {"vr": "UI", "Value": [uid]},
                    **({tag: {"vr": "US", "Value": [reason]}} if reason else {}),
                }
                for uid, reason in found.items()
            ],
        }

    sequences = {"00081199": items(stored or {}, "00081196"), "00081198": items(failed or {}, "00081197")}
    return json.dumps({tag: sequence for tag, sequence in sequences.items() if sequence["Value"]}).encode()


def parts(asked: Asked) -> list[bytes]:
    """The files of a request, by its own boundary."""
    boundary = re.search(r"boundary=(\S+)", asked.headers["Content-Type"])
    assert boundary is not None
    pieces = asked.body.split(b"--" + boundary[1].encode())
    assert pieces[-1].startswith(b"--")
    return [piece.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for piece in pieces[1:-1]]


def sent(paths: list[Path], say: Callable[[Asked], Said | None]) -> list[Outcome]:
    with serving(say) as url:
        return list(send(paths, peer(url), "NODE"))


def kinds(outcomes: list[Outcome]) -> list[str]:
    return [outcome.kind for outcome in outcomes]


def test_files_go_byte_for_byte_in_one_request(tmp_path: Path) -> None:
    asked: list[Asked] = []
    paths = files(tmp_path)
    stored = answer(stored={path.stem: 0 for path in paths})
    outcomes = sent(paths, lambda request: asked.append(request) or Said(200, stored, JSON))
    assert [(o.path, o.kind, o.status, o.message) for o in outcomes] == [(p, "stored", 0, "") for p in paths]
    [request] = asked
    assert (request.method, request.path) == ("POST", "/dicom-web/studies")
    assert 'type="application/dicom"' in request.headers["Content-Type"]
    assert parts(request) == [path.read_bytes() for path in paths]


def test_what_failed_alone_has_the_outcome_of_its_reason(tmp_path: Path) -> None:
    paths = files(tmp_path, 5)
    reasons = dict(zip([p.stem for p in paths[1:]], (0xA700, 0xC000, 0x0122, 0x0111), strict=True))
    body = answer(stored={paths[0].stem: 0xB000}, failed=reasons)
    outcomes = sent(paths, lambda request: Said(202, body, JSON))
    assert kinds(outcomes) == ["stored", "retry", "refused", "refused", "stored"]
    assert [outcome.status for outcome in outcomes] == [0xB000, *reasons.values()]
    assert outcomes[0].message == "stored, some elements coerced"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"", ["stored", "stored"]),
        (200, b"<NativeDicomModel/>", ["stored", "stored"]),
        (202, b"", ["unknown", "unknown"]),
        (202, b"not json", ["unknown", "unknown"]),
        (200, answer(stored={"1.2.3": 0}), ["unknown", "unknown"]),
        (409, b"", ["refused", "refused"]),
    ],
)
def test_what_the_answer_does_not_name_is_not_taken_for_stored(
    tmp_path: Path, status: int, body: bytes, expected: list[str]
) -> None:
    assert kinds(sent(files(tmp_path), lambda request: Said(status, body, JSON))) == expected


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (401, "refused", "check dicomweb.username"),
        (403, "refused", "does not allow"),
        (404, "retry", "check dicomweb.url"),
        (302, "retry", "redirects us"),
        (413, "refused", "too large"),
        (429, "retry", "too many requests"),
        (500, "unknown", "it failed"),
        (503, "retry", "busy"),
        (504, "unknown", "it failed"),
    ],
)
def test_a_status_becomes_an_outcome_and_quotes_nobody(tmp_path: Path, status: int, kind: str, text: str) -> None:
    said = Said(status, b"Canary^Secret", {"Location": "/elsewhere", "Retry-After": "40"})
    outcomes = sent(files(tmp_path), lambda request: said)
    assert kinds(outcomes) == [kind, kind]
    assert all(text in outcome.message and "Canary" not in outcome.message for outcome in outcomes)
    assert {outcome.retry_after_s for outcome in outcomes} == {40.0}
    assert {outcome.status for outcome in outcomes} == {None}


def test_a_silence_is_unknown_and_a_closed_port_is_not(tmp_path: Path) -> None:
    paths = files(tmp_path)
    assert kinds(sent(paths, lambda request: None)) == ["unknown", "unknown"]
    assert kinds(list(stow.send(paths, peer(f"http://127.0.0.1:{free_port()}")))) == ["retry", "retry"]


def test_large_sets_are_split_and_a_dead_service_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = files(tmp_path, 5)
    monkeypatch.setattr(stow, "_LONGEST_BATCH_BYTES", 2 * paths[0].stat().st_size)
    asked: list[Asked] = []
    assert kinds(sent(paths, lambda request: asked.append(request) or Said(200))) == ["stored"] * 5
    assert [len(parts(request)) for request in asked] == [2, 2, 1]
    asked.clear()
    assert kinds(sent(paths, lambda request: asked.append(request) or Said(500))) == ["unknown"] * 2 + ["retry"] * 3
    assert len(asked) == 1


def test_of_a_batch_that_is_too_large_the_small_ones_go_through(tmp_path: Path) -> None:
    paths = files(tmp_path, 3)
    large = paths[1].stem.encode()

    def say(request: Asked) -> Said:
        contents = parts(request)
        return Said(413 if len(contents) > 1 or large in contents[0] else 200)

    assert kinds(sent(paths, say)) == ["stored", "refused", "stored"]


def test_a_compressed_image_is_decoded_for_a_service_that_reads_none(shared_data: Path) -> None:
    folder = shared_data / "dicom_edge_cases" / "ct_transfer_syntaxes"
    compressed = next(folder.glob("*1.2.840.10008.1.2.4.80.dcm"))
    plain = next(folder.glob("*1.2.840.10008.1.2.1.dcm"))
    for refusal in (Said(415), None):
        came: list[bytes] = []

        def say(request: Asked, refusal: Said | None = refusal, came: list[bytes] = came) -> Said:
            [content] = parts(request)
            if b"1.2.840.10008.1.2.4.80" in content[:1000]:
                uid = pydicom.dcmread(compressed).SOPInstanceUID
                return refusal or Said(409, answer(failed={uid: 0xC122}), JSON)
            came.append(content)
            return Said(200)

        assert kinds(sent([compressed], say)) == ["stored"]
        [content] = came
        arrived = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))
        assert arrived.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert arrived.PixelData == pydicom.dcmread(plain).pixel_array.tobytes()


def test_what_cannot_be_decoded_is_refused_with_its_reason(shared_data: Path) -> None:
    folder = shared_data / "dicom_edge_cases" / "ct_transfer_syntaxes"
    [path] = folder.glob("*1.2.840.10008.1.2.4.51.dcm")
    [outcome] = sent([path], lambda request: Said(415))
    assert outcome.kind == "refused"
    assert "cannot be decoded here" in outcome.message


def test_files_that_are_none_and_secrets_that_are_gone_are_said_so(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    good = files(tmp_path, 1)
    with serving(lambda request: Said(200)) as url:
        outcomes = list(stow.send([tmp_path / "text.dcm", *good, tmp_path / "gone.dcm"], peer(url)))
        assert kinds(outcomes) == ["refused", "stored", "refused"]
        [outcome] = stow.send(good, peer(url, token_file=tmp_path / "no-token"))
    assert outcome.kind == "retry", "it goes on once the file is there"
    assert "token_file" in outcome.message


@pytest.mark.peers
def test_orthanc_stores_what_is_sent_and_says_what_it_cannot(tmp_path: Path, orthanc: Orthanc) -> None:
    paths = files(tmp_path, 3)
    target = peer(f"{orthanc.url}/dicom-web")
    assert kinds(list(stow.send(paths, target))) == ["stored"] * 3
    assert {orthanc.file(one) for one in orthanc.instances()} == {path.read_bytes() for path in paths}
    assert kinds(list(stow.send(paths, target))) == ["stored"] * 3, "again: the same"
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(paths[0].read_bytes()[:400])
    [outcome] = stow.send([broken], target)
    assert outcome.kind != "stored"
