"""TLS with software that is not ours: DCMTK's tools and Orthanc, both ways, and who must not get in."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_node.dimse import scu
from dicom_node.dimse.requestor import CannotAssociate
from dicom_node.errors import DeliveryError
from dicom_node.peers import PeerConfig, PeerTLS
from tests.certificates import Authority, Issued
from tests.conftest import RunningReceiver
from tests.fakes.ct import make_ct_series
from tests.node import Node, environment
from tests.peers import Orthanc, free_port, run_orthanc, tool

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def node(authority: Authority) -> Issued:
    return authority.issue("node")


@pytest.fixture(scope="module")
def pacs(authority: Authority) -> Issued:
    return authority.issue("pacs")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_ct_series(tmp_path_factory.mktemp("ct"), shape=(30, 128, 128))


@pytest.fixture
def running(start_receiver: Callable[..., RunningReceiver], authority: Authority, node: Issued) -> RunningReceiver:
    """A receiver whose only port speaks TLS and wants a certificate."""
    pair = {"certificate": str(node.certificate), "key": str(node.key), "ca": str(authority.ca)}
    return start_receiver(receive={"port": None, "tls": {"port": 0, **pair}})


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = tool(name)
    if path is None:
        pytest.skip(f"no {name} here: tests/peers.sh installs it")
    return subprocess.run(
        [path, *arguments], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def with_tls(shown: Issued, authority: Authority) -> tuple[str, ...]:
    return ("+tls", str(shown.key), str(shown.certificate), "+cf", str(authority.ca))


def kept(running: RunningReceiver) -> dict[str, bytes]:
    found = map(pydicom.dcmread, (running.storage.path(path) for path in running.files()))
    return {ds.SOPInstanceUID: ds.PixelData for ds in found}


def pixels(files: list[Path]) -> dict[str, bytes]:
    return {ds.SOPInstanceUID: ds.PixelData for ds in map(pydicom.dcmread, files)}


def test_storescu_s_series_comes_whole_by_mutual_tls(
    running: RunningReceiver, authority: Authority, pacs: Issued, files: list[Path]
) -> None:
    port = str(running.receiver.tls_port)
    echoed = run("echoscu", *with_tls(pacs, authority), "-aec", "DICOMNODE", "localhost", port)
    assert echoed.returncode == 0, echoed.stderr
    sent = run("storescu", *with_tls(pacs, authority), "-aec", "DICOMNODE", "localhost", port, *map(str, files))
    assert sent.returncode == 0, sent.stderr
    running.receiver.stop(10.0)
    assert kept(running) == pixels(files)
    row = running.database.series(pydicom.dcmread(files[0]).SeriesInstanceUID)
    assert row is not None
    assert row["released"]


def test_who_has_no_right_certificate_is_refused_and_the_next_honest_peer_is_served(
    running: RunningReceiver, authority: Authority, other_authority: Authority, pacs: Issued
) -> None:
    to_node = ("-to", "10", "-ta", "10", "-aec", "DICOMNODE", "localhost", str(running.receiver.tls_port))
    stranger, expired = other_authority.issue("stranger"), authority.issue("expired", days=-1)
    callers = {
        "plain": (),
        "anonymous": ("+tla", "+cf", str(authority.ca)),
        "wrong CA": ("+tls", str(stranger.key), str(stranger.certificate), "+cf", str(authority.ca)),
        "expired": with_tls(expired, authority),
        "does not trust us": ("+tls", str(pacs.key), str(pacs.certificate), "+cf", str(other_authority.ca)),
    }
    for name, options in callers.items():
        done = run("echoscu", *options, *to_node)
        assert done.returncode != 0, f"{name}: {done.stdout}"
    done = run("echoscu", *with_tls(pacs, authority), *to_node)
    assert done.returncode == 0, done.stderr


def test_one_certificate_name_an_ae_title(
    start_receiver: Callable[..., RunningReceiver], authority: Authority, node: Issued, pacs: Issued
) -> None:
    pair = {"certificate": str(node.certificate), "key": str(node.key), "ca": str(authority.ca)}
    peer = {"ae_title": "PACS", "host": "127.0.0.1", "may_send": True, "certificate_names": ["pacs"]}
    running = start_receiver(
        receive={"port": None, "tls": {"port": 0, **pair}, "unknown_peers": "refuse"}, peers={"pacs": peer}
    )
    to_node = ("-aet", "PACS", "-aec", "DICOMNODE", "localhost", str(running.receiver.tls_port))
    assert run("echoscu", *with_tls(pacs, authority), *to_node).returncode == 0
    said = run("echoscu", *with_tls(authority.issue("other"), authority), *to_node)
    assert "Calling AE Title Not Recognized" in said.stderr


@contextlib.contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    path = tool("storescp")
    if path is None:
        pytest.skip("no storescp here: tests/peers.sh installs it")
    port = free_port()
    folder.mkdir()
    with subprocess.Popen(
        [path, *options, "-od", str(folder), str(port)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield port
        finally:
            process.terminate()


def once_it_listens(peer: PeerConfig) -> None:
    """storescp says nothing when it is ready: it is called until it is."""
    for _ in range(1000):
        try:
            scu.echo(peer, "NODE")
        except CannotAssociate as err:
            if "Connection refused" not in str(err):
                raise
        else:
            return
    raise AssertionError("storescp does not listen")


def test_storescp_takes_what_we_send_by_mutual_tls(
    authority: Authority, other_authority: Authority, node: Issued, pacs: Issued, files: list[Path], tmp_path: Path
) -> None:
    shown = PeerTLS(ca=authority.ca, certificate=node.certificate, key=node.key)
    with storescp(tmp_path / "got", *with_tls(pacs, authority)) as port:
        peer = PeerConfig(ae_title="ANY-SCP", host="localhost", port=port, tls=shown, response_timeout_s=10)
        once_it_listens(peer)
        assert {outcome.kind for outcome in scu.send(files, peer, "NODE")} == {"stored"}
        refusals = {
            "took the connection but not the Association|speaks TLS": None,
            "certificate from us|does it accept our certificate": PeerTLS(ca=authority.ca),
            "not trusted .*: check ca": PeerTLS(ca=other_authority.ca, certificate=node.certificate, key=node.key),
        }
        for said, tls in refusals.items():
            with pytest.raises(DeliveryError, match=said):
                scu.echo(peer.model_copy(update={"tls": tls}), "NODE")
        scu.echo(peer, "NODE")
    got = {ds.SOPInstanceUID: ds.PixelData for ds in map(pydicom.dcmread, (tmp_path / "got").iterdir())}
    assert got == pixels(files)


def test_a_plain_storescp_is_told_from_one_with_tls(authority: Authority, node: Issued, tmp_path: Path) -> None:
    shown = PeerTLS(ca=authority.ca, certificate=node.certificate, key=node.key)
    with storescp(tmp_path / "got") as port:
        peer = PeerConfig(ae_title="ANY-SCP", host="localhost", port=port, response_timeout_s=5, connect_timeout_s=5)
        once_it_listens(peer)
        with pytest.raises(CannotAssociate, match=r"speaks plain DICOM on that port|does it speak TLS on that port"):
            scu.echo(peer.model_copy(update={"tls": shown}), "NODE")


@pytest.fixture(scope="module")
def secure_orthanc(tmp_path_factory: pytest.TempPathFactory, authority: Authority, pacs: Issued) -> Iterator[Orthanc]:
    settings: dict[str, Any] = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(pacs.certificate),
        "DicomTlsPrivateKey": str(pacs.key),
        "DicomTlsTrustedCertificates": str(authority.ca),
    }
    if not Path("/usr/sbin/Orthanc").exists():
        pytest.skip("no Orthanc here: tests/peers.sh installs it")
    with run_orthanc(tmp_path_factory.mktemp("orthanc"), settings) as running:
        yield running


def test_orthanc_sends_a_study_by_tls(running: RunningReceiver, secure_orthanc: Orthanc, files: list[Path]) -> None:
    secure_orthanc.clear()
    for path in files:
        secure_orthanc.upload(path.read_bytes())
    modality = {"AET": "DICOMNODE", "Host": "localhost", "Port": running.receiver.tls_port, "UseDicomTls": True}
    secure_orthanc.put("/modalities/node", {**modality, "Timeout": 30})
    job = secure_orthanc.store("node", secure_orthanc.get("/studies"))
    assert (job["InstancesCount"], job["FailedInstancesCount"]) == (len(files), 0)
    running.receiver.stop(10.0)
    assert kept(running) == pixels(files)


def test_orthanc_takes_what_we_send_by_tls_and_nobody_else(
    secure_orthanc: Orthanc, authority: Authority, node: Issued, files: list[Path]
) -> None:
    secure_orthanc.clear()
    shown = PeerTLS(ca=authority.ca, certificate=node.certificate, key=node.key)
    peer = PeerConfig(
        ae_title="ORTHANC", host="localhost", port=secure_orthanc.dicom_port, tls=shown, response_timeout_s=20
    )
    scu.echo(peer, "NODE")
    assert {outcome.kind for outcome in scu.send(files, peer, "NODE")} == {"stored"}
    stored = (pydicom.dcmread(io.BytesIO(secure_orthanc.file(i))) for i in secure_orthanc.instances())
    assert {ds.SOPInstanceUID: ds.PixelData for ds in stored} == pixels(files)
    for tls in (None, PeerTLS(ca=authority.ca)):
        with pytest.raises(DeliveryError):
            scu.echo(peer.model_copy(update={"tls": tls}), "NODE")
    scu.echo(peer, "NODE")


def test_the_receive_role_warns_at_start_of_a_certificate_that_expires_soon(
    make_node: Callable[..., Node], authority: Authority, node: Issued, pacs: Issued
) -> None:
    soon = authority.issue("soon", days=20)
    tls = {"port": free_port(), "certificate": str(soon.certificate), "key": str(soon.key), "ca": str(authority.ca)}
    receive = {"host": "127.0.0.1", "port": None, "unknown_peers": "accept", "tls": tls}
    running = make_node(peers={}, receive=receive)
    running.start("receive")
    running.wait(lambda: "certificate expires soon" in running.log("receive"), "the warning")
    shown = PeerTLS(ca=authority.ca, certificate=pacs.certificate, key=pacs.key)
    scu.echo(PeerConfig(ae_title="DICOMNODE", host="localhost", port=tls["port"], tls=shown), "PACS")
    running.stop()
