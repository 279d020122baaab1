"""`dicom-node check`: each part that the node needs, tried; one line an item: what is wrong and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.alerts.channels import channels_of
from dicom_node.config import Config, PullConfig, ReceiveTLS, RouteConfig
from dicom_node.db import Database
from dicom_node.dimse.contexts import check_preferences
from dicom_node.dimse.tls import DAY_S, WARN_DAYS, CertificateFile, certificate_files, days_left, server_context
from dicom_node.errors import BundleError, ConfigError, DeliveryError, DicomNodeError, StorageError
from dicom_node.peers import PeerConfig
from dicom_node.root_probe import probe
from dicom_node.rows import Row
from dicom_node.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing that was tried. `text`: what was seen, or what is wrong and what to do. warns: it works, and should
    be looked at."""

    name: str
    ok: bool
    text: str
    warns: bool = False


def check(config: Config) -> Iterator[Item]:
    """Tries everything; one failure hides no other."""
    yield _try("storage", lambda: _storage(config))
    if config.storage.root.is_dir():
        yield _try("storage file system", lambda: probe(config.storage.root))
    yield _try("database", lambda: _database(config))
    yield _try("port", lambda: _plain_port(config))
    if config.receive.tls is not None:
        yield _try("tls port", lambda: _tls_port(config))
    if any(peer.accept_first for peer in config.peers.values()):
        yield _try("transfer syntaxes", lambda: _preferences(config))
    if config.traces is not None:
        yield _try("traces", lambda: _traces(config))
    for file in certificate_files(config):
        yield _try(file.setting, partial(_certificate, file))
    yield _try("device", lambda: _device(config))
    for name in config.models:
        yield _try(f"model {name}", partial(_model, config, name))
    yield _try("routes", lambda: _routes(config))
    yield from _promotions(config)
    for channel in channels_of(config.alerts):
        yield _try(f"alerts {channel.name}", channel.probe)
    for name, peer in config.peers.items():
        if peer.port is not None:
            yield _try(f"peer {name}", partial(_echo, config, name))
        if peer.may_commit:
            yield _try(f"peer {name} commitment", partial(_commitment, config, name))
        if peer.deliver_by == "stow_rs" or (peer.may_be_queried and peer.retrieve_by == "wado_rs"):
            yield _try(f"peer {name} dicomweb", partial(_dicomweb, peer))
    for route in config.routes:
        if route.compare_with is not None:
            yield _try(f"route {route.name} compare_with", partial(_comparison, config, route))
    for pull in config.pulls:
        yield _try(f"pull {pull.name}", partial(_pull, config, pull))


def _try(name: str, look: Callable[[], str]) -> Item:
    try:
        return Item(name=name, ok=True, text=look())
    except DicomNodeError as err:
        return Item(name=name, ok=False, text=str(err))


