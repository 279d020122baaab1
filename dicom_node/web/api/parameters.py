"""What the addresses of the API are made of, and what each part of them may hold."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Path, Query

from dicom_node.web.access.principal import the_node
from dicom_node.web.node import Node

TheNode = Annotated[Node, Depends(the_node)]
JobId = Annotated[
    str,
    Path(
        pattern=r"^[0-9][0-9.]{0,63}-[0-9a-f]{16}$",
        description="As in a list of jobs.",
        examples=["1.2.826.0.1.3680043.10.511.3.71-0a1b2c3d4e5f6071"],
    ),
]
UID = Annotated[str, Path(pattern=r"^[0-9][0-9.]{0,63}$", description="A SOP Instance UID.", examples=["2.25.4711"])]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
PeerName = Annotated[str, Path(pattern=_NAME, description="As under `peers` in the settings.", examples=["pacs"])]
Destination = Annotated[str | None, Query(pattern=_NAME, description="Only to this one.", examples=["pacs"])]
RouteName = Annotated[str | None, Query(pattern=_NAME, description="Only this route's.", examples=["chest-ct"])]
State = Literal["queued", "running", "complete", "rejected", "failed", "parked", "cancelled"]
# Text that a database takes: PostgreSQL has no NUL in text, and a lone surrogate is no text at all.
Words = Annotated[str, Query(min_length=1, max_length=64, pattern=r"^[ -~]+$")]
Seconds = Annotated[float, Query(ge=0, le=4102444800, description="Seconds since 1970, UTC.", examples=[1764000000.0])]
Place = Annotated[str, Query(max_length=140, pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?_[0-9.]{1,64}-[0-9a-f]{16}$")]
Limit = Annotated[int, Query(ge=1, le=500, description="How many at most.")]
