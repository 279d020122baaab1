"""What the node measures on real nodules, beside what LUNA16 says of them: 904 crops of LIDC-IDRI with readers' masks.

Prints Markdown tables for docs/measurement.md: size against `diameter_mm`, the readers' own outlines against it, and
how far readers' volumes spread. With --figure also the picture there. Nothing here is a time.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Finding
from dicom_node.results.measure import BORDER_SD_VOXELS, Measurement, measure, volume_error_mm3
from training.readers.lidc import LidcScan, consensus, default_database, outline_mask, read_lidc
from training.readers.masks import tight
from training.voi import Voi, read_voi

SIZES_MM = ((0.0, 5.0), (5.0, 8.0), (8.0, 12.0), (12.0, 20.0), (20.0, 40.0))
KINDS = ("equivalent diameter", "mean of the axes", "long axis", "short axis")
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#555555"  # Okabe and Ito: told apart by colour-blind readers too

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One crop, measured. row: its line of metadata.csv."""

    row: dict[str, str]
    voi: Voi
    measured: Measurement


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench/measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds nodule_voi")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    cases = list(read_cases(arguments.data))
    true = np.array([case.voi.diameter_mm for case in cases])
    sizes = sizes_of(cases)
    print(_size_table(sizes, true))
    scans = read_lidc(default_database())
    print(_outline_line(cases, scans))
    print(_spread_table(cases, scans))
    if arguments.figure:
        _draw(sizes, true, arguments.figure)


