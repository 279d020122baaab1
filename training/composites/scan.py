"""A Background and nodules -> one composite scan with its truth: what was put where, visible part by visible part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import simple_itk
from training.augment import random_frame
from training.cases import Ignored, Nodule
from training.composites.backgrounds import Background
from training.composites.blend import LUNG_BELOW_HU, Graft, Placed, ball, blended, graft_of, place, sample
from training.composites.sites import SHARES, TISSUE_HU, Kind
from training.voi import NONE_MM, Voi

Array = NDArray[np.float64]
Where = Kind | Literal["surroundings"]
Trace = Literal["lung", "vessel", "crop"]

APART_MM = 8.0
TRIES = 60
TILT_DEG, TURN_DEG = 25.0, 180.0
ZOOM = (0.9, 1.15)
# The lungs' surface is known to about a millimetre.
OUTSIDE_MM, FADE_OUT_MM = 1.0, 2.0
LEAST_VISIBLE = 0.6
# How much of a nodule may lie on what is already tissue there.
MOST_TISSUE: dict[Where, float] = {"parenchyma": 0.10, "vessel": 0.25, "wall": 0.40, "surroundings": 0.25}
# A crop with more tissue than this beside its nodule brings a wall along, which has no place inside a lung.
MOST_SURROUNDING_TISSUE = 0.12
SURROUNDINGS_DEEP_MM = 12.0
CROP_REACH_MM = 20.0
SEEN_WEIGHT, SEEN_INSIDE = 0.1, 0.3

SMALL_PER_SCAN = 3
SMALL_MM = (2.0, 3.0)
SMALL_FROM_MM = (4.0, 10.0)
TRACES_PER_NODULE = 0.7
TRACE_SHARES: dict[Trace, float] = {"lung": 0.55, "vessel": 0.45}
PIECE_MM = (4.0, 8.0)
# What a trace may hold: HU, and the share that may be brighter. A piece of hilum looks like a nodule once it is alone.
MOST_BRIGHT: dict[Trace, tuple[float, float]] = {
    "lung": (LUNG_BELOW_HU, 0.10),
    "vessel": (TISSUE_HU, 0.15),
    "crop": (TISSUE_HU, 0.10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inserted:
    """A nodule in a composite. kind: the site. nodule.name: the crop it came from."""

    nodule: Nodule
    kind: Where


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunken:
    """A nodule made smaller than any that LUNA16 includes. source: the crop it came from."""

    finding: Ignored
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A place with the traces of blending and no nodule. kind: what was pasted. In no list of the composite."""

    center_mm: Array
    radius_mm: float
    kind: Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """volume: on the background's grid. own: the background's findings; they and the shrunken nodules are excluded."""

    volume: Volume
    nodules: tuple[Inserted, ...]
    own: tuple[Ignored, ...]
    shrunken: tuple[Shrunken, ...]
    traces: tuple[Traced, ...]
    left_over: tuple[Voi, ...]


@dataclass(slots=True, kw_only=True)
class Canvas:
    """The scan while things are put into it.

    busy: (n, 4) x, y, z, radius of what must be kept clear. taken: voxels of what was put in and is in a list.
    """

    background: Background
    volume: Volume
    rng: np.random.Generator
    busy: Array
    taken: NDArray[np.bool_]
    nodules: list[Inserted] = field(default_factory=list)
    shrunken: list[Shrunken] = field(default_factory=list)
    traces: list[Traced] = field(default_factory=list)

    def free(self, center_mm: Array, radius_mm: float) -> bool:
        gaps = np.linalg.norm(self.busy[:, :3] - center_mm, axis=1) - self.busy[:, 3] - radius_mm
        return bool((gaps > APART_MM).all())

    def occupy(self, center_mm: Array, radius_mm: float) -> None:
        self.busy = np.concatenate([self.busy, [[*center_mm, radius_mm]]])

    def graft(self, graft: Graft, center_mm: Array) -> Placed:
        """The graft at a place, turned and zoomed at random."""
        # The frame leads from the scan to the crop: what shrinks there enlarges here.
        zoom = (1 / ZOOM[1], 1 / ZOOM[0])
        return self.cut(place(graft, self.volume, center_mm, random_frame(self.rng, TILT_DEG, TURN_DEG, zoom)))

    def cut(self, placed: Placed) -> Placed:
        """What is placed ends where the lung ends: behind its surface nothing changes."""
        beyond_mm = self.background.lungs.distance_at(placed.points_mm) - OUTSIDE_MM
        weight = placed.weight * (1 - beyond_mm / FADE_OUT_MM).clip(0, 1)
        return replace(placed, weight=weight.astype(np.float32))

    def spares(self, placed: Placed) -> bool:
        """Whether nothing listed would be painted over: a crop reaches far beyond its nodule."""
        return not (self.taken[placed.window] & (placed.weight > SEEN_WEIGHT)).any()

    def write(self, placed: Placed) -> None:
        there = self.volume.hu[placed.window].astype(np.float32)
        mixed = blended(there, placed, self.background.texture)
        self.volume.hu[placed.window] = mixed.round().clip(-32768, 32767).astype(np.int16)


