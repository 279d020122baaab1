"""config.yaml -> Config. Unknown keys are refused with their line and a suggestion; nothing is read twice."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from dicom_node.config.alerts import ADDRESS_PATTERN, AlertsConfig
from dicom_node.config.audit import AuditConfig
from dicom_node.config.metrics import ENDPOINT_PATTERN, MetricsConfig, TracesConfig
from dicom_node.config.retention import RetentionConfig
from dicom_node.config.sections import (
    DEVICE_PATTERN,
    AssembleConfig,
    DatabaseConfig,
    DeliverConfig,
    GateConfig,
    LogConfig,
    ModelConfig,
    PriorsConfig,
    PullConfig,
    ReceiveConfig,
    RouteConfig,
    StorageConfig,
    WorkConfig,
)
from dicom_node.config.web import WebConfig
from dicom_node.errors import ConfigError
from dicom_node.fields import AE_TITLE_PATTERN, NAME_PATTERN, Name, Section
from dicom_node.forms import did_you_mean, parse_form
from dicom_node.peers import TRANSFER_SYNTAX_PATTERN, URL_PATTERN, PeerConfig
from dicom_node.profiles import BUILT_IN_PROFILES, DEFAULT_PROFILE, ResultProfile, SiteProfile

_MAX_BYTES = 1_000_000

_AnySection = TypeVar("_AnySection", bound=Section)


class Config(Section):
    """All settings of a node. Valid when built: names that rules use exist."""

    storage: StorageConfig
    database: DatabaseConfig = DatabaseConfig()
    receive: ReceiveConfig = ReceiveConfig()
    assemble: AssembleConfig = AssembleConfig()
    gate: GateConfig = GateConfig()
    peers: dict[Name, PeerConfig] = Field(default_factory=dict)
    models: dict[Name, ModelConfig] = Field(default_factory=dict)
    routes: tuple[RouteConfig, ...] = ()
    profiles: dict[Name, SiteProfile] = Field(default_factory=dict)
    priors: PriorsConfig = PriorsConfig()
    pulls: tuple[PullConfig, ...] = ()
    work: WorkConfig = WorkConfig()
    deliver: DeliverConfig = DeliverConfig()
    retention: RetentionConfig = RetentionConfig()
    audit: AuditConfig = AuditConfig()
    alerts: AlertsConfig = AlertsConfig()
    log: LogConfig = LogConfig()
    web: WebConfig = WebConfig()
    metrics: MetricsConfig = MetricsConfig()
    traces: TracesConfig | None = None

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        problems = [*self._wrong_names(), *self._confused_peers()]
        if problems:
            raise ValidationError.from_exception_data(
                "Config",
                # As a value, not as the template: a brace in a name would be taken for a field of it.
                [
                    InitErrorDetails(type=PydanticCustomError("name", "{text}", {"text": text}), loc=loc, input=None)
                    for loc, text in problems
                ],
            )
        return self

    def _wrong_names(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Where a name stands that means nothing, and why."""
        seen: set[str] = set()
        for number, route in enumerate(self.routes):
            here = ("routes", number)
            if route.name in seen:
                yield (*here, "name"), f"two routes are named {route.name!r}"
            seen.add(route.name)
            for key, model in (("model", route.model), ("shadow", route.shadow)):
                if model is not None and model not in self.models:
                    text = f"route {route.name!r} names model {model!r}, which models: does not define"
                    yield (*here, key), text + did_you_mean(model, self.models)
            if route.shadow == route.model:
                yield (*here, "shadow"), f"route {route.name!r} names one model twice: the second must be another"
            for index, destination in enumerate(route.destinations):
                at = (*here, "destinations", index)
                if destination not in self.peers:
                    text = f"route {route.name!r} names destination {destination!r}, which peers: does not define"
                    yield at, text + did_you_mean(destination, self.peers)
                elif not self.peers[destination].may_receive:
                    yield at, f"peer {destination!r} is a destination, but it has may_receive: false"
                elif not self.peers[destination].can_receive:
                    yield at, f"peer {destination!r} is a destination and needs a port"
            for key, archive in (("count_from", route.count_from), ("compare_with", route.compare_with)):
                if archive is not None:
                    yield from self._not_queried(archive, (*here, key))
        for name in self.profiles:
            if name in BUILT_IN_PROFILES:
                yield ("profiles", name), f"{name!r} is a built-in profile: give yours another name"
        for name, peer in self.peers.items():
            if peer.profile not in {**BUILT_IN_PROFILES, **self.profiles}:
                text = f"peer {name!r} names profile {peer.profile!r}, which is neither built in nor in profiles:"
                known = (*BUILT_IN_PROFILES, *self.profiles)
                yield ("peers", name, "profile"), text + did_you_mean(peer.profile, known)
            if peer.may_correct and "results" not in self.receive.also_accept:
                text = f"peer {name!r} may send corrections, and receive.also_accept leaves out results"
                yield ("peers", name, "may_correct"), text
        for number, pull in enumerate(self.pulls):
            yield from self._not_queried(pull.source, ("pulls", number, "from"))
            if pull.route is not None and all(route.name != pull.route for route in self.routes):
                names = [route.name for route in self.routes]
                text = f"pull {pull.name!r} names route {pull.route!r}, which routes: does not define"
                yield ("pulls", number, "route"), text + did_you_mean(pull.route, names)

    def _confused_peers(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Two peers that may send, with one AE title and a common address: which of them calls, nobody could tell."""
        senders = [(name, peer) for name, peer in self.peers.items() if peer.may_send]
        for number, (name, peer) in enumerate(senders):
            for other_name, other in senders[:number]:
                if peer.ae_title == other.ae_title and peer.shares_address(other):
                    text = f"peers {other_name!r} and {name!r} call with one AE title from a common address: "
                    yield ("peers", name), text + "make one peer of them, or give them different `from`"

    def _not_queried(self, name: str, at: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Why a peer cannot be looked in."""
        if name not in self.peers:
            yield at, f"{name!r} is no peer" + did_you_mean(name, self.peers)
        elif not self.peers[name].may_be_queried:
            yield at, f"peer {name!r} is looked in here, and needs may_be_queried: true"

    def profile(self, destination: str) -> ResultProfile:
        """What the destination gets. One that is not in the settings any more gets what most viewers read."""
        peer = self.peers.get(destination)
        name = DEFAULT_PROFILE if peer is None else peer.profile
        return {**BUILT_IN_PROFILES, **self.profiles}[name]

    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{(self.storage.root / 'node.sqlite').absolute()}"

    def served_roles(self) -> tuple[str, ...]:
        """What `serve` starts."""
        return ("receive", "work", "deliver", *(() if self.web.port is None else ("web",)))

    def web_users_file(self) -> Path:
        return self.web.users_file or self.storage.root / "web_users.json"

    def audit_folder(self) -> Path:
        return self.audit.folder or self.storage.root / "audit"

    def export_salt_file(self) -> Path:
        """The site's secret behind the pseudonyms and parts of exported cases."""
        return self.storage.root / "export.salt"

    def metrics_folder(self) -> Path:
        """Where the processes of this machine count. Several machines may share a storage root: each has its own."""
        return self.metrics.folder or self.storage.root / "metrics" / socket.gethostname()

    def quiet_time_s(self, source_ae: str) -> float:
        """The quiet time of whoever sent the series."""
        for peer in self.peers.values():
            if peer.ae_title == source_ae and peer.quiet_time_s is not None:
                return peer.quiet_time_s
        return self.assemble.quiet_time_s

    def may_correct(self, source_ae: str) -> bool:
        """Whether corrections from this AE title count."""
        return any(peer.ae_title == source_ae and peer.may_correct for peer in self.peers.values())

    def route(self, name: str) -> RouteConfig:
        for route in self.routes:
            if route.name == name:
                return route
        raise ConfigError(f"no route is named {name!r} any more: bring it back in config.yaml, then retry")


def load_config(path: Path) -> Config:
    """Read and check `path`. Raises ConfigError with one line an error: file:line: key: what, and the mend."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError as err:
        raise ConfigError(
            f"{path}: no such file; give --config FILE or set DICOM_NODE_CONFIG; the project has a first one"
        ) from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: is no text in UTF-8; is it the right file?") from err
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}") from err
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {_MAX_BYTES} bytes; is it the right file?")
    return _anchored(parse_config(text, str(path)), path.absolute().parent)


def _anchored(config: Config, folder: Path) -> Config:
    """Relative paths count from the settings' own folder: a service is started from anywhere."""
    models = {
        name: model if model.bundle.startswith("builtin:") else ModelConfig(bundle=str(folder / model.bundle))
        for name, model in config.models.items()
    }
    storage = config.storage.model_copy(update={"root": folder / config.storage.root.expanduser()})
    url = config.database.url
    if url is not None and url.startswith("sqlite:///"):
        url = f"sqlite:///{folder / url.removeprefix('sqlite:///')}"
    database = DatabaseConfig(url=url)
    peers = {name: _anchored_files(peer, folder) for name, peer in config.peers.items()}
    receive, audit = _anchored_files(config.receive, folder), _anchored_files(config.audit, folder)
    update = {"storage": storage, "models": models, "database": database, "peers": peers, "receive": receive}
    update |= {"audit": audit, "web": _anchored_files(config.web, folder)}
    update |= {"metrics": _anchored_files(config.metrics, folder), "alerts": _anchored_files(config.alerts, folder)}
    return config.model_copy(update=update)


def _anchored_files(section: _AnySection, folder: Path) -> _AnySection:
    """The same section with each file's path, however deep, made absolute."""
    update: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            update[name] = folder / value.expanduser()
        elif isinstance(value, Section):
            update[name] = _anchored_files(value, folder)
    return section.model_copy(update=update)


def parse_config(text: str, source: str) -> Config:
    """`text` as YAML -> Config; `source` is how errors name it."""
    return parse_form(text, source, Config, needs="storage: {root: FOLDER}", patterns=_PATTERNS)


_PATTERNS = {
    AE_TITLE_PATTERN: "must be an AE title: 1 to 16 ASCII characters, no backslash",
    NAME_PATTERN: "must be a name of letters, digits, - and _, at most 63",
    URL_PATTERN: "must be a URL like https://pacs.example/dicom-web, without ? and #",
    TRANSFER_SYNTAX_PATTERN: "must be a Transfer Syntax UID, like 1.2.840.10008.1.2.1",
    ENDPOINT_PATTERN: "must be a URL like http://127.0.0.1:4318/v1/traces",
    ADDRESS_PATTERN: "must be one address like radiology-it@hospital.example",
    DEVICE_PATTERN: "must be cpu or cuda:N, like cuda:0",
}
