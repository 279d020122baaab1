"""TLS both ways on loopback: who gets in, what is said to who does not, and that images travel whole."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node.check import check
from dicom_node.config import Config
from dicom_node.dimse import scu
from dicom_node.dimse.requestor import CannotAssociate, Rejected, associate
from dicom_node.errors import ConfigError
from dicom_node.peers import PeerConfig, PeerTLS
from tests.certificates import Authority, Issued
from tests.conftest import RunningReceiver
from tests.fakes.instances import SERIES, fake_instance
from tests.peers import free_port
from tests.raw import associate_rq, echo_command, p_data

pytestmark = pytest.mark.usefixtures("no_leaked_threads")

Start = Callable[..., RunningReceiver]
CT = [(str(CTImageStorage), [str(ExplicitVRLittleEndian)])]


@pytest.fixture(scope="module")
def node(authority: Authority) -> Issued:
    return authority.issue("node.example")


@pytest.fixture(scope="module")
def scanner(authority: Authority) -> Issued:
    return authority.issue("scanner.example", also="DNS:ct1.example")


@pytest.fixture
def secure(start_receiver: Start, authority: Authority, node: Issued) -> Callable[..., RunningReceiver]:
    """`secure(client_certificate="none", receive={...})`: a receiver with a TLS port, and no other unless told."""

    def start(
        receive: dict[str, Any] | None = None, peers: dict[str, Any] | None = None, **tls: Any
    ) -> RunningReceiver:
        files = {"certificate": str(node.certificate), "key": str(node.key), "ca": str(authority.ca)}
        settings = {"port": None, "tls": {"port": 0, **files, **tls}, **(receive or {})}
        return start_receiver(receive=settings, peers=peers or {})

    return start


@pytest.fixture
def shown(authority: Authority, scanner: Issued) -> dict[str, Any]:
    """What a peer's tls section says for a caller that shows the scanner's certificate."""
    return {"ca": authority.ca, "certificate": scanner.certificate, "key": scanner.key}


def refused(peer: PeerConfig, said: str, calling_ae: str = "SCANNER") -> None:
    with pytest.raises(CannotAssociate, match=said):
        scu.echo(peer, calling_ae)


def wait_for_log(caplog: pytest.LogCaptureFixture, why: str) -> None:
    """The peer may know before the log does."""
    deadline = time.monotonic() + 10
    while not any(why in vars(record).get("why", "") for record in caplog.records):
        assert time.monotonic() < deadline, [vars(record).get("why") for record in caplog.records]
        time.sleep(0.01)


# -- who gets in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_images_travel_whole_with_both_certificates(secure: Start, shown: dict[str, Any], version: str) -> None:
    running = secure(min_version=version)
    fakes = [fake_instance(n, pixels=os.urandom(2 * size)) for n, size in enumerate([1, 8000, 70_000, 600_000] * 5)]
    with associate(running.secure_peer(**shown), "SCANNER", CT) as requested:
        for fake in fakes:
            assert requested.store(1, fake.sop_class_uid, fake.sop_instance_uid, fake.data_set)[0] == 0x0000
    assert len(running.files()) == len(fakes)
    for fake in fakes:
        row = running.database.instance(fake.sop_instance_uid)
        assert row is not None
        assert running.storage.path(row["path"]).read_bytes().endswith(fake.data_set)


def test_a_client_of_tls_1_2_is_served_beside_one_of_1_3(secure: Start, shown: dict[str, Any]) -> None:
    running = secure()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with raw_tls(running, shown, version) as line:
            assert line.version() == {0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}[version]
            line.sendall(associate_rq())
            assert line.recv(1) == b"\x02"


def test_an_anonymous_caller_is_refused_and_served_where_none_is_asked_for(
    secure: Start, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    strict = secure()
    refused(strict.secure_peer(ca=authority.ca), "wants a certificate from us")
    wait_for_log(caplog, "shows no client certificate")
    strict.receiver.stop(0.0)
    optional = secure(client_certificate="optional")
    scu.echo(optional.secure_peer(ca=authority.ca), "SCANNER")
    optional.receiver.stop(0.0)
    open_to_all = secure(client_certificate="none", ca=None)
    scu.echo(open_to_all.secure_peer(ca=authority.ca), "SCANNER")


def test_certificates_of_strangers_and_expired_ones_are_refused_and_the_next_honest_peer_is_served(
    secure: Start,
    authority: Authority,
    other_authority: Authority,
    shown: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = secure()
    stranger = other_authority.issue("stranger")
    refused(
        running.secure_peer(ca=authority.ca, certificate=stranger.certificate, key=stranger.key),
        "does not trust our certificate's CA",
    )
    expired = authority.issue("expired.example", days=-1)
    # Our own side would not even show it: a peer that does not look is played by plain TLS.
    with raw_tls(running, {"ca": authority.ca, "certificate": expired.certificate, "key": expired.key}) as line:
        assert not answered(line)
    wait_for_log(caplog, "certificate has expired")
    scu.echo(running.secure_peer(**shown), "SCANNER")


def test_a_plain_caller_on_the_tls_port_is_refused_and_told_what_it_met(secure: Start, shown: dict[str, Any]) -> None:
    running = secure()
    plain = running.peer.model_copy(update={"port": running.receiver.tls_port})
    refused(plain, "speaks TLS: give the peer a tls section|does a DICOM node listen there")
    scu.echo(running.secure_peer(**shown), "SCANNER")


def test_both_ports_may_be_open(secure: Start, shown: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    running = secure(receive={"port": 0})
    scu.echo(running.peer, "SCANNER")
    scu.echo(running.secure_peer(**shown), "SCANNER")
    refused(running.secure_peer(**shown).model_copy(update={"port": running.port}), "speaks plain DICOM on that port")
    wait_for_log(caplog, "speaks TLS on the plain port")


def test_with_the_plain_port_off_nothing_else_listens(secure: Start) -> None:
    running = secure()
    assert running.port == running.receiver.tls_port


def test_an_ae_title_with_certificate_names_is_only_for_its_certificate(
    secure: Start, authority: Authority, shown: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ct = {"ae_title": "SCANNER", "host": "127.0.0.1", "may_send": True, "certificate_names": ["CT1.example"]}
    running = secure(receive={"port": 0, "unknown_peers": "refuse"}, peers={"ct": ct}, client_certificate="optional")
    scu.echo(running.secure_peer(**shown), "SCANNER")
    other = authority.issue("pacs.example")
    for peer in (
        running.secure_peer(ca=authority.ca, certificate=other.certificate, key=other.key),
        running.secure_peer(ca=authority.ca),
        running.peer,
    ):
        refused(peer, "does not know us as SCANNER")
    assert sum("no client certificate with one of its names" in r.getMessage() for r in caplog.records) == 3


def test_a_slow_handshake_holds_nobody_up_and_ends_in_time(secure: Start, shown: dict[str, Any]) -> None:
    running = secure(receive={"associate_timeout_s": 1.5})
    assert running.receiver.tls_port is not None
    with socket.create_connection(("127.0.0.1", running.receiver.tls_port), timeout=20) as slow:
        slow.sendall(b"\x16\x03\x01")
        before = time.monotonic()
        scu.echo(running.secure_peer(**shown), "SCANNER")
        assert time.monotonic() - before < 1.5
        assert closed(slow)


def test_a_request_that_drips_within_tls_ends_in_time(secure: Start, shown: dict[str, Any]) -> None:
    running = secure(receive={"associate_timeout_s": 1.0})
    with raw_tls(running, shown) as line:
        stop = threading.Event()

        def drip() -> None:
            for byte in associate_rq():
                if stop.wait(0.1):
                    return
                try:
                    line.sendall(bytes([byte]))
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        before = time.monotonic()
        assert closed(line)
        assert time.monotonic() - before < 15
        stop.set()
        dripping.join()


def test_stop_ends_a_handshake(secure: Start) -> None:
    running = secure(receive={"associate_timeout_s": 60})
    assert running.receiver.tls_port is not None
    with socket.create_connection(("127.0.0.1", running.receiver.tls_port), timeout=20) as slow:
        slow.sendall(b"\x16\x03\x01")
        before = time.monotonic()
        running.receiver.stop(0.0)
        assert time.monotonic() - before < 20
        assert closed(slow)


def test_a_half_record_does_not_keep_the_association_from_its_answer(secure: Start, shown: dict[str, Any]) -> None:
    """What can be read from the line need not be readable as data: the C-ECHO's answer must not wait for the rest."""
    running = secure()
    with PartialTLS(running, shown) as peer:
        peer.send(associate_rq())
        assert peer.recv_pdu()[0] == 0x02
        records = peer.encrypt(p_data(0x03, echo_command(), 3))
        next_records = peer.encrypt(p_data(0x03, echo_command(), 3))
        peer.line.sendall(records + next_records[:20])
        assert peer.recv_pdu()[0] == 0x04
        peer.line.sendall(next_records[20:])
        assert peer.recv_pdu()[0] == 0x04


