"""Settings: what is wrong is named by file, line and key, with the mend; secrets are never repeated."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import dicom_node
from dicom_node.config import Config, ModelConfig, bundle_folder, load_config, parse_config
from dicom_node.errors import ConfigError
from dicom_node.peers import PeerConfig, parse_peer

REPOSITORY = Path(__file__).parents[2]
ROOT = "storage: {root: x}\n"


def refused(text: str) -> str:
    """What parse_config says of a document that starts with a valid storage section."""
    with pytest.raises(ConfigError) as caught:
        parse_config(ROOT + text, "f.yaml")
    return str(caught.value)


def test_the_shipped_settings_are_valid() -> None:
    settings = load_config(REPOSITORY / "config.yaml")
    assert settings.route("chest-ct").destinations == ("pacs",)
    assert settings.models["lung_nodule"].folder().is_dir()


def test_the_shipped_settings_show_the_defaults_that_the_code_has() -> None:
    shipped, plain = load_config(REPOSITORY / "config.yaml"), parse_config(ROOT, "f.yaml")
    for section in ("receive", "assemble", "gate", "work", "deliver", "retention", "log"):
        assert getattr(shipped, section) == getattr(plain, section)


def test_storage_alone_is_enough() -> None:
    settings = parse_config(ROOT, "f.yaml")
    assert settings.database_url() == f"sqlite:///{Path('x/node.sqlite').absolute()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("recieve: {}", "f.yaml:2: recieve: unknown key; did you mean 'receive'?", id="section"),
        pytest.param(
            "receive:\n  ae_titel: A", "f.yaml:3: receive.ae_titel: unknown key; did you mean 'ae_title'?", id="key"
        ),
        pytest.param(
            "peers:\n  pacs:\n    ae_title: A\n    host: h\n    form: [10.0.0.1]",
            "f.yaml:6: peers.pacs.form: unknown key; did you mean 'from'?",
            id="key of a named peer, by its alias",
        ),
        pytest.param(
            "models: {m: {bundle: b}}\nroutes:\n  - name: r\n    model: m\n    prio: low",
            "f.yaml:6: routes.0.prio: unknown key; did you mean 'priority'?",
            id="key of a list's item",
        ),
        pytest.param(
            "models: {m: {bundle: b}}\nroutes:\n  - name: r\n    model: m\n    when:\n      KVP: {mim: 3}",
            "f.yaml:7: routes.0.when.KVP.mim: unknown key; did you mean 'min'?",
            id="operator",
        ),
        pytest.param(
            "zzz: 1",
            "f.yaml:2: zzz: unknown key; known: assemble, audit, database, deliver, gate, log, metrics, "
            "models, peers, priors, profiles, pulls, receive, retention, routes, storage, traces, web, work",
            id="nothing like it",
        ),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_a_suggestion(text: str, expected: str) -> None:
    assert refused(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "key", "mend"),
    [
        ("receive: {port: abc}", 2, "receive.port", "valid integer"),
        ("receive:\n  port: 70000", 3, "receive.port", "less than or equal to 65535"),
        ("receive:", 2, "receive", "leave it out"),
        ("peers:", 2, "peers", "leave it out"),
        ("receive: {ae_title: 123}", 2, "receive.ae_title", "put it in quotes"),
        ("receive: {ae_title: ABCDEFGHIJKLMNOPQ}", 2, "receive.ae_title", "1 to 16 ASCII characters"),
        ("receive: {ae_title: '   '}", 2, "receive.ae_title", "1 to 16 ASCII characters"),
        ("receive: {also_accept: images}", 2, "receive.also_accept", "must be a list"),
        ("receive: {also_accept: [imagse]}", 2, "receive.also_accept.0", "'images'"),
        ("peers: {'a b': {ae_title: A, host: h}}", 2, "peers.a b", "letters, digits"),
        ("peers:\n  p: {ae_title: A}", 3, "peers.p.host", "is missing"),
        ("peers:\n  p:\n    ae_title: A\n    host: h\n    from: [300.1.1.1]", 6, "peers.p.from.0", "IPv4 or IPv6"),
        ("work: {device: gpu}", 2, "work.device", "cuda:0"),
        ("log: {level: INFO}", 2, "log.level", "'info'"),
        ("gate: {min_length_mm: .nan}", 2, "gate.min_length_mm", "finite"),
        ("deliver: {first_wait_s: .inf}", 2, "deliver.first_wait_s", "finite"),
        ("database: {url: 'sqlite:///:memory:'}", 2, "database.url", "in memory"),
        ("database: {url: 'sqlite:///'}", 2, "database.url", "names no database"),
        ("1: 2", 2, "1", "strings"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_is_right(text: str, line: int, key: str, mend: str) -> None:
    said = refused(text)
    assert said.startswith(f"f.yaml:{line}: {key}: ")
    assert mend in said


ROUTES = """models: {m: {bundle: b}}
peers: {pacs: {ae_title: A, host: h, port: 104}, silent: {ae_title: B, host: h}}
routes:
  - name: first
    model: n
    when:
      Modalty: {equals: CT}
  - name: first
    model: m
    destinations:
      - pasc
      - silent