def read_cases(data: Path) -> Iterator[Case]:
    """All crops below `data`/nodule_voi, each measured on its own grid."""
    with (data / "nodule_voi" / "metadata.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            voi = read_voi(data, row)
            yield Case(row=row, voi=voi, measured=measure(finding_of(voi), voi.volume))


def finding_of(voi: Voi) -> Finding:
    mask, corner = tight(voi.mask, (0, 0, 0))
    x, y, z = voi.center_mm.tolist()
    return Finding(mask=mask, corner=corner, center_mm=(x, y, z), score=1.0, side=None)


def sizes_of(cases: Sequence[Case]) -> dict[str, Array]:
    """By KINDS, mm."""
    found = [case.measured for case in cases]
    columns = [(m.equivalent_diameter_mm, (m.long_axis_mm + m.short_axis_mm) / 2, m.long_axis_mm, m.short_axis_mm)
               for m in found]  # fmt: skip
    return dict(zip(KINDS, np.array(columns).T, strict=True))


def _size_table(sizes: dict[str, Array], true: Array) -> str:
    lines = [
        "| minus `diameter_mm`, mm | size, mm | nodules | median | middle half | 95 of 100 |",
        "|---|---|---|---|---|---|",
    ]
    for kind, values in sizes.items():
        for low, high in ((0.0, 99.0), *SIZES_MM):
            chosen = (true >= low) & (true < high)
            name = f"{low:.0f} to {high:.0f}" if high < 99 else "all"
            lines.append(f"| {kind} | {name} | {chosen.sum()} | {_spread((values - true)[chosen])} |")
    return "\n".join(lines) + "\n"


def _spread(errors: Array) -> str:
    low, first, median, third, high = np.percentile(errors, (2.5, 25, 50, 75, 97.5))
    return f"{median:+.2f} | {first:+.2f} to {third:+.2f} | {low:+.2f} to {high:+.2f}"


def _outline_line(cases: Sequence[Case], scans: dict[str, LidcScan]) -> str:
    """The sphere of the readers' mean volume, strictly within their outlines, against diameter_mm.

    The database has no origin of the images, so a nodule is found by its z: only where no other of three readers or
    more lies within 10 mm of it, and one within 2 mm.
    """
    errors = []
    for case in cases:
        scan = scans[case.row["seriesuid"]]
        z_mm = np.array(scan.z_mm)
        spacing = (float(np.median(np.diff(z_mm))), scan.pixel_mm, scan.pixel_mm)
        nodules = [found for found in consensus(scan, _slice_at(z_mm), spacing) if found.readers >= 3]
        off = np.array([abs(np.interp(found.center[0], np.arange(len(z_mm)), z_mm) - float(case.row["coordZ"]))
                        for found in nodules])  # fmt: skip
        if (off < 2.0).sum() == 1 and (off < 10.0).sum() == 1:
            volume_mm3 = nodules[int(off.argmin())].voxels * float(np.prod(spacing))
            errors.append((6 * volume_mm3 / np.pi) ** (1 / 3) - case.voi.diameter_mm)
    return f"readers' outlines, strictly within, {len(errors)} nodules: {_spread(np.array(errors))}\n"


def _slice_at(z_mm: Array) -> Callable[[float], int]:
    return lambda z: int(np.abs(z_mm - z).argmin())


def _spread_table(cases: Sequence[Case], scans: dict[str, LidcScan]) -> str:
    """Standard deviation of three or four readers' volumes of one nodule, as a shift of the border in voxels."""
    rows = []
    for uid in sorted({case.row["seriesuid"] for case in cases}):
        scan = scans[uid]
        z_mm = np.array(scan.z_mm)
        spacing = (float(np.median(np.diff(z_mm))), scan.pixel_mm, scan.pixel_mm)
        for found in consensus(scan, _slice_at(z_mm), spacing):
            if len(found.outlines) not in (3, 4):
                continue
            masks = [outline_mask(scan.outlines[i], _slice_at(z_mm))[0] for i in found.outlines]
            voxels = np.array([mask.sum() for mask in masks])
            shell = np.mean([volume_error_mm3(mask, 1.0) for mask in masks]) / BORDER_SD_VOXELS
            volume_mm3 = voxels.mean() * float(np.prod(spacing))
            rows.append(((6 * volume_mm3 / np.pi) ** (1 / 3), voxels.std(ddof=1) / shell,
                         voxels.std(ddof=1) / voxels.mean(), BORDER_SD_VOXELS * shell / voxels.mean()))  # fmt: skip
    found = np.array(rows)
    lines = [
        "| readers' nodules, mm | nodules | SD of their volumes | as a shift of the border | what we state |",
        "|---|---|---|---|---|",
    ]
    for low, high in ((3.0, 5.0), *SIZES_MM[1:]):
        of_size = found[(found[:, 0] >= low) & (found[:, 0] < high)]
        volume, shift = (np.sqrt((of_size[:, column] ** 2).mean()) for column in (2, 1))
        lines.append(
            f"| {low:.0f} to {high:.0f} | {len(of_size)} | {volume:.0%} | {shift:.2f} voxels"
            f" | {np.median(of_size[:, 3]):.0%} |"
        )
    return "\n".join(lines) + "\n"


def _draw(sizes: dict[str, Array], true: Array, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), dpi=110, layout="constrained")
    left.plot([3, 35], [3, 35], color=GREY, linewidth=1)
    for kind, colour, marker in ((KINDS[1], ORANGE, "^"), (KINDS[0], BLUE, "o")):
        left.scatter(true, sizes[kind], s=9, color=colour, marker=marker, alpha=0.55, linewidths=0, label=kind)
    left.set(xscale="log", yscale="log", xlim=(3, 35), ylim=(3, 60))
    left.set(xlabel="diameter_mm of LUNA16 (mm)", ylabel="measured on the mask (mm)")
    for axis, ticks in ((left.xaxis, (3, 5, 8, 12, 20, 30)), (left.yaxis, (3, 5, 8, 12, 20, 30, 50))):
        axis.set_major_locator(mpl.ticker.FixedLocator(ticks))
        axis.set_major_formatter("{x:.0f}")
        axis.set_minor_locator(mpl.ticker.NullLocator())
    left.legend(frameon=False, markerscale=2)
    right.axhline(0, color=GREY, linewidth=1)
    for offset, kind, colour in ((-0.18, KINDS[0], BLUE), (0.18, KINDS[1], ORANGE)):
        groups = [(sizes[kind] - true)[(true >= low) & (true < high)] for low, high in SIZES_MM]
        boxes = right.boxplot(
            groups, positions=np.arange(len(groups)) + offset, widths=0.3, whis=(2.5, 97.5), showfliers=False,
            patch_artist=True, medianprops={"color": "black"},
        )  # fmt: skip
        for box in boxes["boxes"]:
            box.set_facecolor(colour)
    counts = [int(((true >= low) & (true < high)).sum()) for low, high in SIZES_MM]
    names = [f"{low:.0f} to {high:.0f}\nn = {n}" for (low, high), n in zip(SIZES_MM, counts, strict=True)]
    right.set_xticks(range(len(SIZES_MM)), ["under 5\n" + names[0].split("\n")[1], *names[1:]])
    right.set(xlabel="diameter_mm of LUNA16 (mm)", ylabel="measured minus diameter_mm (mm)")
    right.text(0.02, 0.97, "box: middle half, whiskers: 95 of 100", transform=right.transAxes, va="top", color=GREY)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": ""})


if __name__ == "__main__":
    main()
