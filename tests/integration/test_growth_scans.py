"""Real scans, moved and breathed by known maps, with nodules of known sizes: what the comparison makes of them."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import dicom_node
from dicom_node.comparison import Comparison, PriorExam, PriorNodule
from dicom_node.config import GateConfig
from dicom_node.domain import Finding, Volume
from dicom_node.growth import compare
from dicom_node.growth.alignment import align
from dicom_node.lungs import Lungs, find_lungs
from dicom_node.results.measure import measure
from dicom_node.series import read_series, to_volume
from tests.fakes.findings import finding_of
from tests.fakes.moved import Moved, around, ball_finding, motion, moved, quiet_places, with_balls

THEN = datetime(2024, 3, 1, 9, 30)
NOW = THEN + timedelta(days=100)

# Radius then and now, mm; None: not there.
NODULES: dict[str, tuple[float | None, float | None]] = {
    "grown": (4.0, 5.2),
    "stable": (5.0, 5.05),
    "shrunk": (6.0, 5.0),
    "new": (None, 4.0),
    "gone": (5.0, None),
    "near a": (4.0, 4.0),
    "near b": (4.0, 4.8),
    "unmarked then": (4.0, 4.0),
    "unmarked now": (4.5, 4.5),
    "below": (None, 5.0),
    "above": (5.0, None),
}
NEAR_MM = np.array([0.0, 11.0, 2.0])
REAL_MM = np.array([56.21, 86.34, -115.87])  # the scan's own nodule, 23 mm, by LUNA16


def volume_of(folder: Path) -> Volume:
    return to_volume(read_series(sorted(folder.rglob("*.dcm")), GateConfig()))


@pytest.fixture(scope="module")
def scan() -> Volume:
    """LIDC-IDRI-0001, which ships with the package."""
    return volume_of(Path(dicom_node.__file__).parent / "data" / "lidc_idri_0001")


@pytest.fixture(scope="module")
def lungs(scan: Volume) -> Lungs:
    return find_lungs(scan)


def earlier_exam(nodules: Sequence[PriorNodule], acquired_at: datetime = THEN) -> PriorExam:
    return PriorExam(
        study_uid="1.2.3.1",
        series_uid="1.2.3.2",
        acquired_at=acquired_at,
        report_sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        report_sop_instance_uid="1.2.3.4",
        report_series_uid="1.2.3.3",
        nodules=tuple(nodules),
    )


def prior_nodule(volume: Volume, finding: Finding, name: str) -> PriorNodule:
    measured = measure(finding, volume)
    return PriorNodule(
        tracking_identifier=name,
        tracking_uid=f"1.2.3.{abs(hash(name)) % 10**9}",
        center_mm=finding.center_mm,
        volume_mm3=measured.volume_mm3,
        long_axis_mm=measured.long_axis_mm,
        short_axis_mm=measured.short_axis_mm,
        volume_error_mm3=measured.volume_error_mm3,
    )


@dataclass(frozen=True, kw_only=True)
class Story:
    """Two exams and what was made of them. named: finding's number by the name of its nodule."""

    current: Volume
    findings: tuple[Finding, ...]
    prior_volume: Volume
    prior: PriorExam
    named: dict[str, int]
    comparison: Comparison

    def change(self, name: str) -> str:
        return self.comparison.changes[self.named[name] - 1].change

    def partner(self, name: str) -> str | None:
        prior = self.comparison.changes[self.named[name] - 1].prior
        return None if prior is None else prior.tracking_identifier

    def again(self, acquired_at: datetime = NOW) -> Comparison:
        measurements = [measure(finding, self.current) for finding in self.findings]
        return compare(self.current, self.findings, measurements, acquired_at, self.prior_volume, self.prior)


@pytest.fixture(scope="module")
def story(scan: Volume, lungs: Lungs) -> Story:
    """The earlier exam: turned, stretched, breathed out, cut off below, on another grid, with more noise.

    The present one is cut off above.
    """
    places = where(lungs)
    present = {name: (places[name], radii[1]) for name, radii in NODULES.items() if radii[1] is not None}
    top = 105  # of 133 slices
    current = with_balls(Volume(hu=scan.hu[:top], affine=scan.affine), list(present.values()))
    earlier = moved(
        scan,
        motion(degrees=(4.0, -3.0, 6.0), scale=(1.02, 0.99, 1.05), shift_mm=(12.0, -18.0, 25.0)),
        spacing_mm=(2.0, 0.8, 0.8),
        lungs=lungs,
        breath_mm=12.0,
        noise_hu=25.0,
        z_mm=(0.39, 0.93),
    )
    then = {name: (earlier.place_of(places[name][None])[0], radii[0]) for name, radii in NODULES.items() if radii[0]}
    prior_volume = with_balls(earlier.volume, list(then.values()))
    findings = {n: ball_finding(current, *ball) for n, ball in present.items() if n != "unmarked now"}
    findings["real"] = own_nodule(current)
    nodules = [
        prior_nodule(prior_volume, ball_finding(prior_volume, *ball), name)
        for name, ball in then.items()
        if name != "unmarked then"
    ]
    nodules.append(prior_nodule(prior_volume, carried(findings["real"], current, earlier), "real"))
    prior = earlier_exam(nodules)
    measurements = [measure(finding, current) for finding in findings.values()]
    return Story(
        current=current,
        findings=tuple(findings.values()),
        prior_volume=prior_volume,
        prior=prior,
        named={name: number for number, name in enumerate(findings, start=1)},
        comparison=compare(current, tuple(findings.values()), measurements, NOW, prior_volume, prior),
    )