def compose_scan(
    background: Background,
    vois: Sequence[Voi],
    others: Sequence[Background],
    rng: np.random.Generator,
    *,
    own_surroundings: float = 0.0,
) -> Composite:
    """The same generator state gives the same bits.

    others: where the lung of the distractors comes from. own_surroundings: share of nodules that bring their crop.
    """
    busy = np.array([(*e.center_mm, e.radius_mm) for e in background.excluded], dtype=np.float64).reshape(-1, 4)
    volume = Volume(hu=background.volume.hu.copy(), affine=background.volume.affine)
    taken = np.zeros(volume.hu.shape, dtype=np.bool_)
    canvas = Canvas(background=background, volume=volume, rng=rng, busy=busy, taken=taken)
    # Large ones find fewer places, so they go first.
    left_over = [
        voi
        for voi in sorted(vois, key=lambda v: -v.diameter_mm)
        if not _put_nodule(canvas, voi, rng.random() < own_surroundings)
    ]
    _put_shrunken(canvas, vois)
    for _ in range(rng.poisson(TRACES_PER_NODULE * len(vois))):
        _put_trace(canvas, others, vois, crops=own_surroundings)
    return Composite(
        volume=canvas.volume,
        nodules=tuple(canvas.nodules),
        own=background.excluded,
        shrunken=tuple(canvas.shrunken),
        traces=tuple(canvas.traces),
        left_over=tuple(left_over),
    )


def _put_nodule(canvas: Canvas, voi: Voi, own_surroundings: bool) -> bool:
    own = own_surroundings and _surrounding_tissue(voi) < MOST_SURROUNDING_TISSUE
    graft = graft_of(voi, own_surroundings=own)
    for kind in ("surroundings",) if own else _kinds(canvas.rng):
        for _ in range(TRIES):
            center = _site(canvas, kind, voi.diameter_mm / 2)
            if center is None:
                continue
            placed = canvas.graft(graft, center)
            visible = _visible(canvas, placed, kind)
            if visible is None or not canvas.spares(placed):
                continue
            canvas.write(placed)
            canvas.taken[placed.window] |= visible
            nodule = nodule_of(canvas.volume, voi.name, visible, placed.window)
            canvas.nodules.append(Inserted(nodule=nodule, kind=kind))
            canvas.occupy(np.array(nodule.center_mm), nodule.diameter_mm / 2)
            return True
    return False


def _kinds(rng: np.random.Generator) -> tuple[Where, ...]:
    """One drawn by its share, then the others, for where nothing of the first kind is free."""
    kinds: list[Where] = list(SHARES)
    first = kinds.pop(int(rng.choice(len(kinds), p=list(SHARES.values()))))
    return first, *kinds


def _surrounding_tissue(voi: Voi) -> float:
    beside = voi.volume.hu[(voi.blend == 0)]
    return float((beside > TISSUE_HU).mean()) if beside.size else 1.0


def _site(canvas: Canvas, kind: Where, radius_mm: float) -> Array | None:
    """A point where such a nodule fits and nothing else is near."""
    sites, rng = canvas.background.sites, canvas.rng
    if kind == "surroundings":
        fitting = sites.deeper_than(max(radius_mm, SURROUNDINGS_DEEP_MM), radius_mm)
    else:
        fitting = sites.fitting(kind, radius_mm)
    if not len(fitting):
        return None
    center = sites.points_mm[rng.choice(fitting)] + rng.uniform(-1, 1, 3)
    return center if canvas.free(center, radius_mm) else None


def _visible(canvas: Canvas, placed: Placed, kind: Where) -> NDArray[np.bool_] | None:
    """The nodule's voxels inside the lung, in one piece and not behind the wall; None where too few are left."""
    nodule = placed.inside >= 0.5
    count = nodule.sum()
    in_lung = canvas.background.lungs.distance_at(placed.points_mm) <= OUTSIDE_MM
    tissue = canvas.volume.hu[placed.window] > TISSUE_HU
    if not count or (nodule & tissue & in_lung).sum() > MOST_TISSUE[kind] * count:
        return None
    visible = nodule & in_lung
    if kind == "wall":
        visible &= ~tissue | canvas.background.sites.in_vessel(placed.points_mm)
    if not visible.any():
        return None
    visible = _largest_part(visible)
    return visible if visible.sum() >= LEAST_VISIBLE * count else None


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    sitk = simple_itk()
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True))
    return np.asarray(sitk.GetArrayFromImage(parts) == 1)


