"""A patient of canary words goes through the whole node: where each of its words is afterwards, and nowhere else.

Allowed are DICOM files, their bytes in the journal, and the audit trail, where PS3.15 A.5 has a patient.
Looked at are logs in each form, rows of both databases, names of files, command lines, metrics, traces, alerts, what
the web role answers without a login, objects that went out, and what commands print.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import re
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pydicom
import pytest
import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MailHandler
from fastapi.routing import APIRoute
from lxml import etree
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_node import cli
from dicom_node.audit.trail import Trail
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.intake import StoreAnswer, StoreRequest
from dicom_node.dimse.scu import send
from dicom_node.peers import PeerConfig
from dicom_node.web.access.rows import AccessRows
from tests.fakes.collector import Collected, collector
from tests.node import Node
from tests.peers import free_port
from tests.web import Web, web_role

# Each attribute its own word, so that a finding says where it came from. Dates and numbers of no other meaning.
CANARIES = {
    "PatientName": "KANARIENVOGEL^ZYBELLE",
    "PatientID": "KNRPID77431",
    "PatientBirthDate": "19330917",
    "AccessionNumber": "KNRACC99182",
    "ReferringPhysicianName": "KNRREFDOC^QUILP",
    "InstitutionName": "KNRHOSPITAL",
    "StudyDescription": "KNRSTUDYDESC",
    "SeriesDescription": "KNRSERIESDESC",
    "PatientComments": "KNRCOMMENT",
    "StudyID": "KNRSTUDYID",
    "PatientAddress": "KNRSTREET 5",
}
WORDS = re.compile(
    b"|".join(word.encode() for value in CANARIES.values() for word in re.split(r"[\^ ]", value) if len(word) > 3)
)


def canary(ds: Dataset, series_uid: str) -> Dataset:
    for keyword, value in CANARIES.items():
        setattr(ds, keyword, value)
    ds.SeriesInstanceUID, ds.SOPInstanceUID = series_uid, generate_uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def written(
    folder: Path, files: list[Path], change: Callable[[int, Dataset], None] = lambda number, ds: None
) -> list[Path]:
    """The small scan as another series, whose patient is the canary."""
    folder.mkdir()
    series_uid, paths = generate_uid(), []
    for number, source in enumerate(files):
        ds = canary(pydicom.dcmread(source), series_uid)
        change(number, ds)
        paths.append(folder / f"{number:04}.dcm")
        ds.save_as(paths[-1])
    return paths


def hostile(number: int, ds: Dataset) -> None:
    """Values that no parser takes, with canaries in them: errors quote what they meet."""
    for keyword, value in (("SliceThickness", "KNRPID77431"), ("SeriesNumber", "KNRACC99182")):
        ds.add_new(keyword, "LO", value)


def with_gap(number: int, ds: Dataset) -> None:
    if number > 20:
        ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], float(ds.ImagePositionPatient[2]) + 50]


def command(node: Node, *words: str) -> bytes:
    """What it prints, run in this process as its entry point runs it."""
    said = io.StringIO()
    argv = ["dicom-node", *words, "--config", str(node.config_path)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        with contextlib.suppress(SystemExit):
            cli.main()
        logging.getLogger().handlers.clear()
    return said.getvalue().encode()


class Rude(Archive):
    """Takes nothing, and says whom it does not want."""

    def store(self, request: StoreRequest) -> StoreAnswer:
        name, number = CANARIES["PatientName"], CANARIES["PatientID"]
        return StoreAnswer(status=0xA900, comment=f"no {name.replace('^', ', ')} here ({number}), born 19330917")


@contextlib.contextmanager
def webhook() -> Iterator[tuple[str, list[bytes]]]:
    """A service that keeps what it is told."""
    told: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(str(self.headers).encode() + self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", told
        finally:
            server.shutdown()
            thread.join()


class Inbox(MailHandler):
    def __init__(self, mails: list[bytes]) -> None:
        super().__init__()
        self._mails = mails

    def handle_message(self, message: Any) -> None:
        decoded = [part.get_payload(decode=True) or b"" for part in message.walk()]
        self._mails.append(message.as_bytes() + b"".join(decoded))


@contextlib.contextmanager
def mail_server() -> Iterator[tuple[int, list[bytes]]]:
    mails: list[bytes] = []
    server = Controller(Inbox(mails), hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        yield server.port, mails
    finally:
        server.stop()


def start_as(node: Node, role: str, form: str, ready: str, *, journal: bool = False) -> None:
    """A role whose log has this form; under systemd its lines carry priorities."""
    settings = yaml.safe_load(node.config_path.read_text())
    settings["log"]["format"] = form
    path = node.folder / f"config-{role}.yaml"
    path.write_text(yaml.safe_dump(settings))
    with (node.folder / f"{role}.log").open("ab") as log:
        here = os.fstat(log.fileno())
        environment = {**os.environ, **({"JOURNAL_STREAM": f"{here.st_dev}:{here.st_ino}"} if journal else {})}
        # A model sees no header: one that costs nothing does for this.
        stub, real = ["tests.stub_worker", str(path), "0"], ["dicom_node", role, "--config", str(path)]
        words = [sys.executable, "-m", *(stub if role == "work" else real)]
        node.processes[role] = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    node.wait(lambda: ready in node.log(role), role, 240)


def suspects(node: Node) -> list[tuple[str, bytes]]:
    """All that the node wrote but for DICOM files, the journal and the audit trail; and every name of a file."""
    root = node.storage.root
    found = []
    for path in sorted(node.folder.rglob("*")):
        found.append((f"the name {path}", os.fsencode(str(path.relative_to(node.folder)))))
        inside = path.relative_to(root).parts[0] if path.is_relative_to(root) and path != root else ""
        if (
            path.is_file()
            and inside not in ("audit", "journal")
            and path.suffix != ".dcm"
            and "bundle" not in path.parts
        ):
            found.append((str(path), path.read_bytes()))
    return found


def rows(node: Node) -> bytes:
    """Both databases as text: what is freed in their pages is no row, but is looked at as bytes of the file, too."""
    dumps = []
    for path in node.storage.root.glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            dumps.append("\n".join(connection.iterdump()))
    return "\n".join(dumps).encode()


def titles(node: Node) -> list[tuple[str, bytes]]:
    """What `ps` shows of each role: its command line, and the names of its threads."""
    found = []
    for role, process in node.processes.items():
        folder = Path("/proc") / str(process.pid)
        said = [folder / "cmdline", folder / "comm", *folder.glob("task/*/comm")]
        found.append((f"process {role}", b" ".join(file.read_bytes() for file in said)))
    return found


def asked(url: str, **headers: str) -> bytes:
    """Status line and body of a GET, whatever the status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return str(answer.headers).encode() + answer.read()
    except urllib.error.HTTPError as err:
        return str(err.headers).encode() + err.read()


