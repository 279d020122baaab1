"""Settings as they are, settings as the file has them now -> settings that a running role may take over, and the keys
that wait for a restart. Pure: reading and swapping is life.py's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dicom_node.config import Config
from dicom_node.errors import ConfigError
from dicom_node.fields import Section

# Whole sections, or single keys of one. What is not named here waits for a restart, new sections included.
LIVE = (
    "storage.min_free_gb",
    "storage.clean_below_gb",
    "receive.max_associations",
    "receive.max_associations_per_peer",
    "receive.max_instance_mb",
    "receive.associate_timeout_s",
    "receive.idle_timeout_s",
    "receive.unknown_peers",
    "receive.also_accept",
    "assemble",
    "gate",
    "peers",
    "routes",
    "profiles",
    "priors",
    "pulls",
    "work.drain_s",
    "work.longest_analysis_s",
    "deliver",
    "retention",
    "alerts",
    "log.level",
    "log.levels",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """config: what holds from now on. applied, restart: the keys that changed, like `receive.port` or `peers.pacs`."""

    config: Config
    applied: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


def change(running: Config, wanted: Config) -> Change:
    """Take over from `wanted` what a running role can.

    Raises ConfigError where that makes no whole: a new route, say, names a model that is loaded at a restart only.
    """
    changed = list(changed_keys(running, wanted))
    restart = tuple(key for key in changed if not is_live(key))
    if not restart:
        return Change(config=wanted, applied=tuple(changed))
    merged = _with(wanted, running, restart)
    try:
        Config.model_validate(merged.model_dump(by_alias=True))
    except ValidationError as err:
        # What the names of the settings are, never their values.
        why = "; ".join(problem["msg"] for problem in err.errors())
        raise ConfigError(f"nothing changed: restart the roles for {', '.join(restart)}; until then {why}") from err
    return Change(config=merged, applied=tuple(key for key in changed if is_live(key)), restart=restart)


def changed_keys(old: Config, new: Config) -> Iterator[str]:
    """`section.key` for each that differs; `section` alone where it is a list."""
    for section in Config.model_fields:
        before, after = getattr(old, section), getattr(new, section)
        if before == after:
            continue
        was, now = _parts(before), _parts(after)
        if was is None or now is None:
            yield section
            continue
        yield from (f"{section}.{key}" for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key))


def _parts(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, Section):
        return {name: getattr(value, name) for name in type(value).model_fields}
    return None


def is_live(key: str) -> bool:
    """Whether a running role takes over this key, written as `changed_keys` does."""
    return key in LIVE or key.partition(".")[0] in LIVE


def _with(wanted: Config, running: Config, keys: tuple[str, ...]) -> Config:
    """`wanted`, but `keys` as they are in `running`."""
    update: dict[str, Any] = {}
    for key in keys:
        section, _, name = key.partition(".")
        old, new = getattr(running, section), update.get(section, getattr(wanted, section))
        if isinstance(new, Section) and isinstance(old, Section):
            update[section] = new.model_copy(update={name: getattr(old, name)})
        else:
            update[section] = old
    return wanted.model_copy(update=update)


def all_keys() -> Iterator[tuple[str, bool]]:
    """Each key of config.yaml and whether it is live; a section of names or a list is one key."""
    for section, field in Config.model_fields.items():
        form = field.annotation
        if isinstance(form, type) and issubclass(form, Section):
            yield from ((f"{section}.{name}", is_live(f"{section}.{name}")) for name in form.model_fields)
        else:
            yield section, is_live(section)


def table() -> str:
    """What a reload does with each key, as a table in Markdown."""
    rows = "\n".join(f"| `{key}` | {'live' if live else 'restart'} |" for key, live in all_keys())
    return f"| key | after a change |\n|---|---|\n{rows}\n"