def own_nodule(volume: Volume) -> Finding:
    box, points = around(volume, REAL_MM, 20.0)
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[box] = (volume.hu[box] > -300) & (np.linalg.norm(points - REAL_MM, axis=-1) < 15.0)
    return finding_of(volume, mask)


def carried(finding: Finding, volume: Volume, other: Moved) -> Finding:
    """The finding in the other scan: the voxels that show one of its voxels."""
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[finding.slices] = finding.mask
    box, points = around(other.volume, other.place_of(np.array(finding.center_mm)[None])[0], 25.0)
    shown = volume.to_index(other.source_mm(points.reshape(-1, 3))).round().astype(np.intp)
    there = np.zeros(other.volume.hu.shape, np.bool_)
    there[box] = mask[tuple(shown.T)].reshape(points.shape[:3])
    return finding_of(other.volume, there)


def where(lungs: Lungs) -> dict[str, NDArray[np.float64]]:
    """A quiet place in the lungs for each nodule; "below" and "above" at their ends, "near b" beside "near a"."""
    quiet = quiet_places(lungs, 30, apart_mm=22.0)
    by_height = quiet[np.argsort(quiet[:, 2], kind="stable")]
    names = [name for name in NODULES if name not in ("below", "above", "near b")]
    places = dict(zip(names, by_height[6:-4], strict=False))
    places["near b"] = places["near a"] + NEAR_MM
    return places | {"below": by_height[0], "above": by_height[-1]}


@pytest.mark.parametrize("name", ["grown", "stable", "shrunk", "new"])
def test_each_finding_is_judged_as_it_changed(story: Story, name: str) -> None:
    assert story.comparison.outcome == "compared"
    assert story.change(name) == name
    assert story.partner(name) == (None if name == "new" else name)


def test_the_patients_own_nodule_is_the_same_one_and_stable(story: Story) -> None:
    change = story.comparison.changes[story.named["real"] - 1]
    assert (change.change, story.partner("real")) == ("stable", "real")
    assert change.volume_change_percent is not None
    assert abs(change.volume_change_percent) < 12.0  # the chest was stretched by 6 %, and breathed


def test_near_nodules_keep_their_partners(story: Story) -> None:
    assert [story.partner(name) for name in ("near a", "near b")] == ["near a", "near b"]


def test_an_earlier_nodule_is_gone_unmarked_or_not_covered_as_the_pixels_say(story: Story) -> None:
    comparison = story.comparison
    assert [nodule.tracking_identifier for nodule in comparison.gone] == ["gone"]
    assert [nodule.tracking_identifier for nodule in comparison.unmarked] == ["unmarked now"]
    assert [nodule.tracking_identifier for nodule in comparison.not_covered] == ["above"]


def test_nothing_is_new_where_the_earlier_ct_shows_tissue_or_nothing(story: Story) -> None:
    notes = {name: story.comparison.changes[story.named[name] - 1].note for name in ("unmarked then", "below")}
    assert story.change("unmarked then") == story.change("below") == "not_judged"
    assert notes["unmarked then"] == "The earlier CT shows tissue at this place that was not marked then."
    assert notes["below"] == "The earlier CT does not show this place."


def test_doubling_time_and_its_bounds_hold_the_true_one(story: Story) -> None:
    for name in ("grown", "shrunk", "near b"):
        then, now = NODULES[name]
        assert then is not None
        assert now is not None
        true_days = 100.0 * np.log(2) / np.log((now / then) ** 3)
        change = story.comparison.changes[story.named[name] - 1]
        assert change.doubling_time is not None
        assert change.doubling_time.days == pytest.approx(true_days, rel=0.25)
        low = -np.inf if change.doubling_time.low is None else change.doubling_time.low
        high = np.inf if change.doubling_time.high is None else change.doubling_time.high
        assert low <= true_days <= high
        assert change.volume_change_percent == pytest.approx(100 * ((now / then) ** 3 - 1), abs=15)


