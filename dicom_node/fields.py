"""What the sections of config.yaml are made of: strict models, AE titles, names, ports, addresses, times."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

# PS3.5 6.2: AE is at most 16 characters of the default repertoire, no backslash, not only spaces.
AE_TITLE_PATTERN = r"^[^\\\x00-\x1f\x7f-\uffff]{1,16}$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
AETitle = Annotated[str, StringConstraints(strip_whitespace=True, pattern=AE_TITLE_PATTERN)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=7 * 86400)]


def _network(text: str) -> str:
    ipaddress.ip_network(text, strict=False)
    return text


Network = Annotated[str, AfterValidator(_network)]


class Section(BaseModel):
    """A section of the settings: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