# -- whom we call --------------------------------------------------------------------------------------


def test_each_reason_for_no_tls_says_what_to_check(
    secure: Start, authority: Authority, other_authority: Authority, shown: dict[str, Any], tmp_path: Path
) -> None:
    running = secure()
    refused(running.secure_peer(**{**shown, "ca": other_authority.ca}), "not trusted .*check ca of its tls section")
    missing = tmp_path / "none.pem"
    refused(running.secure_peer(**{**shown, "ca": missing}), r"none.pem cannot be read")
    old = authority.issue("old.example", days=-1)
    refused(running.secure_peer(**{**shown, "certificate": old.certificate, "key": old.key}), "expired on .*: renew it")


def test_a_peer_must_have_a_certificate_of_its_host(
    start_receiver: Start, authority: Authority, shown: dict[str, Any]
) -> None:
    elsewhere = authority.issue("elsewhere", also="DNS:elsewhere.example")
    files = {"certificate": str(elsewhere.certificate), "key": str(elsewhere.key), "ca": str(authority.ca)}
    running = start_receiver(receive={"port": None, "tls": {"port": 0, **files}})
    refused(running.secure_peer(**shown), "does not name 127.0.0.1: check host, or set check_host: false")
    scu.echo(running.secure_peer(**shown, check_host=False), "SCANNER")