def test_the_text_counts_what_happened(story: Story) -> None:
    assert story.comparison.text == (
        "Compared with a CT made 100 days before: 1 new, 2 grown, 3 stable, 1 shrunk, 2 not judged, 1 gone, "
        "1 still visible but not marked now, 1 outside this CT."
    )
    assert story.comparison.interval_days == 100.0


def test_the_same_exams_give_the_same_comparison_to_the_last_bit(story: Story) -> None:
    assert story.again() == story.comparison


def test_within_a_day_nodules_are_named_but_no_growth_is_claimed(story: Story) -> None:
    comparison = story.again(THEN + timedelta(hours=3))

    grown = comparison.changes[story.named["grown"] - 1]
    assert (grown.change, grown.doubling_time) == ("not_judged", None)
    assert grown.prior is not None
    assert grown.prior.tracking_identifier == "grown"
    assert "within a day" in grown.note


def test_a_later_ct_is_no_earlier_one(story: Story) -> None:
    comparison = story.again(THEN - timedelta(days=1))

    assert comparison.outcome == "not_available"
    assert "later than this one" in comparison.text


def test_a_ct_without_lungs_is_not_compared(story: Story) -> None:
    empty = Volume(hu=np.full((40, 64, 64), 40, np.int16), affine=np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]])
    comparison = compare(empty, (), (), NOW, story.prior_volume, story.prior)

    assert comparison.outcome == "not_registered"
    assert comparison.changes == ()


def test_the_scan_of_another_patient_is_not_compared(story: Story, shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "chest_ct/cptac_lscc_c3n_00247/C3N-00247.tar.xz", "r:xz") as archive:
        archive.extractall(tmp_path, filter="data")
    measurements = [measure(finding, story.current) for finding in story.findings]

    comparison = compare(story.current, story.findings, measurements, NOW, volume_of(tmp_path), story.prior)

    assert comparison.outcome == "not_registered"
    assert comparison.changes == ()
    assert comparison.quality["lung correlation"] < 0.25
    assert comparison.quality["landmarks found [%]"] < 5.0
    assert comparison.text.startswith("The earlier CT could not be laid on this one, so nothing was compared:")


def errors_mm(scan: Volume, lungs: Lungs, other: Moved) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At 300 places deep in the lungs: how far the affine map, and the corrected one, miss in the current exam."""
    alignment = align(lungs, find_lungs(other.volume))
    inside = np.argwhere(lungs.distance_mm < -4)
    chosen = np.random.default_rng(1).choice(len(inside), 300, replace=False)
    points = lungs.grid.to_mm(inside[chosen].astype(np.float64))
    there = other.place_of(points)
    index = other.volume.to_index(there)
    shown = ((index > 0) & (index < np.array(other.volume.hu.shape) - 1)).all(axis=1)
    corrected = np.array([alignment.to_current(place)[0] for place in there[shown]])
    back = alignment.affine.inverse()(there[shown])
    return tuple(np.linalg.norm(found - points[shown], axis=1) for found in (back, corrected))  # type: ignore[return-value]


@pytest.mark.slow
def test_a_full_size_thin_ct_lies_right_after_a_deep_breath(shared_data: Path, tmp_path: Path) -> None:
    """LIDC-IDRI-0002, 261 slices, against itself turned and breathed out by 25 mm at its bases."""
    with tarfile.open(shared_data / "chest_ct/lidc_idri_0002/LIDC-IDRI-0002.tar.xz", "r:xz") as archive:
        archive.extractall(tmp_path, filter="data")
    scan = volume_of(tmp_path)
    start = time.process_time()
    lungs = find_lungs(scan)
    first_lungs_s = time.process_time() - start
    other = moved(
        scan,
        motion(degrees=(3.0, 2.0, -5.0), shift_mm=(5.0, 10.0, -40.0)),
        spacing_mm=(1.5, 0.8, 0.8),
        lungs=lungs,
        breath_mm=25.0,
        noise_hu=30.0,
    )

    start = time.process_time()
    affine, corrected = errors_mm(scan, lungs, other)
    seconds = time.process_time() - start + first_lungs_s

    assert np.median(affine) < 3.0
    assert np.median(corrected) < 1.0
    assert np.percentile(corrected, 95) < 3.0
    assert seconds < 30.0  # about 10 on an idle core


def test_a_rigid_or_affine_motion_is_found_within_a_millimetre(scan: Volume, lungs: Lungs) -> None:
    other = moved(
        scan,
        motion(degrees=(8.0, -6.0, 10.0), scale=(1.0, 0.97, 1.08), shift_mm=(25.0, -30.0, 60.0)),
        spacing_mm=(3.0, 0.9, 0.9),
        noise_hu=30.0,
        shift_hu=20.0,
    )

    affine, corrected = errors_mm(scan, lungs, other)

    assert np.percentile(affine, 95) < 1.0
    assert np.percentile(corrected, 95) < 1.0
