"""What a run was made from: counted from its prepared scans, written beside its weights, handed on with its bundle.

    <run>/training.json, <bundle>/training.json     Provenance

Patients are kept as digests, and only in the run's folder: a bundle goes out into the world. A digest of a number as
short as a patient's can be found by trying all: it keeps names out of sight, and makes nothing anonymous.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dicom_node.model.spec import Spec
from training.cases import DataProblem, Scan
from training.checkpoint import LAST
from training.evaluation.claims import Fold
from training.evaluation.marks import patient_digest, person
from training.prepare import write_whole
from training.prepared import PreparedScan
from training.recipe import Recipe
from training.refine import SUMMARY

FACTS = "training.json"
# What the data's publishers ask to be named for, by how their patients are called.
SOURCES = {
    "LIDC-IDRI-": "LIDC-IDRI (Armato et al., Med Phys 2011; The Cancer Imaging Archive, CC BY 3.0, "
    "doi:10.7937/K9/TCIA.2015.LO9QL9SX)",
    "C3N-": "CPTAC-LSCC (The Cancer Imaging Archive, CC BY 3.0, doi:10.7937/K9/TCIA.2018.6EMUB5L2)",
}
LUNA16_SOURCE = "LUNA16's lists of nodules and excluded findings (Setio et al., Med Image Anal 2017, CC BY 4.0)"


class DataPart(Spec):
    """One part of a run's scans. masks: how many nodules have a mask from contours, voxels or a sphere.

    subsets: LUNA16's, where the scans have any. ignored: findings that were neither nodule nor background.
    """

    scans: int
    composites: int
    patients: int
    nodules: int
    ignored: int
    masks: dict[str, int]
    subsets: tuple[int, ...]


class RefinementFacts(Spec):
    """How the second network was made: on how many scans, and on how many its weight in the score was chosen.

    rehearsals: shorter runs that chose the weight, each without one of the lungs; 0: other scans chose it.
    """

    steps: int
    scans: int
    validation: int
    rehearsals: int
    composites: bool


class Provenance(Spec):
    """recipe: as the checkpoint holds it. left_out: scans that `prepare` left out.

    commands: as typed, in the order in which they were first given. scans, patients: UIDs and digests of patients of
    both parts; empty in a bundle. steps, refinement: what was exported; known in a bundle only.
    """

    recipe: Recipe
    train: DataPart
    validation: DataPart | None
    left_out: int
    sources: tuple[str, ...]
    commands: tuple[str, ...]
    machine: str
    scans: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    steps: int | None = None
    refinement: RefinementFacts | None = None

    def told(self) -> str:
        """One line for bundle.json: on which data the weights were made."""
        text = _told(self.train)
        if self.validation is not None:
            text += f"; watched on {_told(self.validation)}"
        if self.recipe.initial_weights.source != "random":
            text += f"; begun from {_begun(self.recipe)}"
        return text


def record(
    run: Path,
    recipe: Recipe,
    learn: Sequence[PreparedScan],
    validation: Sequence[PreparedScan],
    *,
    command: str,
    device: str,
    left_out: int = 0,
) -> Provenance:
    """Writes the run's training.json. A run that goes on adds its command to those before.

    Raises DataProblem where the folder holds a checkpoint of another recipe or of other scans: what was learned
    from must never be forgotten.
    """
    scans = [*learn, *validation]
    uids = tuple(sorted(scan.form.uid for scan in scans))
    before: tuple[str, ...] = ()
    if (run / FACTS).exists():
        old = read_provenance(run)
        if (run / LAST).exists() and (old.recipe != recipe or old.scans != uids):
            raise DataProblem(
                f"{run} holds a run of another recipe or of other scans (another fold?): use a new folder"
            )
        before = old.commands
    facts = Provenance(
        recipe=recipe,
        train=_part(learn),
        validation=_part(validation) if validation else None,
        patients=tuple(sorted({patient_digest(person(s.form.patient, s.form.composite)) for s in scans})),
        left_out=left_out,
        scans=uids,
        sources=_sources(scans),
        commands=before if command in before else (*before, command),
        machine=machine(device),
    )
    run.mkdir(parents=True, exist_ok=True)
    write_provenance(run, facts)
    return facts


def read_provenance(folder: Path) -> Provenance:
    """Of a run or of a bundle. Raises DataProblem."""
    path = folder / FACTS
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except FileNotFoundError as err:
        raise DataProblem(f"{path} is missing: nothing says what the weights were made from") from err
    except (OSError, ValidationError) as err:
        raise DataProblem(f"{path} can't be read ({err}): start the training command again, it writes it") from err


def write_provenance(folder: Path, facts: Provenance) -> None:
    write_whole(folder / FACTS, facts.model_dump_json(indent=1) + "\n")


def fold_of(run: Path, tested: Sequence[Scan], refinement: Path | None = None) -> Fold | None:
    """Whom the run's model saw and whom it is tested on, for LUNA16's name; None where that can't be told.

    Weights that began from another bundle saw its patients, a composite holds the nodules of patients that are not its
    own, and a refinement may have seen scans that the run did not: nobody can vouch for these.
    """
    facts = read_provenance(run)
    parts = [part for part in (facts.train, facts.validation) if part is not None]
    if facts.recipe.initial_weights.source == "bundle" or any(part.composites for part in parts):
        return None
    if refinement is not None and not set(refined_scans(refinement)) <= set(facts.scans):
        return None
    return Fold(
        tested={scan.uid: patient_digest(person(scan.patient, scan.composite)) for scan in tested},
        trained_patients=frozenset(facts.patients),
    )


def seen_in_training(run: Path, tested: Sequence[Scan]) -> int:
    """How many of the tested patients the run had in training or watched. Of composites their lungs; whose nodules they
    hold, and what an earlier bundle saw, no run knows."""
    learned = set(read_provenance(run).patients)
    return len({patient_digest(person(scan.patient, scan.composite)) for scan in tested} & learned)


def refined_scans(refinement: Path) -> list[str]:
    """UIDs of all scans that a refinement's run learned from or chose by. Raises DataProblem."""
    made_of = _refinement(refinement)["scans"]
    return [*made_of["training"], *made_of["validation"]]


