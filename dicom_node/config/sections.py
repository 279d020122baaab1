"""The sections of config.yaml, each valid by itself. What hangs together between them, `node.Config` checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from dicom_node.errors import ConfigError
from dicom_node.fields import AETitle, Name, Seconds, Section
from dicom_node.forms import did_you_mean
from dicom_node.peers import TLSVersion

DEVICE_PATTERN = r"^(cpu|cuda:\d+)$"

Priority = Literal["stat", "high", "routine", "low"]
StorageClassGroup = Literal["enhanced_ct", "images", "results", "other"]


class StorageConfig(Section):
    """Where files live. `min_free_gb`: below it nothing more is accepted (0xA700)."""

    root: Path
    min_free_gb: float = Field(default=5.0, ge=0)

    @field_validator("root", mode="before")
    @classmethod
    def _not_empty(cls, root: Any) -> Any:
        if root == "":
            raise ValueError("is empty: give a folder")
        return root


class DatabaseConfig(Section):
    """`url` null: SQLite under the storage root. PostgreSQL: postgresql+psycopg://user:password@host/name."""

    url: str | None = None

    @field_validator("url")
    @classmethod
    def _known_dialect(cls, url: str | None) -> str | None:
        from sqlalchemy import exc, make_url

        if url is None:
            return None
        if not url.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ValueError("must start with sqlite:/// or postgresql+psycopg://")
        try:
            database = make_url(url).database
        except (exc.ArgumentError, ValueError):
            # Without a cause: its text may hold the password.
            raise ValueError("is no database URL, like postgresql+psycopg://user:password@host:5432/name") from None
        if not database or database == ":memory:":
            raise ValueError("names no database; a database in memory cannot be shared between processes")
        return url


class ReceiveTLS(Section):
    """The port that speaks TLS (PS3.15 B.12, BCP 195). PEM files.

    client_certificate: whether a caller must show one that `ca` vouches for.
    """

    port: Annotated[int, Field(ge=0, le=65535)] = 2762
    certificate: Path
    key: Path
    ca: Path | None = None
    client_certificate: Literal["required", "optional", "none"] = "required"
    min_version: TLSVersion = "1.2"

    @model_validator(mode="after")
    def _ca_where_needed(self) -> ReceiveTLS:
        if self.client_certificate != "none" and self.ca is None:
            raise ValueError("needs ca: who vouches for client certificates; or client_certificate: none")
        return self


class ReceiveConfig(Section):
    """The Storage SCP. `also_accept`: groups of storage classes beside CT Image Storage.

    port null: only the TLS port is open. processes: how many share the port and its Associations.
    journal_mb: of a file below storage.root, one a process, in which each instance is safe a moment before its own
    file and row are; 0: each has file and row before its Success.
    """

    ae_title: AETitle = "DICOMNODE"
    host: str = "0.0.0.0"  # noqa: S104  a node on a hospital network listens on all its interfaces
    port: Annotated[int, Field(ge=0, le=65535)] | None = 11112
    tls: ReceiveTLS | None = None
    processes: int = Field(default=1, ge=1, le=16)
    max_pdu_bytes: int = Field(default=131072, ge=4096, le=16 * 1024 * 1024)
    max_associations: int = Field(default=20, ge=1, le=500)
    max_associations_per_peer: int = Field(default=10, ge=1, le=500)
    journal_mb: int = Field(default=256, ge=0, le=16384)
    max_instance_mb: int = Field(default=2048, ge=1, le=4096)
    associate_timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 60.0
    unknown_peers: Literal["refuse", "accept"] = "refuse"
    also_accept: tuple[StorageClassGroup, ...] = ("enhanced_ct", "images")

    @model_validator(mode="after")
    def _listens(self) -> ReceiveConfig:
        if self.port is None and self.tls is None:
            raise ValueError("port is null and there is no tls: nothing would listen")
        return self


class AssembleConfig(Section):
    """When a series counts as complete. A peer's own `quiet_time_s` wins over this one.

    proven_quiet_time_s: how long a series must be quiet whose completeness is proven (the archive's count, or an
    Association that was released after contiguous slices with dense InstanceNumbers).
    """

    quiet_time_s: Seconds = 20.0
    proven_quiet_time_s: Seconds = 1.0
    longest_wait_s: Seconds = 3600.0


class GateConfig(Section):
    """Which geometry a model may see. A series outside is reported, never analysed."""

    min_slices: int = Field(default=20, ge=2)
    min_length_mm: float = Field(default=100.0, ge=0)
    max_slice_spacing_mm: float = Field(default=3.0, gt=0)
    max_slice_thickness_mm: float = Field(default=3.5, gt=0)
    max_instances: int = Field(default=5000, ge=2)
    lossy: Literal["refuse", "accept"] = "refuse"


class ModelConfig(Section):
    """A model bundle's folder, or `builtin:NAME` for one that ships with the package."""

    bundle: str = Field(min_length=1)

    def folder(self) -> Path:
        """Where the bundle lies. Raises ConfigError for an unknown built-in name."""
        return bundle_folder(self.bundle)


