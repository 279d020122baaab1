"""The ports that the receiver listens on: free, or this node's already."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable

from dicom_node.config import Config, ReceiveTLS
from dicom_node.dimse.tls import server_context
from dicom_node.errors import ConfigError, DeliveryError
from dicom_node.peers import PeerConfig


def plain_port(config: Config) -> str:
    if config.receive.port is None:
        return "off: receive.port is null"
    return port_is_free(config.receive.host, config.receive.port, "receive.port", lambda: _dicom_answers(config))


def tls_port(config: Config) -> str:
    tls = config.receive.tls
    assert tls is not None  # noqa: S101  the caller looked
    server_context(tls)
    return port_is_free(config.receive.host, tls.port, "receive.tls.port", lambda: _shows(config.receive.host, tls))


def port_is_free(
    host: str, port: int, setting: str, ours: Callable[[], bool], what: str = "a DICOM application"
) -> str:
    """What was found at an address that a role listens on. ours: whether this node answers there already.

    Raises ConfigError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as err:
            raise ConfigError(f"{setting} {port} needs root; take one above 1023") from err
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                section = setting.partition(".")[0]
                raise ConfigError(f"{section}.host {host} is no address of this machine ({err.strerror})") from err
            if ours():
                return f"{what} answers on {host}:{port}: this node, if it runs already"
            raise ConfigError(f"{host}:{port} is in use by another program") from err
    return f"{host}:{port} is free"


def _shows(host: str, tls: ReceiveTLS) -> bool:
    """Whether whoever listens there shows our own certificate."""
    try:
        shown = ssl.get_server_certificate((reachable(host), tls.port), timeout=5)
        ours = tls.certificate.read_text()
    except (OSError, ValueError):
        return False
    return "".join(shown.split()) in "".join(ours.split())


def reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _dicom_answers(config: Config) -> bool:
    from dicom_node.dimse.requestor import Rejected
    from dicom_node.dimse.scu import echo

    receive = config.receive
    own = PeerConfig(ae_title=receive.ae_title, host=reachable(receive.host), port=receive.port, response_timeout_s=5)
    try:
        echo(own, receive.ae_title)
    except Rejected:  # we are hardly our own peer, but only a DICOM application says so
        return True
    except DeliveryError:
        return False
    return True