def _storage(config: Config) -> str:
    root, least_gb = config.storage.root, config.storage.min_free_gb
    if root.exists():
        storage = Storage(root, min_free_gb=least_gb)
        storage.check_space()
        return f"{storage.free_bytes() / 1e9:.1f} GB free in {root}"
    # Nothing is made here: whoever checks may be another user than the one who runs the node.
    nearest = next(folder for folder in root.absolute().parents if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise StorageError(f"storage.root {root} is not there, and {nearest} cannot be written to by this user")
    free_gb = shutil.disk_usage(nearest).free / 1e9
    if free_gb < least_gb:
        raise StorageError(f"{free_gb:.1f} GB free, storage.min_free_gb is {least_gb}: free some space")
    return f"{free_gb:.1f} GB free in {nearest}; {root} is made at the first start"


def _database(config: Config) -> str:
    if config.database.url is None and not config.storage.root.exists():
        return "sqlite; its tables are made at the first start"
    database = Database(config.database_url())
    try:
        return database.check()
    finally:
        database.close()


def _plain_port(config: Config) -> str:
    if config.receive.port is None:
        return "off: receive.port is null"
    return port_is_free(config.receive.host, config.receive.port, "receive.port", lambda: _dicom_answers(config))


def _tls_port(config: Config) -> str:
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


def _preferences(config: Config) -> str:
    check_preferences(config)
    return "each peer's accept_first can be received"


def _traces(config: Config) -> str:
    from dicom_node import tracing

    tracing.check()
    assert config.traces is not None  # noqa: S101  the caller looked
    return f"each series' trace goes to {config.traces.endpoint}"


def _certificate(file: CertificateFile) -> str:
    days = days_left(file, time.time())
    if days < WARN_DAYS:
        return f"{file.path} expires in {days} days: renew it, then restart"
    until = datetime.fromtimestamp(time.time() + days * DAY_S, UTC)
    return f"{file.path} is valid until {until:%Y-%m-%d} ({days} days)"


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


def _device(config: Config) -> str:
    from dicom_node.model.detector import checked_device

    return f"{checked_device(config.work.device)} is here"


def _model(config: Config, name: str) -> str:
    from dicom_node.model.bundle import load_bundle

    folder = config.models[name].folder()
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder: give models.{name}.bundle the folder of a bundle")
    form = load_bundle(folder).form
    return f"{form.name} {form.version}"


def _routes(config: Config) -> str:
    if not config.routes:
        raise ConfigError("no routes: every series will be rejected with NO_ROUTE; add one under routes:")
    silent = [route.name for route in config.routes if not route.destinations]
    if silent:
        raise ConfigError(f"route {', '.join(silent)} has no destinations: its results stay in the storage root")
    if not any(peer.may_send for peer in config.peers.values()) and config.receive.unknown_peers == "refuse":
        raise ConfigError("no peer may send: set may_send: true for the PACS, or receive.unknown_peers: accept")
    return ", ".join(route.name for route in config.routes)


def _promotions(config: Config) -> Iterator[Item]:
    """What works instead of the model that a route names here."""
    from dicom_node.promotion import promotion_lines

    if config.database.url is None and not config.storage.root.exists():
        return
    database = Database(config.database_url())
    try:
        rows = database.promotions() if database.has_table("promotion") else {}
    except (DicomNodeError, SQLAlchemyError):
        return  # the item of the database says so
    finally:
        database.close()
    for route, ok, text in promotion_lines(config, rows):
        yield _try(f"promotion on {route}", partial(_promotion, config, rows[route], ok, text))


def _promotion(config: Config, row: Row, ok: bool, text: str) -> str:
    """It has an effect, and its bundle is the one that was promoted."""
    from dicom_node.model.bundle import load_bundle

    if not ok:
        raise ConfigError(text)
    now = load_bundle(config.models[row["model"]].folder()).sha256
    if now != row["bundle_sha256"]:
        raise BundleError(
            f"{text}; but the bundle is another now (sha256 {now[:12]}, promoted was {row['bundle_sha256'][:12]}): "
            f"roll back, and promote it when it has run in the shadow"
        )
    return text


def _comparison(config: Config, route: RouteConfig) -> str:
    """The archive answers a query, and is ready to give back what we once sent it."""
    from dicom_node.dimse.contexts import CT_IMAGE, REPORT_CLASS, SEGMENTATION_CLASSES
    from dicom_node.dimse.retrieve import sends_on_get
    from dicom_node.pull import archive_answers

    name = str(route.compare_with)
    peer = config.peers[name]
    archive_answers(config, name, peer)
    if peer.retrieve_by == "c_get":
        wanted = {CT_IMAGE: "CT", REPORT_CLASS: "our SR", SEGMENTATION_CLASSES[0]: "our SEG"}
        sent = sends_on_get(peer, config.receive.ae_title, tuple(wanted))
        lacking = [what for uid, what in wanted.items() if uid not in sent]
        if lacking:
            raise DeliveryError(f"{name} sends no {' and no '.join(lacking)} on C-GET: set its retrieve_by to c_move")
    text = f"{name} answers queries"
    if name not in route.destinations:
        text += "; results of this route do not go there: only what it gets otherwise is found"
    return text


def _pull(config: Config, pull: PullConfig) -> str:
    """The archive answers a query, and the last round had no problem.

    Whether it knows us for C-MOVE only a C-MOVE of what it has can tell, and that is the round's own work.
    """
    from dicom_node.pull import archive_answers

    archive_answers(config, pull.source, config.peers[pull.source])
    last = _last_round(config, pull.name)
    if last is None:
        return f"{pull.source} answers queries; no round has run yet"
    ended = "runs, or was cut short" if last["ended_at"] is None else f"fetched {last['fetched']} series"
    when = datetime.fromtimestamp(last["started_at"]).astimezone()
    text = f"the round of {when:%Y-%m-%d %H:%M} {ended}, {last['left_over']} are left"
    if last["problem"]:
        raise DeliveryError(f"{text}: {last['problem']}")
    return f"{pull.source} answers queries; {text}"


def _last_round(config: Config, name: str) -> Row | None:
    if config.database.url is None and not config.storage.root.exists():
        return None
    database = Database(config.database_url())
    try:
        return database.pull_round(name) if database.has_table("pull_round") else None
    finally:
        database.close()


def _echo(config: Config, name: str) -> str:
    from dicom_node.dimse.scu import echo

    peer = config.peers[name]
    echo(peer, config.receive.ae_title)
    return f"{peer.ae_title} at {peer.host}:{peer.port} answers"


def _commitment(config: Config, name: str) -> str:
    from dicom_node.dimse.commitment import negotiate

    peer = config.peers[name]
    negotiate(peer, config.receive.ae_title)
    return f"{peer.ae_title} takes requests for Storage Commitment"


def _dicomweb(peer: PeerConfig) -> str:
    from dicom_node.dicomweb.client import service_answers, settings

    service_answers(peer)
    return f"{settings(peer).url} answers"