def refinement_facts(refinement: Path) -> RefinementFacts:
    """Raises DataProblem."""
    raw = _refinement(refinement)
    return RefinementFacts(
        steps=raw["steps"],
        scans=len(raw["scans"]["training"]),
        validation=len(raw["scans"]["validation"]),
        rehearsals=raw["rehearsals"],
        composites=raw["composites"],
    )


def _refinement(folder: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
        if (
            not {"training", "validation"} <= raw["scans"].keys()
            or not {"steps", "composites", "rehearsals"} <= raw.keys()
        ):
            raise ValueError("scans, steps, composites or rehearsals are missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataProblem(f"{folder / SUMMARY} can't be read ({err!r}): run the refinement to its end first") from err
    return raw


def machine(device: str) -> str:
    """What computed, in words; no name of a host."""
    if device.startswith("cuda"):
        what = torch.cuda.get_device_name(torch.device(device))
    else:
        what = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{what}, Python {platform.python_version()}, torch {torch.__version__}"


def _part(scans: Sequence[PreparedScan]) -> DataPart:
    nodules = [nodule for scan in scans for nodule in scan.form.nodules]
    return DataPart(
        scans=len(scans),
        composites=sum(scan.form.composite for scan in scans),
        patients=len({scan.form.patient for scan in scans}),
        nodules=len(nodules),
        ignored=sum(len(scan.form.ignored) for scan in scans),
        masks=dict(sorted(Counter(nodule.mask_from for nodule in nodules).items())),
        subsets=tuple(sorted({scan.form.subset for scan in scans if scan.form.subset is not None})),
    )


def _sources(scans: Sequence[PreparedScan]) -> tuple[str, ...]:
    """Composites carry their lung's patient's name; their nodules, like all subsets, are LUNA16's."""
    named = [text for prefix, text in SOURCES.items() if any(scan.form.patient.startswith(prefix) for scan in scans)]
    if any(scan.form.subset is not None for scan in scans):
        named = list(dict.fromkeys([SOURCES["LIDC-IDRI-"], *named, LUNA16_SOURCE]))
    known = (*SOURCES,)
    if any(scan.form.subset is None and not scan.form.patient.startswith(known) for scan in scans):
        named.append("scans of whoever trained it")
    return tuple(named)


def _told(part: DataPart) -> str:
    if part.composites:
        whole = part.composites == part.scans
        lungs = f"the real lungs of {counted(part.patients, 'patient')}"
        text = f"{counted(part.composites, 'composite')} (real nodules blended into {lungs})"
        text = text if whole else f"{counted(part.scans, 'scan')}, {text} among them"
    else:
        text = f"{counted(part.scans, 'scan')} of {counted(part.patients, 'patient')}"
    text += f" with {counted(part.nodules, 'nodule')}"
    if part.subsets:
        text += f", LUNA16 subset{'s' if len(part.subsets) > 1 else ''} {', '.join(map(str, part.subsets))}"
    return text


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _begun(recipe: Recipe) -> str:
    return "ImageNet's weights" if recipe.initial_weights.source == "imagenet" else "an earlier bundle's weights"