"""


def test_every_wrong_name_is_named_at_its_own_line() -> None:
    assert refused(ROUTES.replace("Modalty", "Modality")).splitlines() == [
        "f.yaml:6: routes.0.model: route 'first' names model 'n', which models: does not define; known: m",
        "f.yaml:9: routes.1.name: two routes are named 'first'",
        "f.yaml:12: routes.1.destinations.0: route 'first' names destination 'pasc', which peers: does not define"
        "; did you mean 'pacs'?",
        "f.yaml:13: routes.1.destinations.1: peer 'silent' is a destination and needs a port",
    ]


def test_a_word_that_is_no_dicom_keyword_is_named_at_its_line() -> None:
    assert refused(ROUTES) == "f.yaml:8: routes.0.when.Modalty: 'Modalty' is no DICOM keyword; did you mean 'Modality'?"
    assert "'SliceCount'" in refused(ROUTES.replace("Modalty", "SlicesCount"))


@pytest.mark.parametrize(
    ("condition", "said"),
    [("{}", "at least one of"), ("{regex: '('}", "no regular expression"), ("{min: x}", "valid number")],
)
def test_a_condition_must_ask_something_that_can_be_asked(condition: str, said: str) -> None:
    routes = f"models: {{m: {{bundle: b}}}}\nroutes:\n  - name: r\n    model: m\n    when: {{KVP: {condition}}}"
    assert said in refused(routes)


def test_several_errors_are_told_at_once() -> None:
    assert len(refused("receive: {port: x, prot: 1}\nlog: {level: 5}").splitlines()) == 3


def test_a_key_given_twice_is_refused_at_its_second_place() -> None:
    assert refused("receive: {port: 1}\nwork: {}\nreceive: {port: 2}") == "f.yaml:4: receive: is given twice"
    assert refused("receive:\n  port: 1\n  port: 2") == "f.yaml:4: port: is given twice"
    assert refused("routes:\n  - name: a\n    name: b") == "f.yaml:4: name: is given twice"


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "5", "just words"])
def test_a_document_that_is_no_mapping_is_told_what_it_needs(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f\.yaml:1: is empty or no mapping; it needs at least storage"):
        parse_config(text, "f.yaml")


@pytest.mark.parametrize("text", ["storage: {}", "storage: {root: ''}", "log: {}", "storage:"])
def test_settings_without_a_storage_root_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f\.yaml:1: storage"):
        parse_config(text, "f.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: b\n c: d", 3),
        ("a: [1", 2),
        ("a:\n\t- b", 3),
        ("? [a]\n: b", 2),
        ("a: !!python/object:os.system x", 2),
        ("a: *nowhere", 2),
        ("a: \x00", 1),
    ],
)
def test_what_is_no_yaml_is_refused_at_its_line(text: str, line: int) -> None:
    assert refused(text).startswith(f"f.yaml:{line}: is no YAML")


@pytest.mark.parametrize("text", ["a: 2026-13-45", f"a: {'9' * 6000}", "a: " + "[" * 3000])
def test_values_that_yaml_cannot_read_are_refused_without_a_crash(text: str) -> None:
    assert "holds a value that YAML cannot read" in refused(text)


def test_an_alias_inside_of_what_it_names_does_not_loop() -> None:
    assert "unknown key" in refused("a: &a [*a]")
    assert "unknown key" in refused("a: &a {b: *a}")


def test_a_missing_file_is_told_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file; give --config FILE"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00\x01", "no text in UTF-8"),
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)), "no text in UTF-8"),
        (b"storage: {root: x}\n" + b"# filler\n" * 200_000, "larger than"),
        (b"", "is empty"),
    ],
)
def test_a_wrong_file_is_refused_without_a_crash(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "database: {url: 'mysql://u:hunter2@h/d'}",
        "database: {url: 'postgresql+psycopg://u:hunter2@h:x/d'}",
        "database: {url: ['hunter2']}",
        "database: {url: {password: 'hunter2'}}",
        "database: {password: hunter2}",
        "database: 'postgresql+psycopg://u:hunter2@h/d'",
        "receive: {port: hunter2}",
        "receive: {ae_title: 'hunter2 hunter2 hunter2'}",
        "work: {device: hunter2}",
        "peers: hunter2",
    ],
)
def test_values_are_never_repeated_for_they_may_be_passwords(text: str) -> None:
    assert "hunter2" not in refused(text)


def test_a_name_with_braces_is_shown_as_it_is() -> None:
    assert "{text}" not in refused("models: {m: {bundle: b}}\nroutes: [{name: r, model: n}]")


def test_a_peers_own_quiet_time_wins() -> None:
    settings = parse_config(
        ROOT + "assemble: {quiet_time_s: 20}\npeers: {a: {ae_title: CT1, host: h, quiet_time_s: 0}, "
        "b: {ae_title: CT2, host: h}}",
        "f.yaml",
    )
    assert [settings.quiet_time_s(ae) for ae in ("CT1", "CT2", "STRANGER")] == [0.0, 20.0, 20.0]


LOOKED_IN = """models: {m: {bundle: b}}
peers: {pacs: {ae_title: A, host: h, port: 104}, mute: {ae_title: B, host: h, port: 104, may_receive: false}}
routes:
  - name: r
    model: m
    count_from: pacs
    destinations: [mute]
