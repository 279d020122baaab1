"""The model card: what a reader must know before trusting a bundle, with the figures that `evaluate` wrote."""

from __future__ import annotations

from typing import Any

TEXT = """# {name} {version}

**Research use, not for diagnosis.** No regulatory clearance, no clinical validation.

## What it is
A small 2.5D Mask R-CNN that marks lung nodules in chest CT: ResNet-18 without its last stage, FPN-128 on
strides 4 to 16, slim heads; {megabytes:.1f} MB in half precision. Input: CT at 1 mm isotropic, HU -1200 to 600,
the slice with its neighbours 2 mm above and below as channels, upsampled x2 in plane. Slice detections are linked to
3D candidates. Every number is in `bundle.json`; the code that applies them is `dicom_node.model`.
It was trained on a CPU in about an hour and a half and is a starting point, not the reference model.

## Intended use
Showing and testing a PACS-side node end to end on adult chest CT with slices up to 3 mm; a baseline that a
larger model is compared with. Not for patients, not for screening, not as a second reader.

## Training data
- Positives: {positives} crops of LIDC-IDRI nodules with masks (LUNA16 subsets 0 to 7). No crop of the patients
  LIDC-IDRI-0001 and LIDC-IDRI-0002, none of subset 8 (held out), none of subset 9, nor of any patient of these crops.
- Backgrounds: the whole scans LIDC-IDRI-0002 (its excluded findings ignored) and C3N-00247 (its lesion ignored).
- The two were blended into **composites**: a real nodule in a real lung where it never was.
- The scan LIDC-IDRI-0001 was in no way part of training.

## How it was made
```
{commands}
```
{history}

## Figures
Machine: {machine}.
Figures on composites are figures on composites, and the false positives of LIDC-IDRI-0002 and C3N-00247 are
those of scans the network has seen as backgrounds: expect more elsewhere. The operating point and, at an earlier
checkpoint, the scoring rule were chosen on the same composites, whose lungs are those of LIDC-IDRI-0001: its
false positives, too, are better than a fresh scan's would be. Single run, no interval.
A mark hits when it lies within the nodule's radius (at least 1.6 mm). Operating point: score {point:g}, chosen on the
composites and LIDC-IDRI-0002, not on the real nodule of LIDC-IDRI-0001.

{figures}

## Limits
- Two scans of background and {positives} nodules are little: unusual anatomy, disease (fibrosis, effusion,
  emphysema), strong motion or metal were not seen. Ground-glass nodules are few (about 1 in 6).
- Pasted nodules are cleaner than real ones; nodules at hila and at vessels are under-represented.
- Vessels that cross the slices at a right angle are the most common false positive; there is no 3D
  false-positive stage.
- Every second millimetre is looked at: nodules under 4 mm get one or two slices, and were not judged apart.
  Slices thicker than 3 mm were not judged at all.
- Composites measure whether the path from voxels to findings works, not clinical performance.

## Licence and sources
Weights and code: Apache-2.0. Images: LIDC-IDRI (Armato et al., Med Phys 2011; The Cancer Imaging Archive, CC BY 3.0,
doi:10.7937/K9/TCIA.2015.LO9QL9SX) and CPTAC-LSCC (The Cancer Imaging Archive, CC BY 3.0,
doi:10.7937/K9/TCIA.2018.6EMUB5L2). LUNA16's lists of nodules (Setio et al., Med Image Anal 2017, CC BY 4.0) gave
centres and diameters of the crops.
"""


def render(description: dict[str, Any], facts: dict[str, Any]) -> str:
    """description: what bundle.json holds. facts: megabytes, positives, commands, history, machine."""
    rows = ["| figure | value | data | definition |", "| --- | --- | --- | --- |"]
    rows += [f"| {m['name']} | {m['value']:.3g} | {m['data']} | {m['definition']} |" for m in description["metrics"]]
    return TEXT.format(
        name=description["name"],
        version=description["version"],
        point=description["thresholds"]["operating_point"],
        figures="\n".join(rows) if description["metrics"] else "None yet: these weights were not judged.",
        **facts,
    )
