"""The Instances of a series that are there -> what gate and routes say of them. Waits for nothing, writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dicom_node import routing
from dicom_node.completeness import is_dense
from dicom_node.config import Config, RouteConfig
from dicom_node.db import Database, Row
from dicom_node.domain import CTSeries
from dicom_node.errors import Reason, SeriesRejected, StorageError
from dicom_node.logs import describe
from dicom_node.promotion import pair_of
from dicom_node.series import InstanceFile, check_series, readable_headers
from dicom_node.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What gate and routes say of the instances that are there.

    slices, left_out, dense: as in completeness.Facts. values: columns of the job row. lossy: as in CTSeries.
    """

    state: Literal["queued", "rejected", "failed"]
    values: Mapping[str, Any]
    slices: int | None = None
    left_out: int = 0
    dense: bool = False
    count_from: str | None = None
    lossy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Gate and routes, and what they work with."""

    config: Config
    database: Database
    storage: Storage

    def judged(self, rows: Sequence[Row], source_ae: str) -> Judged:
        try:
            return self._judge(rows, source_ae)
        except StorageError:
            raise
        except Exception as err:
            # Nobody foresaw it. The series must not vanish: an operator sees it, and can have it decided on again.
            log.exception("series not decided on", extra={"action": "failed", "series": rows[0]["series_uid"]})
            return Judged(state="failed", values={"reason": "FAILED", "reason_text": describe(err)})

    def _judge(self, rows: Sequence[Row], source_ae: str) -> Judged:
        paths = [self.storage.path(row["path"]) for row in rows]
        too_large = len(paths) > self.config.gate.max_instances
        # Of too many the first is enough to find the route that says whether to report it.
        files, unreadable = readable_headers(paths[:1] if too_large else paths)
        series, rejected = self._gate(files)
        if too_large:
            text = f"{len(paths)} instances, gate.max_instances is {self.config.gate.max_instances}"
            series, rejected = None, SeriesRejected(Reason.TOO_LARGE, text)
        elif unreadable:
            text = f"the headers of {unreadable} of {len(paths)} instances can't be parsed"
            series, rejected = None, SeriesRejected(Reason.UNREADABLE, text)
        choice = self._choose(rows[0]["series_uid"], routing.facts_of(files, series, source_ae))
        if choice.route is None and rejected is None:
            rejected = SeriesRejected(Reason.NO_ROUTE, "no route matches: dicom-node route DIR explains")
        values: dict[str, Any] = {"explanation": choice.explain()}
        if choice.route is not None:
            values |= {"route": choice.route.name, "priority": choice.route.priority, **self._models(choice.route)}
        if rejected is not None:
            values |= {"reason": rejected.reason, "reason_text": rejected.text}
        return Judged(
            state="queued" if rejected is None else "rejected",
            values=values,
            slices=None if series is None else len(series.images),
            left_out=0 if series is None else len(series.left_out),
            dense=series is not None and _dense(files, series.left_out),
            count_from=None if choice.route is None else choice.route.count_from,
            lossy=None if series is None else series.lossy,
        )

    def _models(self, route: RouteConfig) -> dict[str, str | None]:
        """Which model works for a job that is decided now, whatever is promoted later, and which in its shadow."""
        pair = pair_of(self.config, route, self.database.promotions())
        return {"working_model": pair.model, "shadow_model": pair.shadow, "promoted_over": pair.promoted_over}

    def _choose(self, series_uid: str, facts: routing.Facts) -> routing.Choice:
        """The route that a pull named for this series, else the first that matches."""
        pull = self.database.pulled_route(series_uid)
        if pull is None:
            return routing.choose(self.config.routes, facts)
        return routing.named(self.config.route(pull["route"]), f"named by a pull from {pull['peer']}")

    def _gate(self, files: Sequence[InstanceFile]) -> tuple[CTSeries | None, SeriesRejected | None]:
        try:
            return check_series(files, self.config.gate), None
        except SeriesRejected as err:
            return None, err


def _dense(files: Sequence[InstanceFile], left_out: Collection[str]) -> bool:
    """A localizer may have its number among those of the slices, or one of its own."""
    numbers = {str(file.header.SOPInstanceUID): _instance_number(file) for file in files}
    return is_dense(numbers.values()) or is_dense(n for uid, n in numbers.items() if uid not in left_out)


def _instance_number(file: InstanceFile) -> int | None:
    try:
        return int(file.header.get("InstanceNumber"))
    except (TypeError, ValueError):
        return None
