"""`dicom-node check`: each part that the node needs, tried; one line an item: what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dicom_node.alerts.channels import channels_of
from dicom_node.check import machine, models, peers, ports
from dicom_node.check.item import Item, tried
from dicom_node.check.web import check_web
from dicom_node.config import Config
from dicom_node.dimse.tls import certificate_files
from dicom_node.root_probe import probe

__all__ = ["Item", "check"]


def check(config: Config) -> Iterator[Item]:
    """Tries everything; one failure hides no other."""
    yield tried("storage", lambda: machine.storage(config))
    if config.storage.root.is_dir():
        yield tried("storage file system", lambda: probe(config.storage.root))
    yield tried("database", lambda: machine.database(config))
    yield tried("port", lambda: ports.plain_port(config))
    if config.receive.tls is not None:
        yield tried("tls port", lambda: ports.tls_port(config))
    if any(peer.accept_first for peer in config.peers.values()):
        yield tried("transfer syntaxes", lambda: machine.preferences(config))
    if config.traces is not None:
        yield tried("traces", lambda: machine.traces(config))
    for file in certificate_files(config):
        yield tried(file.setting, partial(machine.certificate, file))
    yield tried("device", lambda: machine.device(config))
    for name in config.models:
        yield tried(f"model {name}", partial(models.model, config, name))
    yield tried("routes", lambda: models.routes(config))
    yield from models.promotions(config)
    for channel in channels_of(config.alerts):
        yield tried(f"alerts {channel.name}", channel.probe)
    for name, peer in config.peers.items():
        if peer.port is not None:
            yield tried(f"peer {name}", partial(peers.echo, config, name))
        if peer.may_commit:
            yield tried(f"peer {name} commitment", partial(peers.commitment, config, name))
        if peer.deliver_by == "stow_rs" or (peer.may_be_queried and peer.retrieve_by == "wado_rs"):
            yield tried(f"peer {name} dicomweb", partial(peers.dicomweb, peer))
    for route in config.routes:
        if route.compare_with is not None:
            yield tried(f"route {route.name} compare_with", partial(peers.comparison, config, route))
    for pull in config.pulls:
        yield tried(f"pull {pull.name}", partial(peers.pull, config, pull))
    yield from check_web(config)