def nodule_of(volume: Volume, name: str, mask: NDArray[np.bool_], window: tuple[slice, slice, slice]) -> Nodule:
    """Centre: the mask's centroid. Diameter: of the ball of its volume."""
    where = np.argwhere(mask)
    first, last = where.min(axis=0), where.max(axis=0) + 1
    low = np.array([s.start for s in window])
    k, r, c = (int(v) for v in low + first)
    x, y, z = (float(v) for v in volume.to_mm(where.mean(axis=0) + low))
    return Nodule(
        name=name,
        center_mm=(x, y, z),
        diameter_mm=float((6 * len(where) * volume.voxel_mm3 / np.pi) ** (1 / 3)),
        mask=mask[tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))],
        corner=(k, r, c),
        mask_from="voxels",
    )


def _put_shrunken(canvas: Canvas, vois: Sequence[Voi]) -> None:
    """Nodules shrunken below LUNA16's 3 mm: listed as excluded, as one or two readers' findings are."""
    rng = canvas.rng
    sources = [v for v in vois if SMALL_FROM_MM[0] <= v.diameter_mm <= SMALL_FROM_MM[1]]
    for _ in range(SMALL_PER_SCAN * bool(sources)):
        voi = sources[int(rng.integers(len(sources)))]
        diameter = rng.uniform(*SMALL_MM)
        zoom = diameter / voi.diameter_mm
        graft = graft_of(voi)
        kind: Kind = "parenchyma" if rng.random() < 0.6 else "vessel"
        frame = random_frame(rng, TILT_DEG, TURN_DEG, (1 / zoom, 1 / zoom))
        for _ in range(TRIES):
            center = _site(canvas, kind, diameter / 2)
            if center is None:
                continue
            placed = canvas.cut(place(graft, canvas.volume, center, frame))
            if canvas.spares(placed):
                canvas.write(placed)
                canvas.taken[placed.window] |= placed.inside >= SEEN_INSIDE
                canvas.occupy(center, diameter / 2)
                x, y, z = (float(v) for v in center)
                finding = Ignored(center_mm=(x, y, z), diameter_mm=float(diameter))
                canvas.shrunken.append(Shrunken(finding=finding, source=voi.name))
                break


def _put_trace(canvas: Canvas, others: Sequence[Background], vois: Sequence[Voi], crops: float) -> None:
    """The traces that blending leaves, round nothing: a network must not learn them."""
    rng = canvas.rng
    voi, other = vois[int(rng.integers(len(vois)))], others[int(rng.integers(len(others)))]
    kinds = list(TRACE_SHARES)
    kind: Trace = "crop" if rng.random() < crops else kinds[rng.choice(len(kinds), p=list(TRACE_SHARES.values()))]
    radius = float(rng.uniform(*PIECE_MM)) if kind == "vessel" else voi.diameter_mm / 2
    where: Where = "surroundings" if kind == "crop" else ("wall", "parenchyma")[rng.integers(2)]
    for _ in range(TRIES):
        center = _site(canvas, where, radius)
        if center is None:
            continue
        source = _source(other, rng, kind, CROP_REACH_MM if kind == "crop" else radius + NONE_MM)
        if source is None:
            continue
        if kind == "vessel":
            shape = canvas.cut(ball(canvas.volume, center, radius))
        else:
            shape = canvas.graft(graft_of(voi, own_surroundings=kind == "crop"), center)
        turned = random_frame(rng, TILT_DEG, TURN_DEG, (1.0, 1.0))
        content = sample(other.volume, source + (shape.points_mm - center) @ turned.T)
        limit_hu, most = MOST_BRIGHT[kind]
        if (content[shape.weight > 0.5] > limit_hu).mean() > most or not canvas.spares(shape):
            continue
        if kind == "lung":
            # A vessel cut to a nodule's shape would be one.
            content = content.clip(max=LUNG_BELOW_HU)
        canvas.write(replace(shape, content=content, lung=other.texture.interpolated()))
        canvas.traces.append(Traced(center_mm=center, radius_mm=radius, kind=kind))
        canvas.occupy(center, radius)
        return


def _source(other: Background, rng: np.random.Generator, kind: Trace, radius_mm: float) -> Array | None:
    """A point of another lung, or of one of its vessels, clear of what may be a nodule there."""
    sites = other.sites
    fitting = sites.on_vessels() if kind == "vessel" else sites.deeper_than(radius_mm, radius_mm)
    if not len(fitting):
        return None
    source = sites.points_mm[rng.choice(fitting)]
    clear = all(np.linalg.norm(source - e.center_mm) > e.radius_mm + radius_mm for e in other.excluded)
    return source if clear else None
