"""Certificate files become contexts of BCP 195, or an error that says which file and what to do."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import Config, ReceiveTLS
from dicom_node.dimse import tls
from dicom_node.errors import ConfigError
from dicom_node.peers import PeerTLS
from tests.certificates import Authority, Issued, openssl

DAY_S = 86400.0


@pytest.fixture(scope="module")
def node(authority: Authority) -> Issued:
    return authority.issue("node")


def server(authority: Authority, issued: Issued, **changes: Any) -> ssl.SSLContext:
    values = {"certificate": issued.certificate, "key": issued.key, "ca": authority.ca, **changes}
    return tls.server_context(ReceiveTLS(**values))


def test_only_suites_with_forward_secrecy_and_authenticated_encryption(authority: Authority, node: Issued) -> None:
    for context in (server(authority, node), tls.client_context(PeerTLS(ca=authority.ca), "peers.x.tls")):
        suites = {suite["name"] for suite in context.get_ciphers()}
        assert {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"} < suites
        # PS3.15 B.12, RFC 9325 4.2: these four are recommended.
        recommended = {
            f"ECDHE-{key}-AES{bits}" for key in ("RSA", "ECDSA") for bits in ("128-GCM-SHA256", "256-GCM-SHA384")
        }
        assert recommended < suites
        assert all(suite["kea"] in ("kx-ecdhe", "kx-any") and suite["aead"] for suite in context.get_ciphers())
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_newer_least_version_is_kept(authority: Authority, node: Issued) -> None:
    assert server(authority, node, min_version="1.3").minimum_version == ssl.TLSVersion.TLSv1_3
    newer = tls.client_context(PeerTLS(ca=authority.ca, min_version="1.3"), "x")
    assert newer.minimum_version == ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("setting", "mode"),
    [("required", ssl.CERT_REQUIRED), ("optional", ssl.CERT_OPTIONAL), ("none", ssl.CERT_NONE)],
)
def test_client_certificates_as_the_settings_say(
    authority: Authority, node: Issued, setting: str, mode: ssl.VerifyMode
) -> None:
    assert server(authority, node, client_certificate=setting).verify_mode == mode


def test_the_host_is_checked_unless_told_otherwise(authority: Authority) -> None:
    assert tls.client_context(PeerTLS(ca=authority.ca), "x").check_hostname
    unchecked = tls.client_context(PeerTLS(ca=authority.ca, check_host=False), "x")
    assert not unchecked.check_hostname
    assert unchecked.verify_mode == ssl.CERT_REQUIRED


def test_each_wrong_file_is_named_with_its_mend(
    authority: Authority, other_authority: Authority, node: Issued, tmp_path: Path
) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no PEM")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", str(node.key), "-aes256", "-passout", "pass:x", "-out", str(locked))
    expired, other = authority.issue("expired", days=-1), other_authority.issue("other")
    missing = tmp_path / "missing.pem"
    wrong: list[tuple[dict[str, Path], str]] = [
        ({"certificate": missing}, r"receive\.tls\.certificate: \S*missing.pem cannot be read: No such file"),
        ({"key": missing}, r"receive\.tls\.key: \S*missing.pem cannot be read"),
        ({"ca": missing}, r"receive\.tls\.ca: \S*missing.pem cannot be read"),
        ({"certificate": text}, r"text.pem holds no certificate in PEM form: openssl"),
        ({"certificate": broken}, r"broken.pem holds a certificate that cannot be read"),
        ({"ca": broken}, r"broken.pem holds a certificate that cannot be read"),
        ({"key": text}, r"text.pem is no private key in PEM form"),
        ({"key": locked}, r"locked.key is no private key in PEM form without a password"),
        ({"key": other.key}, r"does not belong to certificate"),
        ({"certificate": expired.certificate, "key": expired.key}, r"expired.pem expired on 20\d\d-\d\d-\d\d: renew"),
    ]
    for changes, said in wrong:
        with pytest.raises(ConfigError, match=said):
            server(authority, node, **changes)
    with pytest.raises(ConfigError, match=r"peers\.pacs\.tls\.ca: \S*missing"):
        tls.client_context(PeerTLS(ca=missing), "peers.pacs.tls")


def test_days_left_are_those_that_openssl_gave(authority: Authority) -> None:
    for days in (1, 400, 20_000):  # the last is beyond 2049: GeneralizedTime (RFC 5280 4.1.2.5)
        issued = authority.issue(f"valid{days}", days=days)
        file = tls.CertificateFile(setting="x", path=issued.certificate)
        assert tls.days_left(file, time.time()) in (days - 1, days)
        with pytest.raises(ConfigError, match="expired"):
            tls.days_left(file, time.time() + (days + 1) * DAY_S)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_certificate(der: bytes) -> None:
    with pytest.raises(ValueError):
        tls._validity(der)


def test_names_are_alternative_ones_and_the_common_one_in_lower_case() -> None:
    certificate = {
        "subject": ((("countryName", "CH"),), (("commonName", "CT1"),)),
        "subjectAltName": (("DNS", "CT1.example"), ("IP Address", "192.0.2.1"), ("email", "a@b")),
    }
    assert tls.names_of(certificate) == {"ct1", "ct1.example", "192.0.2.1"}
    assert tls.names_of({}) == tls.names_of(None) == frozenset()


def test_what_expires_soon_is_warned_of_once_a_day(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    soon, later = authority.issue("soon", days=20), authority.issue("later", days=300)
    now = [time.time()]
    files = [
        tls.CertificateFile(setting=f"receive.tls.{i.certificate.stem}", path=i.certificate) for i in (soon, later)
    ]
    watch = tls.ExpiryWatch(files, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        watch.look()
        watch.look()
        said = [(record.getMessage(), vars(record)["days"]) for record in caplog.records]
        assert said == [("certificate expires soon: renew it, then restart", 19)]
        assert vars(caplog.records[0])["setting"] == "receive.tls.soon"
        caplog.clear()
        now[0] += DAY_S + 1
        watch.look()
        assert [vars(record)["days"] for record in caplog.records] == [18]
        caplog.clear()
        now[0] += 20 * DAY_S
        watch.look()
        assert ["expired on" in vars(record)["why"] for record in caplog.records] == [True]


def test_every_file_that_the_settings_name_is_watched(authority: Authority, node: Issued) -> None:
    pair = {"certificate": node.certificate, "key": node.key, "ca": authority.ca}
    pacs = {"ae_title": "P", "host": "h", "port": 1}
    config = Config.model_validate(
        {
            "storage": {"root": "/nowhere"},
            "receive": {"tls": pair},
            "peers": {"both": {**pacs, "tls": pair}, "ca": {**pacs, "tls": {"ca": authority.ca}}, "plain": pacs},
        }
    )
    assert [file.setting for file in tls.certificate_files(config)] == [
        "receive.tls.certificate",
        "receive.tls.ca",
        "peers.both.tls.certificate",
        "peers.both.tls.ca",
        "peers.ca.tls.ca",
    ]
