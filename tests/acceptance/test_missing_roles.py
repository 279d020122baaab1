"""Roles are killed: the ones that live tell of it, whichever of them did the telling before."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable

import pytest

from tests.fakes.web import Asked, Said, serving
from tests.node import Node


@pytest.mark.slow
def test_a_killed_role_is_told_by_those_that_live_also_where_it_was_the_one_that_tells(
    make_node: Callable[..., Node],
) -> None:
    told: queue.Queue[tuple[list[str], list[str]]] = queue.Queue()

    def answer(asked: Asked) -> Said:
        message = json.loads(asked.body)
        if message["kind"] == "role_missing":
            told.put(([one["subject"] for one in message["raised"]], [one["subject"] for one in message["over"]]))
        return Said(204)

    missing: set[str] = set()

    def wait_until_missing(*roles: str) -> None:
        """By what was told so far; on a busy machine one that lives may be missed for a moment."""
        while missing != set(roles):
            raised, over = told.get(timeout=100)
            missing.update(one.partition(" on ")[0] for one in raised)
            missing.difference_update(one.partition(" on ")[0] for one in over)

    with serving(answer) as url:
        node = make_node(
            peers={},
            alerts={
                "webhook": {"url": url},
                "every_s": 0.5,
                "group_every_min": 0,
                "disk_below_gb": None,
                "missing_role_min": 0.2,
            },
        )
        # The first one has the duty.
        node.start("deliver")
        node.start("web", "receive")
        node.kill("deliver")
        node.kill("receive")
        wait_until_missing("deliver", "receive")
        node.start("deliver")
        wait_until_missing("receive")
        node.stop()
    seen = {row["role"]: row["stopped_at"] for row in node.database.roles_seen()}
    assert seen["receive"] is None
    assert seen["web"] is not None
    assert seen["deliver"] is not None
