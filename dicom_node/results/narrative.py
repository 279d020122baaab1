"""Reading or Refusal -> plain English: the one text that reports, pictures and the PDF share. No patient data in it."""

from __future__ import annotations

from collections import Counter

from dicom_node import comparison as growth
from dicom_node.comparison import Comparison, DoublingTime, NoduleChange, PriorNodule
from dicom_node.domain import RESEARCH_USE, CTImage, CTSeries, Detection
from dicom_node.results import nodule_type, quantities
from dicom_node.results.reading import Grounds, Reading, Refusal

CAUTION = f"{RESEARCH_USE}. Made by software, verified by nobody."
VOLUME_RULE = (
    "Volume: number of the segmentation's voxels times the volume of a voxel; a voxel counts wholly or not at all, "
    "without a correction for voxels that the nodule fills in part. Its SD: scatter of the same method when the nodule "
    "is measured again."
)
AXES_RULE = (
    "Long and short axis: longest diameter in any axial slice, and the longest one at right angles to it in that "
    "slice. Mean diameter: their mean to the whole millimetre (Fleischner Society 2017)."
)


def narrative(reading: Reading) -> tuple[str, ...]:
    """The whole report in sentences: what was found, how it changed, what it rests on, what it must not be used for."""
    comparison = reading.comparison
    return (
        headline(reading),
        *(() if comparison is None else (sentence(comparison.text),)),
        *(finding_text(reading, number) for number in range(1, len(reading.findings) + 1)),
        *(() if comparison is None else earlier_texts(comparison)),
        *how_made(reading),
        CAUTION,
    )


def refusal_text(refusal: Refusal) -> tuple[str, ...]:
    """That a series was not analysed, why, and what the node had of it."""
    return (
        "NOT ANALYSED. No statement about lung nodules is made.",
        f"Reason: {reason(refusal)}.",
        f"Series completeness: {refusal.grounds.evidence}.",
        *_replaced(refusal.grounds),
        CAUTION,
    )


def reason(refusal: Refusal) -> str:
    """Reason code and its text."""
    return f"{refusal.rejected.reason}: {refusal.rejected.text}"


def headline(reading: Reading) -> str:
    threshold = f"score at or above {reading.model.operating_point:g}"
    count = len(reading.findings)
    if count == 0:
        return f"The series was analysed and no lung nodule candidate was found (no {threshold})."
    return f"{count} lung nodule candidate{'' if count == 1 else 's'} marked ({threshold})."


def finding_text(reading: Reading, number: int) -> str:
    """Finding `number`, from 1: place, type, size, attenuation, score, and its change where there is an earlier CT."""
    finding, measured = reading.findings[number - 1], reading.measurements[number - 1]
    side = f"{finding.side} lung" if finding.side else "side not told apart"
    kind = measured.nodule_type or "type undetermined"
    sentences = [
        f"{reading.tracking[number - 1].identifier}: {side}, {kind}, "
        f"{quantities.axes(measured.long_axis_mm, measured.short_axis_mm)} on {place(reading, number)}.",
        f"Mean diameter {quantities.whole_length(measured.mean_diameter_mm)}, "
        f"volume {quantities.volume_with_error(measured.volume_mm3, measured.volume_error_mm3)}, "
        f"mean attenuation {quantities.attenuation_with_sd(measured.mean_hu, measured.sd_hu)}, "
        f"score {quantities.score(finding.score)}.",
    ]
    change = change_of(reading, number)
    if change is not None:
        sentences.append(change_text(change))
    return " ".join(sentences)


def place(reading: Reading, number: int) -> str:
    """The image of the finding's long axis, as viewers name it: "image 11 (z -85.5 mm)"."""
    index = reading.measurements[number - 1].slice_index
    image = reading.series.images[index]
    return f"{_name(image, index, reading.series)} (z {image.position_mm[2]:.1f} mm)"


def _name(image: CTImage, index: int, series: CTSeries) -> str:
    if image.frame is not None:
        return f"frame {image.frame}"
    instance_number = str(image.header.get("InstanceNumber") or "").strip()
    return f"image {instance_number}" if instance_number else f"slice {index + 1} of {len(series.images)} from the feet"


def change_of(reading: Reading, number: int) -> NoduleChange | None:
    """None where nothing was compared."""
    comparison = reading.comparison
    return comparison.changes[number - 1] if comparison is not None and comparison.changes else None


def change_text(change: NoduleChange) -> str:
    if change.change == "new":
        return "New since the earlier CT."
    if change.change == "not_judged":
        return f"Change not judged: {sentence(change.note)}"
    return f"{change.change.capitalize()}: {_since(change)}."