def searched(node: Node) -> list[tuple[str, bytes]]:
    """The real web role is asked for the canary, without a login and with a program's token; its metrics."""
    address = re.search(r'"address": "([^"]+)"', node.log("web"))
    assert address is not None
    web, name = f"http://{address[1]}", urllib.parse.quote(CANARIES["PatientName"])
    access = AccessRows(node.config.database_url())
    token = access.add_token("canary", "operator", None)
    access.close()
    for path in (f"/jobs?text={name}", f"/api/v1/jobs?text={name}&state={name}", f"/jobs/{name}", f"/{name}"):
        asked(web + path, Authorization=f"Bearer {token}")
        asked(web + path, Accept="text/html")
    metrics = {"web": f"{web}/metrics", "port": f"http://127.0.0.1:{node.config.metrics.port}/metrics"}
    told = [(f"metrics of {where}", asked(url)) for where, url in metrics.items()]
    assert all(b"dicom_node_instances_received_total" in text for _, text in told)
    return told


def flat(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Path and methods of each route, those of included routers, too."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield prefix + route.path, route.methods
        elif hasattr(route, "original_router"):
            yield from flat(route.original_router.routes, prefix + route.include_context.prefix)


def answers_without_login(web: Web, job_id: str) -> Iterator[tuple[str, bytes]]:
    """Each route by each of its methods: with the canary in path, query and body, and about the canary's job."""
    name = CANARIES["PatientName"]
    client = web.client()
    routes = list(flat(client.app.routes))  # type: ignore[attr-defined]
    assert len(routes) > 40
    for route, methods in routes:
        fill = {value: re.sub(r"\{[^}]+\}", urllib.parse.quote(value), route) for value in (name, job_id)}
        for path in dict.fromkeys([f"{fill[name]}?{urllib.parse.urlencode({'text': name, 'q': name})}", fill[job_id]]):
            for method in sorted(methods):
                for accept in ("text/html", "application/json"):
                    body = {"json": {"user": name, "note": name}} if method != "GET" else {}
                    answer = client.request(method, path, headers={"Accept": accept}, **body)  # type: ignore[arg-type]
                    yield f"{method} {path}", _but_for_its_own_path(path, answer.headers) + answer.text.encode()
    for path in (f"/{name}", f"/static/{name}", f"/api/v1/{name}", f"/jobs?page={name}"):
        answer = client.get(path, headers={"Accept": "text/html"})
        yield f"GET {path}", f"{answer.headers}{answer.text}".encode()


def _but_for_its_own_path(path: str, headers: Mapping[str, str]) -> bytes:
    """The headers of an answer. That a login leads back to the path that was asked for tells nobody anything new."""
    told = dict(headers)
    back = urllib.parse.parse_qs(urllib.parse.urlsplit(told.get("location", "")).query).get("next", [""])[0]
    if back and urllib.parse.unquote(back) == urllib.parse.unquote(path.partition("?")[0]):
        del told["location"]
    return str(told).encode()


# Which attributes of ours may say whose image it is: those that are copied from the images, and no other.
COPIED = {
    "PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
    "StudyID", "InstitutionName", "PatientComments",
}  # fmt: skip


def places(folder: Path) -> dict[str, set[str]]:
    """SOP Class -> attributes with a canary, of all objects that a PACS got; pixels and PDFs are looked at as bytes."""
    found: dict[str, set[str]] = {}
    for path in folder.glob("*.dcm"):
        ds = pydicom.dcmread(path)
        here = found.setdefault(ds.SOPClassUID.name, set())
        for element in ds.iterall():
            value = element.value if isinstance(element.value, bytes) else str(element.value).encode()
            if element.VR != "SQ" and WORDS.search(value):
                here.add(element.keyword or str(element.tag))
    return found


def outside_the_patient(message: str) -> bytes:
    """An audit message without the objects that are the patient (PS3.15 A.5: type 1, role 1), with Base64 opened."""
    root = etree.fromstring(message)
    opened = [element.get("value", "") for element in root.iter("ParticipantObjectDetail")]
    opened += [element.text or "" for element in root.iter("ParticipantObjectQuery")]
    for element in root.findall("ParticipantObjectIdentification"):
        kind = (element.get("ParticipantObjectTypeCode"), element.get("ParticipantObjectTypeCodeRole"))
        if kind == ("1", "1"):
            root.remove(element)
    return etree.tostring(root) + b" ".join(base64.b64decode(text) for text in opened)


@pytest.mark.slow
def test_a_canary_patient_shows_nowhere_but_in_dicom_files_and_the_audit_trail(
    make_node: Callable[..., Node], archive: Archive, tiny_files: list[Path], tmp_path: Path
) -> None:
    rude = Rude(tmp_path / "rude", "RUDE")
    with contextlib.ExitStack() as around:
        url, hooked = around.enter_context(webhook())
        mail_port, mails = around.enter_context(mail_server())
        collected = around.enter_context(collector())
        peers = {
            "pacs": {
                "ae_title": "TESTPACS",
                "host": "127.0.0.1",
                "port": archive.port,  # type: ignore[attr-defined]
                "profile": "everything",
            },
            "dead": {"ae_title": "DEAD", "host": "127.0.0.1", "port": free_port()},
            "rude": {"ae_title": "RUDE", "host": "127.0.0.1", "port": rude.start()},
        }
        around.callback(rude.stop)
        node = make_node(
            peers=peers,
            profiles={
                "everything": {
                    "reports": ["tid1500", "text", "chest_cad"],
                    "captures": "multi_frame",
                    "key_objects": True,
                    "presentation_states": True,
                    "pdf": True,
                }
            },
            routes=[
                # Asks for what names the patient, and never matches: its explanation is kept with each job.
                {
                    "name": "never",
                    "model": "fast",
                    "when": {
                        "SeriesDescription": {"equals": "other"},
                        "StudyDescription": {"regex": "^other"},
                        "AccessionNumber": {"equals": "other"},
                        "PatientName": {"equals": "other"},
                    },
                },
                {"name": "all", "model": "fast", "destinations": list(peers)},
            ],
            log={"format": "json", "level": "debug"},
            metrics={"port": free_port()},
            traces={"endpoint": collected.endpoint},
            alerts={
                "webhook": {"url": url},
                "email": {
                    "host": "127.0.0.1",
                    "port": mail_port,
                    "security": "none",
                    "from": "node@hospital.example",
                    "to": ["it@hospital.example"],
                },
                "every_s": 0.5,
                "group_every_min": 0,
                "disk_below_gb": None,
            },
        )
        node.start("receive", "web")
        start_as(node, "work", "text", "working")
        start_as(node, "deliver", "text", "working", journal=True)
        said = _through(node, tiny_files, tmp_path)
        node.wait(lambda: any(b"object_parked" in one for one in hooked), "an alert by webhook")
        node.wait(lambda: any(b"not delivered" in one for one in mails), "an alert by mail")
        said += [*titles(node), *searched(node)]
        node.stop()
        job = next(job for job in node.jobs() if job["state"] == "complete")
        assert "never" in str(job["explanation"])
        [parked] = {row["message"] for row in node.database.deliveries(job["job_id"], "rude")}
        assert "no [PatientName], [PatientName] here ([PatientID]), born [PatientBirthDate]" in parked
        with web_role(node.config) as web:
            said += list(answers_without_login(web, job["job_id"]))
        said += [*suspects(node), ("rows", rows(node)), *(("webhook", one) for one in hooked)]
        said += [*(("mail", one) for one in mails), ("traces", traced(collected))]

    found = {name: sorted(set(WORDS.findall(text))) for name, text in said if WORDS.search(text)}
    assert found == {}
    made = places(archive.folder)
    assert len(made) >= 8, "an object of each kind"
    assert {keyword for keywords in made.values() for keyword in keywords} <= COPIED
    assert {one.calling_ae for one in archive.received()} == {node.config.receive.ae_title}
    _check_log_lines(node)
    _check_trail(node)
    _check_common_id(node)


def traced(collected: Collected) -> bytes:
    assert {span.name for span in collected.spans()} >= {"series", "receive", "analyse", "deliver"}
    return b"".join(str(request).encode() + request.SerializeToString() for request in collected.requests)


def _through(node: Node, tiny_files: list[Path], tmp_path: Path) -> list[tuple[str, bytes]]:
    """Series that go through, that are refused and that are hostile, until all of them ended; what commands said."""
    good = written(tmp_path / "good", tiny_files)
    bad = written(tmp_path / "gap", tiny_files, with_gap)
    odd = written(tmp_path / "odd", tiny_files, hostile)
    target = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=20)
    for paths in (good, bad, odd):
        list(send(paths, target, "SENDER"))
    # A data set that is none, and one whose UIDs hold a canary.
    broken = tmp_path / "broken.dcm"
    ds = pydicom.dcmread(good[0])
    ds.StudyInstanceUID = "KNRPID77431"
    ds.save_as(broken)
    list(send([broken], target, "SENDER"))
    series = {str(pydicom.dcmread(p[0], stop_before_pixels=True).SeriesInstanceUID): p for p in (good, bad, odd)}

    def decided() -> bool:
        jobs = {job["series_uid"]: job for job in node.jobs()}
        return all(uid in jobs and jobs[uid]["state"] in ("complete", "rejected", "failed") for uid in series)

    node.wait(decided, "the end of each job", 180)
    job = next(job for job in node.jobs() if series[job["series_uid"]] is good)
    for peer, state in (("pacs", "stored"), ("rude", "parked")):
        node.wait(
            lambda peer=peer, state=state: (
                {r["state"] for r in node.database.deliveries(job["job_id"], peer)} == {state}
            ),
            f"the delivery to {peer}",
        )
    node.wait(
        lambda: {r["state"] for r in node.database.deliveries(job["job_id"], "dead")} & {"waiting"}, "a failed delivery"
    )
    said = [
        command(node, "check"),
        command(node, "purge", "--older-than-days", "0", "--dry-run"),
        *(command(node, "jobs", "show", one["job_id"], "--json") for one in node.jobs()),
        command(node, "jobs", "cancel", job["job_id"]),
        command(node, "alert", "list"),
        command(node, "audit", "verify"),
    ]
    assert said[-1].endswith(b"unbroken\n")
    # The one command that quotes headers: those of files that its caller has, on the terminal alone.
    assert WORDS.search(command(node, "route", str(tmp_path / "gap")))
    return [(f"output {number}", text) for number, text in enumerate(said)]


