"""Counters that were never counted yet -> 0, where the settings tell under which labels they may be.

Prometheus sees no increase in a counter that is not there and then is 1: without its 0 before, the first failed job, or
the first refused image of a peer, would set off no alert.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from prometheus_client.metrics_core import Metric

from dicom_node.config import Config
from dicom_node.dimse.statuses import STORE_ANSWERS, SUCCESS
from dicom_node.errors import Reason
from dicom_node.metrics.catalogue import CATALOGUE, UNKNOWN_PEER
from dicom_node.metrics.record import REJECTIONS
from dicom_node.schema import CORRECTION_STATES

# Label values of one metric, in the catalogue's order.
_Labels = tuple[str, ...]


def with_zeros(config: Config, counted: Iterable[Metric]) -> Iterator[Metric]:
    """The metrics, each counter with all that the settings let it count."""
    found = {metric.name: metric for metric in counted}
    for name, expected in _expected(config):
        definition = CATALOGUE[name]
        short = name.removesuffix("_total")
        metric = found.setdefault(short, Metric(short, definition.text, "counter"))
        there = {tuple(sample.labels[label] for label in definition.labels) for sample in metric.samples}
        for values in dict.fromkeys(expected):
            if values not in there:
                metric.add_sample(name, dict(zip(definition.labels, values, strict=True)), 0.0)
    yield from found.values()


def _expected(config: Config) -> Iterator[tuple[str, list[_Labels]]]:
    senders = [name for name, peer in config.peers.items() if peer.may_send]
    if config.receive.unknown_peers == "accept":
        senders.append(UNKNOWN_PEER)
    answers = [f"0x{answer.status:04X}" for answer in STORE_ANSWERS]
    for name in ("dicom_node_instances_received_total", "dicom_node_received_bytes_total"):
        yield name, list(product(senders, answers))
    archives = [(name, peer.retrieve_by) for name, peer in config.peers.items() if peer.may_be_queried]
    fetched: list[_Labels] = [(name, by, f"0x{SUCCESS:04X}") for name, by in archives if by != "c_move"]
    for name in ("dicom_node_instances_retrieved_total", "dicom_node_retrieved_bytes_total"):
        yield name, fetched
    yield "dicom_node_associations_total", list(product(senders, ("accepted", "released", "aborted")))
    yield "dicom_node_associations_rejected_total", [(reason,) for reason in REJECTIONS]
    yield "dicom_node_series_total", list(_of_series())
    yield "dicom_node_deliveries_total", list(_of_deliveries(config))
    shadows = sorted({route.shadow for route in config.routes if route.shadow is not None})
    yield "dicom_node_shadow_runs_total", list(product(shadows, ("complete", "failed", "given_up", "gave_way")))
    if any(peer.may_correct for peer in config.peers.values()):
        yield "dicom_node_corrections_total", list(product(("seg", "sr", "rtstruct"), CORRECTION_STATES))
    for name in ("dicom_node_series_deleted_total", "dicom_node_deleted_bytes_total"):
        yield name, [("age",), ("disk_low",), ("by_hand",)]
    yield "dicom_node_logins_total", [("ok",), ("failed",), ("limited",)]
    yield "dicom_node_audit_lost_total", [()]


def _of_series() -> Iterator[_Labels]:
    yield from (("complete", ""), ("cancelled", ""), ("failed", "FAILED"), ("parked", "WITHHELD"), ("parked", "PARKED"))
    yield from (("rejected", str(reason)) for reason in Reason)


def _of_deliveries(config: Config) -> Iterator[_Labels]:
    for name in sorted({name for route in config.routes for name in route.destinations}):
        states = ["stored", "waiting", "unknown", "parked"]
        if config.peers[name].may_commit:
            states += ["committed", "not_kept"]
        yield from ((name, state) for state in states)