def test_a_peer_with_an_expired_certificate_is_not_called(authority: Authority, shown: dict[str, Any]) -> None:
    old = authority.issue("gone.example", days=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(old.certificate, old.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=_shake_hands_once, args=(listener, context))
        serving.start()
        peer = PeerConfig(ae_title="P", host="127.0.0.1", port=listener.getsockname()[1], tls=PeerTLS(**shown))
        refused(peer, "its certificate is expired: it must be renewed there")
        serving.join()


def _shake_hands_once(listener: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listener.accept()
    with connection:
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            return


def test_a_peer_that_answers_tls_with_silence_is_given_up(shown: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = PeerConfig(
            ae_title="P", host="127.0.0.1", port=listener.getsockname()[1], tls=PeerTLS(**shown), connect_timeout_s=0.5
        )
        refused(peer, "took the connection but no TLS: does it speak TLS on that port")


def test_files_are_sent_over_tls_and_what_cannot_be_sent_is_kept_for_later(
    secure: Start, shown: dict[str, Any], other_authority: Authority, tmp_path: Path
) -> None:
    running = secure()
    paths = [fake_instance(n).write(tmp_path / "files") for n in range(3)]
    wrong = running.secure_peer(**{**shown, "ca": other_authority.ca})
    assert {outcome.kind for outcome in scu.send(paths, wrong, "SCANNER")} == {"retry"}
    assert {outcome.kind for outcome in scu.send(paths, running.secure_peer(**shown), "SCANNER")} == {"stored"}
    running.settle()
    assert len(running.database.instances(SERIES)) == 3


# -- check ---------------------------------------------------------------------------------------------


def test_check_tells_how_long_certificates_are_valid(
    node_config: Callable[..., Config], authority: Authority, node: Issued
) -> None:
    soon, old = authority.issue("soon.example", days=10), authority.issue("past.example", days=-1)
    pacs = {"ae_title": "P", "host": "127.0.0.1", "port": free_port(), "connect_timeout_s": 1}

    def pair(issued: Issued) -> dict[str, str]:
        return {"certificate": str(issued.certificate), "key": str(issued.key), "ca": str(authority.ca)}

    config = node_config(
        receive={"port": None, "tls": {"port": free_port(), **pair(node)}},
        peers={"soon": {**pacs, "tls": pair(soon)}, "past": {**pacs, "tls": pair(old)}},
    )
    items = {item.name: item for item in check(config)}
    assert items["receive.tls.certificate"].ok
    assert "(364 days)" in items["receive.tls.certificate"].text
    assert items["peers.soon.tls.certificate"].ok
    assert "expires in 9 days: renew it" in items["peers.soon.tls.certificate"].text
    assert not items["peers.past.tls.certificate"].ok
    assert "expired on" in items["peers.past.tls.certificate"].text
    assert "is free" in items["tls port"].text
    assert items["port"].text == "off: receive.port is null"


def test_check_knows_this_node_on_its_tls_port_from_another_program(
    secure: Start, node_config: Callable[..., Config], shown: dict[str, Any]
) -> None:
    running = secure()
    tls = running.config.receive.tls
    assert tls is not None
    settings = {**tls.model_dump(), "port": running.receiver.tls_port}
    peers = {"here": running.secure_peer(**shown).model_dump(by_alias=True)}
    items = {item.name: item for item in check(node_config(receive={"port": None, "tls": settings}, peers=peers))}
    assert items["tls port"].ok, items["tls port"].text
    assert "this node, if it runs already" in items["tls port"].text
    assert items["peer here"].ok, items["peer here"].text
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings["port"] = other.getsockname()[1]
        items = {item.name: item for item in check(node_config(receive={"port": None, "tls": settings}))}
        assert not items["tls port"].ok
        assert "in use by another program" in items["tls port"].text


def test_a_receiver_with_a_wrong_certificate_does_not_start(
    secure: Start, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    old = authority.issue("start.example", days=-1)
    with pytest.raises(ConfigError, match=r"receive\.tls\.certificate: .* expired on"):
        secure(certificate=str(old.certificate), key=str(old.key))


def test_rejection_reaches_a_caller_over_tls(secure: Start, shown: dict[str, Any]) -> None:
    running = secure(receive={"unknown_peers": "refuse"})
    with pytest.raises(Rejected, match="does not know us as SCANNER"):
        scu.echo(running.secure_peer(**shown), "SCANNER")


# -- raw peers -----------------------------------------------------------------------------------------


def client(tls: dict[str, Any], version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tls["ca"])
    context.load_cert_chain(tls["certificate"], tls["key"])
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def raw_tls(running: RunningReceiver, tls: dict[str, Any], version: ssl.TLSVersion | None = None) -> ssl.SSLSocket:
    assert running.receiver.tls_port is not None
    line = socket.create_connection(("127.0.0.1", running.receiver.tls_port), timeout=20)
    return client(tls, version).wrap_socket(line, server_hostname="localhost")


class PartialTLS:
    """A peer whose TLS records are in its own hand: it may send a part of one."""

    def __init__(self, running: RunningReceiver, tls: dict[str, Any]) -> None:
        assert running.receiver.tls_port is not None
        self.line = socket.create_connection(("127.0.0.1", running.receiver.tls_port), timeout=20)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client(tls).wrap_bio(self._in, self._out, server_hostname="localhost")
        self._until_done(self._tls.do_handshake)

    def __enter__(self) -> PartialTLS:
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()

    def encrypt(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._out.read()

    def send(self, data: bytes) -> None:
        self.line.sendall(self.encrypt(data))

    def recv_pdu(self) -> bytes:
        header = self._read(6)
        return header + self._read(int.from_bytes(header[2:], "big"))

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._until_done(partial(self._tls.read, count - len(data)))
        return data

    def _until_done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self.line.sendall(self._out.read())
                data = self.line.recv(65536)
                assert data, "closed by the receiver"
                self._in.write(data)
            else:
                self.line.sendall(self._out.read())
                return result


def answered(line: ssl.SSLSocket) -> bool:
    try:
        line.sendall(associate_rq())
        return bool(line.recv(1))
    except OSError:
        return False


def closed(line: socket.socket) -> bool:
    """Waits for the other end to close."""
    try:
        while line.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True
