"""The units of systemd/ + where this installation lies -> the files of /etc that make services of the roles."""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from dicom_node.config import Config
from dicom_node.errors import ConfigError, DicomNodeError

_UNITS = "/etc/systemd/system"
_PLACES = {".service": _UNITS, ".target": _UNITS}
_COMMAND, _CONFIG, _ROOT = "/opt/dicom-node/.venv/bin/dicom-node", "/etc/dicom-node/config.yaml", "/var/lib/dicom-node"
_LOW_PORT, _RECEIVE, _WEB = "low-port.conf", "dicom-node-receive.service", "dicom-node-web.service"
# What ProtectHome=yes leaves nothing of.
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
# Of the shipped units; beside work.drain_s a role takes some seconds for its last files, rows and words.
_STOP_S, _BESIDE_DRAIN_S = 90, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """command, config, root: absolute paths. workers: instances of dicom-node-work@. low_ports: the roles that listen
    on a port below 1024.

    web: whether there is a web role. also: absolute folders outside root that the roles write to. stop_s: how long a
    role may take to end.
    """

    command: Path
    config: Path
    root: Path
    workers: tuple[str, ...]
    low_ports: tuple[str, ...] = ()
    web: bool = True
    also: tuple[Path, ...] = ()
    stop_s: int = _STOP_S

    def __post_init__(self) -> None:
        for path in (self.command, self.config, self.root, *self.also):
            # A unit splits words and expands % and $; such a path would need rules of its own.
            if not re.fullmatch(r"/[A-Za-z0-9/._+@-]+", str(path)):
                raise ConfigError(f"{path}: a unit takes a path of letters, digits and . _ + @ - only")
        for worker in self.workers:
            device_of(worker)

    @classmethod
    def of_this_process(cls, config_path: Path, config: Config, workers: str) -> Installation:
        """workers: comma-separated; empty: one for the device of the settings."""
        instances = tuple(word.strip() for word in workers.split(",") if word.strip())
        tls = config.receive.tls
        ports = {"receive": (config.receive.port, None if tls is None else tls.port), "web": (config.web.port,)}
        return cls(
            command=Path(sys.executable).with_name("dicom-node"),
            config=config_path,
            root=config.storage.root,
            workers=instances or (config.work.device.removeprefix("cuda:"),),
            low_ports=tuple(role for role, ours in ports.items() if any(0 < (port or 0) < 1024 for port in ours)),
            web="web" in config.served_roles(),
            also=_beyond_root(config),
            stop_s=max(_STOP_S, math.ceil(config.work.drain_s) + _BESIDE_DRAIN_S),
        )

    def hidden(self) -> list[Path]:
        """What a unit needs and would not find: it sees no home."""
        needed = (
            self.command,
            self.command.resolve(),
            Path(sys.executable).resolve(),
            self.config,
            self.root,
            *self.also,
        )
        found = [path for path in needed if any(path.is_relative_to(home) for home in _HOMES)]
        return list(dict.fromkeys(found))


def _beyond_root(config: Config) -> tuple[Path, ...]:
    """Where the settings have the roles write, but below storage.root. web.users_file is none: no role writes it."""
    folders = [config.metrics_folder()]
    url = config.database_url()
    if url.startswith("sqlite"):
        # The engine's file, both logs and the locks come beside it.
        folders.append(Path(str(sa.make_url(url).database)).parent)
    if config.audit.file and config.audit.folder is not None:
        folders.append(config.audit.folder)
    return tuple(dict.fromkeys(one for one in folders if not one.is_relative_to(config.storage.root)))


def device_of(instance: str) -> str:
    """`0` -> cuda:0, `cpu` and `cpu-NAME` -> cpu; a device stays as it is. Raises ConfigError."""
    if re.fullmatch(r"\d+", instance):
        return f"cuda:{instance}"
    if re.fullmatch(r"cpu(-[A-Za-z0-9]+)?", instance):
        return "cpu"
    if re.fullmatch(r"cuda:\d+", instance):
        return instance
    raise ConfigError(f"{instance!r} is no device: give a GPU's number, cuda:N, cpu or cpu-NAME")


def rendered(installation: Installation) -> dict[str, str]:
    """Absolute path -> content, in the order of writing."""
    files: dict[str, str] = {}
    for path in sorted(_source().iterdir()):
        if path.name == _LOW_PORT:
            for role in installation.low_ports:
                text = path.read_text().replace(_RECEIVE, f"dicom-node-{role}.service")
                files[f"{_UNITS}/dicom-node-{role}.service.d/{_LOW_PORT}"] = text
        elif path.name == _WEB and not installation.web:
            continue
        elif path.name == "dicom-node.sysusers":
            files["/etc/sysusers.d/dicom-node.conf"] = _with_paths(path.read_text(), installation)
        elif path.name == "dicom-node.tmpfiles":
            files["/etc/tmpfiles.d/dicom-node.conf"] = _with_paths(path.read_text(), installation) + "".join(
                # The colons: one that is there already keeps its owner and mode. It may be somebody else's, too.
                f"d {folder} :0750 :dicom-node :dicom-node -\n"
                for folder in installation.also
            )
        elif path.suffix in _PLACES:
            files[f"{_PLACES[path.suffix]}/{path.name}"] = _with_paths(path.read_text(), installation)
    return files


def _with_paths(text: str, installation: Installation) -> str:
    names = {_COMMAND: installation.command, _CONFIG: installation.config, _ROOT: installation.root}
    for shipped, here in names.items():
        text = text.replace(shipped, str(here))
    written = " ".join(str(folder) for folder in (installation.root, *installation.also))
    text = text.replace(f"ReadWritePaths={installation.root}\n", f"ReadWritePaths={written}\n")
    text = text.replace(f"TimeoutStopSec={_STOP_S}\n", f"TimeoutStopSec={installation.stop_s}\n")
    text = text if installation.web else text.replace(f" {_WEB}\n", "\n")
    workers = " ".join(f"dicom-node-work@{worker}.service" for worker in installation.workers)
    return text.replace("dicom-node-work@0.service", workers)


def _source() -> Path:
    """In a wheel among the package's data, in a checkout beside it."""
    package = Path(__file__).parent
    return next(path for path in (package / "data" / "systemd", package.parent / "systemd") if path.is_dir())


def write(files: dict[str, str], prefix: Path | None) -> list[Path]:
    """Write them below `prefix`, or to where systemd reads them. Raises DicomNodeError without the right to."""
    if prefix is None and os.geteuid() != 0:
        raise DicomNodeError(
            f"only root may write to {_UNITS}; --dry-run shows what: "
            f"sudo {sys.executable} -m dicom_node install-service --config FILE"
        )
    written = []
    for name, text in files.items():
        path = (prefix or Path("/")) / name.removeprefix("/")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as err:
            raise DicomNodeError(f"{path}: {err.strerror}") from err
        written.append(path)
    return written


def next_steps(installation: Installation) -> str:
    hidden = ", ".join(map(str, installation.hidden()))
    return (
        (f"careful: ProtectHome= hides {hidden} from the units: install elsewhere, as to /opt\n" if hidden else "")
        + ("" if installation.web else f"web.port is null: the target starts no {_WEB}\n")
        + "now:\n"
        "  systemd-sysusers && systemd-tmpfiles --create\n"
        f"  chgrp dicom-node {installation.config} && chmod 640 {installation.config}\n"
        "  systemctl daemon-reload\n"
        "  systemctl enable --now dicom-node.target"
    )
