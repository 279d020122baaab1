"""Counts of real processes, their files, and what a scrape shows."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from dicom_node import metrics, schema
from dicom_node.audit import Trail
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.metrics.catalogue import CATALOGUE, OTHER
from dicom_node.metrics.exposition import Exposition
from dicom_node.metrics.files import merged
from dicom_node.metrics.port import MetricsPort
from dicom_node.metrics.vocabulary import Acquisition, kernel_label, scanner_label
from tests.peers import free_port

NOW = 1_000_000.0
JOB = "1.2.1-abc"
RECEIVES = """
import sys
from pathlib import Path
from dicom_node import metrics
metrics.start(Path(sys.argv[1]), "receive")
metrics.association_accepted("pacs")
metrics.instance_received("pacs", 0, 500)
print("counted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "metrics"
    metrics.stop()


def receiver(folder: Path) -> subprocess.Popen[bytes]:
    """A process that has counted one Association and one Instance, and lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", RECEIVES, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"counted\n"
    return process


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.communicate()


def shown(folder: Path) -> dict[str, float]:
    """Each sample as Prometheus would name it."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for metric in merged(folder)
        for sample in metric.samples
    }


INSTANCES = "dicom_node_instances_received_total peer=pacs status=0x0000"


def test_counts_of_several_processes_add_up_and_outlive_them(folder: Path) -> None:
    living = [receiver(folder), receiver(folder)]
    assert shown(folder)[INSTANCES] == 2
    assert shown(folder)["dicom_node_processes role=receive"] == 2
    for process in living:
        end(process)
    assert shown(folder)[INSTANCES] == 2


def test_gauges_of_a_killed_process_are_shown_no_more(folder: Path) -> None:
    killed, living = receiver(folder), receiver(folder)
    assert shown(folder)["dicom_node_associations_open"] == 2
    end(killed)
    assert shown(folder)["dicom_node_associations_open"] == 1
    assert shown(folder)["dicom_node_processes role=receive"] == 1
    end(living)
    assert "dicom_node_associations_open" not in shown(folder)


def test_restarts_go_on_with_the_same_files(folder: Path) -> None:
    end(receiver(folder))
    before = sorted((path.name, path.stat().st_size) for path in folder.iterdir())
    for _ in range(3):
        end(receiver(folder))
    assert sorted((path.name, path.stat().st_size) for path in folder.iterdir()) == before
    assert shown(folder)[INSTANCES] == 4


def test_files_hold_their_blocks_so_that_a_full_disk_kills_no_process(folder: Path) -> None:
    metrics.start(folder, "receive")
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in folder.glob("*.db"))


def test_label_values_without_end_do_not_grow_the_files(folder: Path) -> None:
    metrics.start(folder, "receive")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    for number in range(3000):
        metrics.instance_received(f"peer-{number}", 0, 1)
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == sizes
    assert "dicom_node_instances_received_total peer=peer-0 status=0x0000" in shown(folder)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 4096,
        b"\x00\x10\x00\x00" + b"\x7f" * 4092,
        b"\x40\x00\x00\x00\x00\x00\x00\x00" + b"\x10\0\0\0{no key}" * 5,
    ],
    ids=["negative length", "key beyond the end", "no JSON"],
)
def test_a_damaged_file_is_not_shown_and_is_made_anew(folder: Path, garbage: bytes) -> None:
    end(receiver(folder))
    (folder / "counter_receive-0.db").write_bytes(garbage)
    assert INSTANCES not in shown(folder)
    end(receiver(folder))
    assert shown(folder)[INSTANCES] == 1