pulls:
  - name: nightly
    from: pasc
    route: s
"""


def test_what_a_peer_may_do_is_asked_where_it_is_named() -> None:
    assert refused(LOOKED_IN).splitlines() == [
        "f.yaml:8: routes.0.destinations.0: peer 'mute' is a destination, but it has may_receive: false",
        "f.yaml:7: routes.0.count_from: peer 'pacs' is looked in here, and needs may_be_queried: true",
        "f.yaml:11: pulls.0.from: 'pasc' is no peer; did you mean 'pacs'?",
        "f.yaml:12: pulls.0.route: pull 'nightly' names route 's', which routes: does not define; known: r",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("receive: {port: null}", "nothing would listen"),
        ("receive: {tls: {certificate: c, key: k}}", "needs ca"),
        ("peers: {p: {ae_title: A, host: h, deliver_by: stow_rs}}", "needs dicomweb"),
        ("peers: {p: {ae_title: A, host: h, retrieve_by: wado_rs}}", "needs dicomweb"),
        ("peers: {p: {ae_title: A, host: h, may_be_queried: true}}", "needs a port"),
        ("peers: {p: {ae_title: A, host: h, may_commit: true}}", "needs a port"),
        ("peers: {p: {ae_title: A, host: h, tls: {ca: c, key: k}}}", "belong together"),
        ("peers: {p: {ae_title: A, host: h, dicomweb: {url: 'ftp://h/x'}}}", "must be a URL"),
        ("peers: {p: {ae_title: A, host: h, dicomweb: {url: 'http://h/x', username: u}}}", "belong together"),
        ("peers: {p: {ae_title: A, host: h, accept_first: [JPEG]}}", "Transfer Syntax UID"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(text: str, said: str) -> None:
    assert said in refused(text)


def test_files_of_tls_count_from_the_settings_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "storage: {root: data}\nreceive: {tls: {certificate: c.pem, key: /k.pem, ca: ca.pem}}\n"
        "peers: {p: {ae_title: A, host: h, port: 104, tls: {ca: ca.pem},"
        " dicomweb: {url: 'https://h/d', token_file: t}}}\n"
    )
    config = load_config(path)
    tls, peer = config.receive.tls, config.peers["p"]
    assert tls is not None
    assert peer.tls is not None
    assert peer.dicomweb is not None
    assert (tls.certificate, tls.key, tls.ca) == (tmp_path / "c.pem", Path("/k.pem"), tmp_path / "ca.pem")
    assert (peer.tls.ca, peer.dicomweb.token_file) == (tmp_path / "ca.pem", tmp_path / "t")


def test_a_route_that_is_gone_is_told_how_to_come_back() -> None:
    with pytest.raises(ConfigError, match="no route is named 'old' any more"):
        parse_config(ROOT, "f.yaml").route("old")


@pytest.mark.parametrize(
    ("text", "host"), [("AE@h.example:104", "h.example"), ("AE@10.0.0.1:104", "10.0.0.1"), ("AE@[::1]:104", "::1")]
)
def test_a_peer_can_be_written_in_one_word(text: str, host: str) -> None:
    peer = parse_peer(text)
    assert peer is not None
    assert (peer.ae_title, peer.host, peer.port) == ("AE", host, 104)


@pytest.mark.parametrize("text", ["pacs", "AE@h", "@h:104", "AE@:104", "AE@h:", "", "seventeen-letters@h:104"])
def test_anything_else_is_a_name(text: str) -> None:
    assert parse_peer(text) is None


@pytest.mark.parametrize("text", ["AE@h:0", "AE@h:99999", "A\\B@h:104", "   @h:104"])
def test_a_peer_that_cannot_be_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        parse_peer(text)


def test_builtin_models_are_found_by_name() -> None:
    assert (ModelConfig(bundle="builtin:lung_nodule_small").folder() / "bundle.json").is_file()
    assert bundle_folder("/some/folder") == Path("/some/folder")


def test_an_unknown_builtin_model_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"no built-in model 'lung_nodules'; did you mean 'lung_nodule_small'\?"):
        bundle_folder("builtin:lung_nodules")


def _fields(model: type[BaseModel]) -> set[str]:
    """The names of all settings, from the top down."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(name)
        for part in (field.annotation, *get_args(field.annotation)):
            if inspect.isclass(part) and issubclass(part, BaseModel):
                found |= _fields(part)
    return found


