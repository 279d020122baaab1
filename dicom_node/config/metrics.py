"""The sections `metrics` and `traces`: what the node measures of itself, and where its traces go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from dicom_node.fields import Port, Section

ENDPOINT_PATTERN = r"^https?://[^\s?#]+$"


class MetricsConfig(Section):
    """folder: where this machine's processes count; null: `metrics/HOST` below storage.root. port: where the roles of
    this machine show `/metrics` without a web role, at the address `host`; null: nowhere. scanners, kernels: words of
    Manufacturer and ManufacturerModelName ("Manufacturer Model"), and values of ConvolutionKernel, that may be labels
    beside those that are built in; everything else is counted as "other"."""

    folder: Path | None = None
    host: str = "127.0.0.1"
    port: Port | None = None
    scanners: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()


class TracesConfig(Section):
    """endpoint: where OTLP over HTTP takes traces, with its path, like http://127.0.0.1:4318/v1/traces."""

    endpoint: Annotated[str, StringConstraints(pattern=ENDPOINT_PATTERN)]