def test_without_a_place_for_its_files_a_process_goes_on_uncounted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    metrics.start(tmp_path / "file", "receive")
    metrics.instance_received("pacs", 0, 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_histogram_counts_each_value_in_its_bucket(folder: Path) -> None:
    metrics.start(folder, "work")
    for seconds in (0.1, 0.2, 70.0, 1e6):
        metrics.stage_took("wait", seconds)
    found = {key: value for key, value in shown(folder).items() if "stage=wait" in key}
    assert found["dicom_node_stage_seconds_bucket le=0.1 stage=wait"] == 1
    assert found["dicom_node_stage_seconds_bucket le=120.0 stage=wait"] == 3
    assert found["dicom_node_stage_seconds_bucket le=+Inf stage=wait"] == 4
    assert found["dicom_node_stage_seconds_bucket le=3600.0 stage=wait"] == 3, "also one that nothing fell into"
    assert found["dicom_node_stage_seconds_count stage=wait"] == 4
    assert found["dicom_node_stage_seconds_sum stage=wait"] == pytest.approx(1e6 + 70.3)


def test_a_histogram_is_whole_though_few_of_its_buckets_were_hit(folder: Path) -> None:
    metrics.start(folder, "work")
    metrics.result_made(Acquisition(), [{"score": 0.85, "long_axis_mm": 7.0}] * 3, {})
    where = "kernel=other le={} scanner=other"
    found = shown(folder)
    bounds = [*CATALOGUE["dicom_node_finding_score"].buckets, "+Inf"]
    counts = [found[f"dicom_node_finding_score_bucket {where.format(bound)}"] for bound in bounds]
    assert counts == [0.0] * 8 + [3.0] * 4


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manufacturer", "model", "kernel", "scanner", "kernel_shown"),
    [
        ("SIEMENS", "SOMATOM Definition AS+", "B30f", "Siemens somatom definition as+", "B30f"),
        ("Siemens Healthineers", "NAEOTOM Alpha", "Br40f\\3", "Siemens naeotom alpha", "Br40f\\3"),
        ("GE MEDICAL SYSTEMS", "LightSpeed VCT", "BONEPLUS", "GE lightspeed vct", "BONEPLUS"),
        ("Philips", "Brilliance 64", "YB", "Philips brilliance 64", "YB"),
        ("TOSHIBA", "Aquilion ONE", "FC51", "Canon aquilion one", "FC51"),
        ("GE MEDICAL SYSTEMS", "Doe^Jane", "Doe^Jane", "GE other", OTHER),
        ("Doe^Jane", "LightSpeed VCT", "", OTHER, OTHER),
        ("", "", "", OTHER, OTHER),
    ],
)
def test_scanner_and_kernel_are_told_in_known_words(
    manufacturer: str, model: str, kernel: str, scanner: str, kernel_shown: str
) -> None:
    made_on = Acquisition(manufacturer=manufacturer, model=model, kernel=kernel)
    assert (scanner_label(made_on), kernel_label(made_on)) == (scanner, kernel_shown)


def test_the_settings_may_allow_more(folder: Path) -> None:
    made_on = Acquisition(manufacturer="ACME", model="CT 1", kernel="AB40")
    metrics.start(folder, "work", scanners=("ACME CT 1",), kernels=("AB40",))
    metrics.result_made(made_on, [], {})
    assert shown(folder)["dicom_node_findings_count kernel=AB40 scanner=ACME CT 1"] == 1


@given(st.text(min_size=4), st.text(min_size=4), st.text(min_size=9))
def test_free_text_never_becomes_a_label(manufacturer: str, model: str, kernel: str) -> None:
    made_on = Acquisition(manufacturer=f"{manufacturer} Canary", model=f"{model} Canary", kernel=f"{kernel}Canary")
    assert "canary" not in f"{scanner_label(made_on)}{kernel_label(made_on)}".lower()


@pytest.mark.parametrize("kernel", ["LUNG", "B{:02}f"])
def test_pairs_of_scanner_and_kernel_are_bounded_over_restarts(folder: Path, kernel: str) -> None:
    """Of a service that names its scanners by number, and of one that tries all kernels of one scanner."""
    for start in (0, 50):
        metrics.start(folder, "work")
        for number in range(start, start + 50):
            model = f"Revolution {number}" if kernel == "LUNG" else "Revolution"
            made_on = Acquisition(manufacturer="GE", model=model, kernel=kernel.format(number))
            metrics.result_made(made_on, [{"score": 0.9, "long_axis_mm": 7.0}], {})
    found = [key for key in shown(folder) if key.startswith("dicom_node_findings_count")]
    assert len(found) == 61
    assert shown(folder)["dicom_node_findings_count kernel=other scanner=other"] == 40
    assert shown(folder)["dicom_node_finding_score_count kernel=other scanner=other"] == 40


# -- the scrape ------------------------------------------------------------------------------------


def config(root: Path, **sections: object) -> Config:
    return Config.model_validate(
        {
            "storage": {"root": str(root), "min_free_gb": 1},
            "peers": {"pacs": {"ae_title": "PACS", "host": "h", "port": 104, "may_commit": True}},
            "models": {"m": {"bundle": "b"}},
            "routes": [{"name": "r", "model": "m", "destinations": ["pacs"]}],
            **sections,
        }
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'node.sqlite'}", now=lambda: NOW - 100.0)
    made.migrate()
    yield made
    made.close()