def test_each_setting_is_read_somewhere() -> None:
    package = Path(dicom_node.__file__).parent
    source = "".join(p.read_text() for p in package.rglob("*.py") if p.name not in ("config.py", "peers.py"))
    used_here = inspect.getsource(Config) + inspect.getsource(ModelConfig) + inspect.getsource(PeerConfig)
    unread = [name for name in sorted(_fields(Config)) if not re.search(rf"\.{name}\b", source + used_here)]
    assert unread == []


def test_relative_paths_count_from_the_settings_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "storage: {root: data}\nmodels: {m: {bundle: bundles/m}, b: {bundle: 'builtin:lung_nodule_small'}}\n"
    )
    config = load_config(path)
    assert config.storage.root == tmp_path / "data"
    assert config.models["m"].folder() == tmp_path / "bundles/m"
    assert config.models["b"].bundle == "builtin:lung_nodule_small"
    assert config.database_url() == f"sqlite:///{tmp_path / 'data' / 'node.sqlite'}"


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("sqlite:///rows.sqlite", "sqlite:///{folder}/rows.sqlite"),
        ("sqlite:////var/rows.sqlite", "sqlite:////var/rows.sqlite"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
    ],
)
def test_a_database_file_counts_from_the_settings_folder_too(tmp_path: Path, url: str, meant: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"storage: {{root: data}}\ndatabase: {{url: '{url}'}}\n")
    assert load_config(path).database_url() == meant.format(folder=tmp_path)


def test_a_tilde_is_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "config.yaml"
    path.write_text("storage: {root: ~/node}\n")
    assert load_config(path).storage.root == tmp_path / "home" / "node"


# -- peers that could be taken for each other ------------------------------------------------------


def _two_peers(first: dict[str, Any], second: dict[str, Any]) -> Config:
    base = {"ae_title": "CT", "host": "10.0.0.5", "may_send": True}
    return Config.model_validate({"storage": {"root": "x"}, "peers": {"one": base | first, "two": base | second}})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"from": ["10.0.0.0/24"]}, {}),
        ({"from": ["10.0.0.0/24"]}, {"from": ["10.0.0.128/25"]}),
        ({"host": "ct.example"}, {"host": "CT.example"}),
    ],
)
def test_two_senders_with_one_title_and_a_common_address_are_refused(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="one AE title from a common address"):
        _two_peers(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"ae_title": "CT1"}, {}),
        ({"host": "10.0.0.6"}, {}),
        ({"may_send": False}, {}),
        ({"from": ["10.0.0.0/25"]}, {"from": ["10.0.0.128/25"]}),
        ({"from": ["fe80::/64"]}, {"from": ["10.0.0.128/25"]}),
    ],
)
def test_peers_that_can_be_told_apart_are_welcome(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert len(_two_peers(first, second).peers) == 2