class Condition(Section):
    """What one attribute must be. Every key given must hold."""

    equals: str | float | None = None
    any_of: tuple[str | float, ...] | None = Field(default=None, alias="in")
    regex: str | None = None
    min: float | None = None
    max: float | None = None
    present: bool | None = None

    @field_validator("regex")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as err:
                raise ValueError(f"is no regular expression: {err}") from err
        return pattern

    @model_validator(mode="after")
    def _not_empty(self) -> Condition:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("needs at least one of: equals, in, regex, min, max, present")
        return self


# What a rule may ask beside DICOM attributes: facts of how the series came and of its checked geometry.
NODE_ATTRIBUTES = frozenset({"SourceAETitle", "SliceCount", "SliceSpacing"})


def _keyword(word: str) -> str:
    from pydicom.datadict import tag_for_keyword

    if word not in NODE_ATTRIBUTES and tag_for_keyword(word) is None:
        known = (*NODE_ATTRIBUTES, *_keywords())
        raise ValueError(f"{word!r} is no DICOM keyword" + did_you_mean(word, known))
    return word


Keyword = Annotated[str, AfterValidator(_keyword)]


class RouteConfig(Section):
    """One rule. The first rule whose conditions all hold decides; `when` empty matches every series.

    shadow: the model that looks at the same input after the first one's result is stored, and whose findings stay here.
    count_from: the peer that is asked how many instances the series has.
    compare_with: the peer whose archive is looked in for earlier CTs of the patient and for our results on them.
    """

    name: Name
    when: dict[Keyword, Condition] = Field(default_factory=dict)
    model: Name
    shadow: Name | None = None
    count_from: Name | None = None
    compare_with: Name | None = None
    destinations: tuple[Name, ...] = ()
    priority: Priority = "routine"
    report_rejected: bool = True


class PriorsConfig(Section):
    """Which earlier CT a route with `compare_with` compares with.

    max_age_days: an older one is not looked at. longest_wait_s: fetching may take so long, then the report says that
    nothing was compared.
    """

    max_age_days: float = Field(default=1825.0, gt=0, le=36500)
    longest_wait_s: Seconds = 300.0


class PullConfig(Section):
    """A pull on schedule, from an archive that cannot route: studies of the last `since_h` hours, every `every_min`.

    match: matching keys of the query (PS3.4 C.2.2.2), by DICOM keyword. route: decides for what was pulled, where
    given; else the routes do.
    """

    name: Name
    source: Name = Field(alias="from")
    every_min: float = Field(default=15.0, gt=0, le=7 * 1440)
    since_h: float = Field(default=24.0, gt=0, le=24 * 365)
    match: dict[Keyword, str] = Field(default_factory=lambda: {"Modality": "CT"})
    route: Name | None = None
    max_series: int = Field(default=100, ge=1)


class WorkConfig(Section):
    """The analysing process. `drain_s`: how long a running analysis may go on after SIGTERM."""

    device: str = Field(default="cpu", pattern=DEVICE_PATTERN)
    drain_s: Seconds = 60.0
    longest_analysis_s: Seconds = 3600.0


class DeliverConfig(Section):
    """Waits between attempts double from the first to the longest; after `give_up_after_h` an object is parked.

    commit_wait_h: without a word on a Storage Commitment for so long, it is asked for again.
    """

    first_wait_s: float = Field(default=5.0, gt=0)
    longest_wait_s: float = Field(default=600.0, gt=0)
    give_up_after_h: float = Field(default=72.0, gt=0)
    commit_wait_h: float = Field(default=6.0, gt=0)


class RetentionConfig(Section):
    """What a purge may take. uncommitted_after_days: how long objects are kept that a peer stored and never committed,
    where it `may_commit`."""

    uncommitted_after_days: float = Field(default=30.0, ge=0)


LogLevel = Literal["debug", "info", "warning", "error"]


class LogConfig(Section):
    """Log lines. levels: of single roles, where they differ from `level`."""

    level: LogLevel = "info"
    levels: dict[Literal["serve", "receive", "work", "deliver", "web"], LogLevel] = Field(default_factory=dict)
    format: Literal["text", "json"] = "text"

    def level_of(self, role: str) -> LogLevel:
        return {str(name): level for name, level in self.levels.items()}.get(role, self.level)


def bundle_folder(bundle: str) -> Path:
    """`builtin:NAME` -> the folder in the package; anything else is a folder already."""
    name = bundle.removeprefix("builtin:")
    if name == bundle:
        return Path(bundle)
    shipped = Path(__file__).parents[1] / "data" / "models"
    known = sorted(path.name for path in shipped.iterdir() if path.is_dir())
    if name not in known:
        raise ConfigError(f"no built-in model {name!r}" + did_you_mean(name, known))
    return shipped / name


def _keywords() -> list[str]:
    from pydicom._dicom_dict import DicomDictionary

    return [entry[4] for entry in DicomDictionary.values() if entry[4]]