def job(database: Database, number: int, state: str) -> None:
    database.create_job(
        f"1.2.{number}-abc",
        state=state,
        series_uid=f"1.2.{number}",
        study_uid="1.2",
        manifest_sha256="0" * 64,
        instance_count=1,
        source_ae="A",
        explanation=[],
        priority="routine",
        evidence={},
    )


def scraped(exposition: Exposition) -> dict[str, float]:
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition.text().decode())
        for sample in family.samples
    }


def test_queues_are_counted_with_their_oldest_and_empty_ones_are_shown(tmp_path: Path, database: Database) -> None:
    job(database, 1, "queued")
    job(database, 2, "queued")
    found = scraped(Exposition(config(tmp_path), database, now=lambda: NOW))
    assert found["dicom_node_jobs state=queued"] == 2
    assert found["dicom_node_jobs_oldest_seconds state=queued"] == 100
    assert found["dicom_node_jobs state=running"] == 0
    assert found["dicom_node_jobs_oldest_seconds state=running"] == 0
    assert found["dicom_node_deliveries_open destination=pacs state=waiting"] == 0
    assert found["dicom_node_commitments_oldest_seconds destination=pacs"] == 0
    assert found["dicom_node_storage_reserve_bytes"] == 1e9
    assert 0 < found["dicom_node_storage_free_bytes"] <= found["dicom_node_storage_size_bytes"]


def test_what_a_destination_does_not_commit_grows_older_however_often_it_is_asked(
    tmp_path: Path, database: Database
) -> None:
    job(database, 1, "queued")
    database.start_job(JOB, "e")
    one = {"kind": "sr", "sop_class_uid": "1.2", "path": "p", "sha256": "0" * 64, "size_bytes": 1}
    database.finish_job(JOB, state="complete", objects=[], findings=[], timings_s={}, model={"name": "m"})
    with database.engine.begin() as connection:
        connection.execute(sa.insert(schema.result).values(sop_instance_uid="2.25.7", job_id=JOB, **one))
        ledger = {"destination": "pacs", "state": "stored", "attempts": 1, "created_at": 0.0, "changed_at": NOW - 90000}
        connection.execute(sa.insert(schema.delivery).values(sop_instance_uid="2.25.7", job_id=JOB, **ledger))
    for number in range(3):
        database.begin_commitment(f"2.25.{number}", "pacs", ["2.25.7"], next_s=1.0)
    found = scraped(Exposition(config(tmp_path), database, now=lambda: NOW))
    assert found["dicom_node_commitments_open destination=pacs"] == 1
    assert found["dicom_node_commitments_oldest_seconds destination=pacs"] == 90000


def test_the_audit_queue_is_shown_with_its_age_where_a_server_is_to_be_told(tmp_path: Path, database: Database) -> None:
    syslog = {"host": "127.0.0.1", "port": 514, "transport": "udp"}
    audited = config(tmp_path, audit={"syslog": syslog})
    found = scraped(Exposition(audited, database, now=lambda: NOW))
    assert found["dicom_node_audit_waiting_bytes"] == found["dicom_node_audit_waiting_oldest_seconds"] == 0
    Trail(audited.audit_folder()).append("<m/>", NOW - 50.0)
    found = scraped(Exposition(audited, database, now=lambda: NOW))
    assert found["dicom_node_audit_waiting_bytes"] > 4
    assert found["dicom_node_audit_waiting_oldest_seconds"] == 50
    quiet = scraped(Exposition(config(tmp_path), database, now=lambda: NOW))
    assert not any("audit_waiting" in key for key in quiet)


