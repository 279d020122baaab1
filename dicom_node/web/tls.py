"""The PEM files of `web.tls` -> the context that browsers meet."""

from __future__ import annotations

import ssl

from dicom_node.config import ReceiveTLS, WebTLS
from dicom_node.dimse.tls import server_context


def tls_context(tls: WebTLS) -> ssl.SSLContext:
    """The same words on a file that is no good, and the same suites, as at the DICOM port. Raises ConfigError."""
    return server_context(ReceiveTLS(**tls.model_dump(), client_certificate="none"), "web.tls")