def _since(change: NoduleChange) -> str:
    parts = []
    if change.prior is not None:
        parts.append(f"{_size(change.prior)} at the earlier CT")
    if change.volume_change_percent is not None:
        parts.append(f"volume {quantities.change_percent(change.volume_change_percent)}")
    # Of a nodule that is stable and a little smaller, the time in which its volume would halve says nothing.
    if change.doubling_time is not None and (change.change != "stable" or change.doubling_time.days >= 0):
        parts.append(doubling_text(change.doubling_time))
    return ", ".join(parts)


def doubling_text(time: DoublingTime) -> str:
    """Doubling time with its interval; of a nodule that shrinks, the time in which its volume halves."""
    name = "volume doubling time" if time.days >= 0 else "volume halving time"
    return f"{name} {quantities.days(abs(time.days))} ({_interval(time)})"


def _interval(time: DoublingTime) -> str:
    """Both bounds on the side of the time itself, or as far as they are: beyond "infinite" lies the other direction."""
    sign = 1.0 if time.days >= 0 else -1.0
    near, far = (time.low, time.high) if sign > 0 else (time.high, time.low)
    if near is None or near * sign <= 0:
        return "95 % interval without a bound"
    if far is None or far * sign < near * sign:
        return f"95 % interval: {quantities.days(near * sign)} or more"
    return f"95 % interval {near * sign:.0f} to {quantities.days(far * sign)}"


def earlier_texts(comparison: Comparison) -> tuple[str, ...]:
    """One sentence an earlier nodule that no finding answers to."""
    return (
        *(f"{_earlier(nodule)} is gone: lung is seen at its place." for nodule in comparison.gone),
        *(
            f"{_earlier(nodule)} is not marked now, though tissue is still seen at its place."
            for nodule in comparison.unmarked
        ),
        *(f"{_earlier(nodule)} lies outside of what this CT shows." for nodule in comparison.not_covered),
    )


def quality_text(comparison: Comparison) -> str:
    """The registration's figures, each to three digits or to the whole."""
    return ", ".join(
        f"{name}: {value:.0f}" if abs(value) >= 100 else f"{name}: {value:.3g}"
        for name, value in comparison.quality.items()
    )


def _earlier(nodule: PriorNodule) -> str:
    return f'Earlier nodule "{nodule.tracking_identifier}" ({_size(nodule)} then)'


def _size(nodule: PriorNodule) -> str:
    return f"{quantities.axes(nodule.long_axis_mm, nodule.short_axis_mm)}, {quantities.volume(nodule.volume_mm3)}"


def how_made(reading: Reading) -> tuple[str, ...]:
    """What the numbers rest on: slices, series, images, model, rules."""
    series, model = reading.series, reading.model
    sentences = [
        f"Slices analysed: {slices_analysed(series, reading.detection)}",
        f"Series completeness: {reading.grounds.evidence}.",
    ]
    if series.left_out:
        sentences.append(f"Instances left out: {left_out(series)}.")
    if series.lossy is not None:
        sentences.append(f"Lossy compression: {lossy(series)}")
    sentences.append(f"Model: {model.name} {model.version}, bundle sha256 {model.bundle_sha256}.")
    if reading.findings:
        sentences.extend(measuring_rules())
    if reading.comparison is not None and reading.comparison.changes:
        sentences.append(growth.RULE)
    return (*sentences, *_replaced(reading.grounds))


def measuring_rules() -> tuple[str, ...]:
    """How sizes and type were come by."""
    return AXES_RULE, VOLUME_RULE, f"Type: {nodule_type.RULE}."


def slices_analysed(series: CTSeries, detection: Detection) -> str:
    first, end = detection.analysed
    total = len(series.images)
    z = [series.images[index].position_mm[2] for index in (first, end - 1)]
    text = (
        f"{end - first} of {total}, slices {first + 1} to {end} counted from the feet, z {z[0]:.1f} to {z[1]:.1f} mm."
    )
    missed = [f"{count} {where}" for count, where in ((first, "below"), (total - end, "above")) if count]
    return text + (f" Not analysed: {' and '.join(missed)}, outside the lungs and their margin." if missed else "")


def left_out(series: CTSeries) -> str:
    reasons = Counter(series.left_out.values())
    listed = ", ".join(f"{count} x {why}" for why, count in sorted(reasons.items()))
    return f"{len(series.left_out)} not part of the volume: {listed}"


def lossy(series: CTSeries) -> str:
    return f"{series.lossy}. Small structures may be altered by it."


def _replaced(grounds: Grounds) -> tuple[str, ...]:
    if grounds.predecessor is None:
        return ()
    return (f"This report replaces an earlier one of the same series ({grounds.predecessor.sop_instance_uid}).",)


def sentence(text: str) -> str:
    """With a full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