def _check_log_lines(node: Node) -> None:
    """What the job pages show was among what was looked at: each role wrote some."""
    kept = {path.name.split(".")[1] for path in (node.storage.root / "logs").glob("*/*.jsonl")}
    assert kept >= {"receive", "work", "deliver"}


def _check_trail(node: Node) -> None:
    """It names the patient, in the objects that are for that, and nowhere else."""
    trail = Trail(node.storage.root / "audit")
    assert trail.verify() > 8
    messages = [entry.message for entry in trail.entries()]
    named = [message for message in messages if 'ParticipantObjectID="KNRPID77431"' in message]
    for code in ("110102", "110104"):
        assert any(f'csd-code="{code}"' in message for message in named), f"no {code} with the patient"
    assert any("job cancel" in message for message in messages)
    assert [message for message in messages if WORDS.search(outside_the_patient(message))] == []


def _check_common_id(node: Node) -> None:
    said = {role: set(re.findall(r'(?:"series": "|series=)([0-9a-f]{12})\b', node.log(role))) for role in (
        "receive", "work", "deliver"
    )}  # fmt: skip
    assert said["receive"] & said["work"] & said["deliver"], "one id a series over all roles"
    assert all(line.startswith("<") for line in node.log("deliver").splitlines()), "priorities for the journal"
