"""`/metrics` of a host that has no web role: a port on loopback, open as long as any role of this host lives."""

from __future__ import annotations

import logging
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dicom_node.logs import describe
from dicom_node.metrics.exposition import CONTENT_TYPE, Exposition

log = logging.getLogger(__name__)

_TRY_AGAIN_S = 5.0
_SILENT_S = 10.0


class MetricsPort:
    """Each role of the host tries; who has the port shows the counts of all, and another takes over when it dies."""

    def __init__(self, host: str, port: int, exposition: Exposition) -> None:
        self._address, self._exposition = (host, port), exposition
        self._stopping = threading.Event()
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait_s: float) -> None:
        self._stopping.set()
        server = self._server
        if server is not None:
            server.shutdown()
        self._thread.join(wait_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with _Server(self._address, self._exposition) as self._server:
                    log.info("metrics shown", extra={"action": "metrics", "port": self._address[1]})
                    self._server.serve_forever()
            except OSError:
                self._stopping.wait(_TRY_AGAIN_S)  # another role of this host shows them


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], exposition: Exposition) -> None:
        self.exposition = exposition
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SILENT_S

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            text = self.server.exposition.text()
        except Exception as err:  # noqa: BLE001  the top of this request's thread
            log.error("metrics failed", extra={"action": "metrics", "error": describe(err)})
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is no event."""