def test_what_may_fail_and_has_not_is_zero_so_that_its_first_time_is_an_increase(
    folder: Path, tmp_path: Path, database: Database
) -> None:
    sender = {"ae_title": "CT1", "host": "127.0.0.1", "may_send": True, "may_receive": False}
    peers = {"pacs": {"ae_title": "PACS", "host": "h", "port": 104}, "ct": sender}
    exposition = Exposition(config(tmp_path, peers=peers, metrics={"folder": str(folder)}), database)
    failed = "dicom_node_series_total outcome=failed reason=FAILED"
    refused = "dicom_node_instances_received_total peer=ct status=0xA700"
    parked = "dicom_node_deliveries_total destination=pacs status=parked"
    assert [scraped(exposition)[name] for name in (failed, refused, parked)] == [0, 0, 0]
    assert "dicom_node_deliveries_total destination=pacs status=committed" not in scraped(exposition)
    metrics.start(folder, "work")
    metrics.series_ended("failed", "FAILED")
    metrics.series_ended("failed", "of an older version")
    found = scraped(exposition)
    assert (found[failed], found["dicom_node_series_total outcome=failed reason=of an older version"]) == (1, 1)


def test_rows_are_asked_once_in_a_few_seconds(tmp_path: Path, database: Database) -> None:
    times = iter([0.0, 4.0, 5.0])
    exposition = Exposition(config(tmp_path), database, now=lambda: next(times))
    assert scraped(exposition)["dicom_node_jobs state=queued"] == 0
    job(database, 1, "queued")
    assert scraped(exposition)["dicom_node_jobs state=queued"] == 0
    assert scraped(exposition)["dicom_node_jobs state=queued"] == 1


def test_a_database_that_is_away_is_told_and_hides_nothing_else(folder: Path, tmp_path: Path) -> None:
    metrics.start(folder, "receive")
    metrics.instance_received("pacs", 0xA700, 1)
    away = Database(f"sqlite:///{tmp_path / 'no such folder' / 'node.sqlite'}")
    found = scraped(Exposition(config(tmp_path, metrics={"folder": str(folder)}), away))
    assert found["dicom_node_database_up"] == 0
    assert found["dicom_node_instances_received_total peer=pacs status=0xA700"] == 1
    assert not any(key.startswith("dicom_node_jobs") for key in found)


def test_the_port_shows_the_counts_of_all_roles_and_another_takes_over(
    folder: Path, tmp_path: Path, database: Database
) -> None:
    end(receiver(folder))
    port = free_port()
    exposition = Exposition(config(tmp_path, metrics={"folder": str(folder)}), database)
    first = MetricsPort("127.0.0.1", port, exposition)
    first.start()
    try:
        text = until_it_answers(f"http://127.0.0.1:{port}/metrics")
        assert 'dicom_node_instances_received_total{peer="pacs",status="0x0000"} 1.0' in text
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
    finally:
        first.stop(10.0)
    second = MetricsPort("127.0.0.1", port, exposition)
    second.start()
    assert "dicom_node_build" in until_it_answers(f"http://127.0.0.1:{port}/metrics")
    second.stop(10.0)


def until_it_answers(url: str) -> str:
    for _ in range(500):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:
            time.sleep(0.02)  # its thread has not bound the port yet
    raise AssertionError("nobody answers")


def test_every_metric_of_the_catalogue_can_be_seen(folder: Path, tmp_path: Path, database: Database) -> None:
    metrics.start(folder, "work")
    metrics.association_accepted(None)
    metrics.association_rejected(2, 3, 2)
    metrics.instance_received(None, 0, 1)
    metrics.instance_retrieved(None, "c_get", 0, 1)
    metrics.shadow_looked("m", "complete")
    metrics.correction_taken("seg", "compared")
    metrics.series_deleted("disk low", 1)
    metrics.login_tried("failed")
    metrics.audit_lost()
    metrics.commitment_settled("pacs", committed=2, not_kept=0, parked=0)
    metrics.series_ended("rejected", "NOT_CT")
    metrics.result_made(Acquisition(), [{"score": 0.9, "long_axis_mm": 7.0}], {"read": 1.0})
    metrics.delivery_settled("pacs", "stored", took_s=1.0)
    metrics.gpu_sampled("cuda:0", used_bytes=1, total_bytes=2, use_ratio=0.5)
    syslog = {"host": "127.0.0.1", "port": 514, "transport": "udp"}
    audited = config(tmp_path, metrics={"folder": str(folder)}, audit={"syslog": syslog})
    text = Exposition(audited, database).text().decode()
    seen = set(re.findall(r"^(\w+)[{ ]", text, re.MULTILINE))
    assert {sample for definition in CATALOGUE.values() for sample in definition.samples()} == seen - {"#"}
    assert 'associations_total{outcome="accepted",peer="unknown"}' in text
    assert 'rejected_total{reason="limit"}' in text
