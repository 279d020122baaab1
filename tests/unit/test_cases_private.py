"""Exported cases as an adversary reads them: nothing of whom they are of, and no patient in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless

from dicom_node.cases.deidentify import KEPT, METHOD, deidentified
from dicom_node.cases.patients import identities_of, settle
from dicom_node.errors import CaseRefused, ConfigError
from tests.fakes.corrected import corrected_seg
from tests.fakes.ct import make_ct_series
from tests.unit.test_flow import Node
from tests.unit.test_reviews import NAMES, export, images, make, mask_of, new_nodule, node, send, tracking

__all__ = ["make", "node"]  # fixtures

CANARY = "ZEBRAFINCH"
DAY, MOMENT = "19440229", "112233.445566"
UID = "1.2.826.0.1.3680043.8.498.4711471147114711"
# What an image must say to be taken for a CT at all, and what the gate looks at.
NEEDED = {
    "Modality", "PatientPosition", "PhotometricInterpretation", "SpecificCharacterSet", "BurnedInAnnotation",
    "RecognizableVisualFeatures", "LossyImageCompression", "ImageType", "SOPClassUID", "SOPInstanceUID",
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "IssuerOfPatientID",
    "PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique", "ConcatenationUID",
    "RescaleType", "PatientSex",
}  # fmt: skip
TEXTS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
VALUES = {
    **dict.fromkeys(TEXTS, CANARY),
    "PN": f"{CANARY}^ADA",
    "DA": DAY,
    "TM": MOMENT,
    "DT": DAY + MOMENT,
    "UI": UID,
    "AS": "081Y",
}


def everywhere(ds: Dataset) -> None:
    """A word that tells in every attribute of the dictionary that can hold one, nested and private ones among them."""
    for tag, (vr, _vm, _name, _retired, keyword) in DicomDictionary.items():
        if vr in VALUES and keyword and keyword not in NEEDED and tag >> 16 > 0x0004 and tag >> 16 < 0x7FE0:
            ds.add_new(tag, vr, VALUES[vr])
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", CANARY]
    other = Dataset()
    other.PatientID = f"{CANARY}-2"
    ds.OtherPatientIDsSequence = [other]
    block = ds.private_block(0x0099, CANARY, create=True)
    block.add_new(1, "LO", CANARY)
    step = Dataset()
    step.ScheduledProcedureStepDescription = CANARY
    ds.RequestAttributesSequence = [step]


def hidden(ds: Dataset) -> None:
    """Words behind the image, and a plane in the bits that it does not use."""
    assert (ds.BitsAllocated, ds.BitsStored) == (16, 16)
    ds.PixelData += CANARY.encode() * 2


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_word_in_every_attribute_of_ct_and_correction_is_nowhere_in_the_export(node: Node, tmp_path: Path) -> None:
    header = {"PatientID": f"{CANARY}-1", "PatientName": f"{CANARY}^ADA"}
    for path in make_ct_series(node.folder / "scanner", shape=(8, 64, 64), header=header):
        ds = pydicom.dcmread(path)
        everywhere(ds)
        hidden(ds)
        ds.save_as(path, enforce_file_format=True)
        data = bytearray(path.read_bytes())
        data[:10] = CANARY.encode()  # the preamble, which anybody may write
        path.write_bytes(bytes(data))
        node._store(path)
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.analyse(job_id)
    mask = mask_of(node, job_id)
    seg = corrected_seg(images(node), [("Nodule 1", tracking(node, job_id), mask), (CANARY, "", new_nodule(mask))])
    uids = [str(seg.SOPInstanceUID), str(seg.SeriesInstanceUID)]
    for tag, (vr, _vm, _name, _retired, keyword) in DicomDictionary.items():
        if vr in {"LO", "LT", "PN", "SH", "ST", "UC", "UT"} and keyword and keyword not in seg and tag >> 16 > 4:
            seg.add_new(tag, vr, VALUES[vr])
    seg.SegmentSequence[1].SegmentDescription = seg.SegmentSequence[1].TrackingID = CANARY
    seg.PatientID = f"{CANARY}-1"
    send(node, seg)

    made = export(node, tmp_path / "out")
    assert (len(made.cases), dict(made.left_out)) == (1, {})
    secrets = [CANARY, DAY, MOMENT, UID, "081Y", *uids, str(images(node)[0].SeriesInstanceUID)]
    files = bytes_of(tmp_path / "out")
    assert len(files) == 8 + 2
    [case] = {path.parent for path in (tmp_path / "out").rglob("case.json")}
    assert case.stat().st_mode & 0o007 == 0, "other users of the machine read no CT"
    for name, data in files.items():
        assert [s for s in secrets if s.lower().encode() in data.lower() or s.lower() in name.lower()] == [], name
    # What is left of an image says what the profile asks for.
    ct = pydicom.dcmread(next((tmp_path / "out").rglob("0001.dcm")))
    assert (ct.PatientIdentityRemoved, ct.DeidentificationMethod) == ("YES", METHOD)
    assert ct.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert ct.LongitudinalTemporalInformationModified == "REMOVED"
    assert [keyword_for_tag(e.tag) for e in ct if e.VR in ("DA", "TM", "DT") and e.value] == []


def test_a_comment_in_a_codestream_and_a_plane_in_unused_bits_do_not_go_along(tmp_path: Path) -> None:
    [path] = make_ct_series(tmp_path, shape=(1, 64, 64))
    ds = pydicom.dcmread(path)
    ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 0, 12, 11
    stored = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 4096
    ds.PixelData = stored.tobytes()
    ds.compress(JPEG2000Lossless)
    data = ds.PixelData
    at = data.index(b"\xff\x52")  # before COD: a comment in Latin text, rec. ITU-T T.800 A.9.2
    comment = b"\xff\x64" + (4 + len(CANARY)).to_bytes(2, "big") + b"\x00\x01" + CANARY.encode()
    start = data.index(b"\xff\x4f\xff\x51")
    length = int.from_bytes(data[start - 4 : start], "little") + len(comment)
    odd = length % 2
    ds.PixelData = data[: start - 4] + (length + odd).to_bytes(4, "little") + data[start:at] + comment + data[at:]
    if odd:
        end = ds.PixelData.rindex(b"\xfe\xff\xdd\xe0")
        ds.PixelData = ds.PixelData[:end] + b"\0" + ds.PixelData[end:]
    ds.save_as(path)
    assert CANARY.encode() in path.read_bytes()
    clean = deidentified(path, NAMES, "CASE-1")
    assert CANARY.encode() not in clean.PixelData
    assert np.array_equal(np.frombuffer(clean.PixelData, "<u2").reshape(64, 64), stored)

    ds.decompress()
    ds.PixelData = (stored | np.uint16(0xA000)).tobytes()  # an overlay of before 2004
    ds.save_as(path)
    assert np.array_equal(np.frombuffer(deidentified(path, NAMES, "CASE-1").PixelData, "<u2").reshape(64, 64), stored)


def test_of_maker_model_and_kernel_only_words_that_scanners_use_are_kept(tmp_path: Path) -> None:
    def kept(**header: Any) -> Dataset:
        [path] = make_ct_series(tmp_path, shape=(1, 64, 64), header=header)
        return deidentified(path, NAMES, "CASE-1")

    for kernel in ("B30f", "LUNG", "STANDARD", ["Br40d", "3"]):
        assert kept(ConvolutionKernel=kernel).ConvolutionKernel == kernel
    # A name that stands nowhere else in the file, another spelling of it, a short one: nothing else could tell.
    for kernel in ("Mueller", "B30 Li", "für Ada", ["Br40d", "Ada"]):
        assert "ConvolutionKernel" not in kept(PatientName="Müller^A", ConvolutionKernel=kernel)
    ct = kept(Manufacturer="GE MEDICAL SYSTEMS Ada", ManufacturerModelName="LightSpeed VCT")
    assert (ct.Manufacturer, ct.ManufacturerModelName) == ("GE", "LightSpeed VCT")
    ct = kept(Manufacturer="Ada's Scanner", ManufacturerModelName="LightSpeed Ada")
    assert (ct.Manufacturer, "ManufacturerModelName" in ct) == (None, False)


def test_a_text_under_the_tag_of_a_number_is_not_kept_whatever_vr_the_file_claims(tmp_path: Path) -> None:
    [path] = make_ct_series(tmp_path, shape=(1, 64, 64))
    numbers = [keyword for keyword in KEPT if dictionary_VR(keyword) in {"DS", "IS", "US or SS"}]
    needed = {"ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"}
    for keyword in needed:
        ds = pydicom.dcmread(path)
        ds[keyword] = DataElement(keyword, "LO", CANARY)
        ds.save_as(tmp_path / "odd.dcm")
        with pytest.raises(CaseRefused, match=f"{keyword} is no number"):
            deidentified(tmp_path / "odd.dcm", NAMES, "CASE-1")
    nested = Dataset()
    nested.PatientName = f"{CANARY}^ADA"
    for vr, value in (("LO", CANARY), ("PN", f"{CANARY}^ADA"), ("SQ", [nested])):
        ds = pydicom.dcmread(path)
        for keyword in set(numbers) - needed:
            ds[keyword] = DataElement(keyword, vr, value)
        ds.save_as(tmp_path / "odd.dcm")
        assert CANARY.encode() in (tmp_path / "odd.dcm").read_bytes()
        deidentified(tmp_path / "odd.dcm", NAMES, "CASE-1").save_as(tmp_path / "clean.dcm", enforce_file_format=True)
        assert CANARY.encode() not in (tmp_path / "clean.dcm").read_bytes()


# -- who goes where ----------------------------------------------------------------------------------


def header(patient_id: str, *others: str, issuer: str = "") -> Dataset:
    ds = Dataset()
    ds.PatientID, ds.IssuerOfPatientID, ds.StudyInstanceUID = patient_id, issuer, "1.2.3"
    items = []
    for other in others:
        items.append(Dataset())
        items[-1].PatientID = other
    ds.OtherPatientIDsSequence = items
    return ds


def parts_apart() -> tuple[str, str]:
    """Two patients of different parts."""
    first = "P0"
    part = NAMES.part(f"\\{first}")
    other = next(f"P{n}" for n in range(1, 1000) if NAMES.part(f"\\P{n}") != part)
    return first, other


def settled(path: Path, *studies: Sequence[str]) -> Any:
    """studies: Patient ID, then other IDs of each."""
    return settle([identities_of(header(*ids)) for ids in studies], NAMES, path)


def test_ids_that_a_study_links_are_one_patient_whatever_the_order_within_an_export(tmp_path: Path) -> None:
    a, b = parts_apart()
    seen = []
    for n, studies in enumerate(([(a,), (b,), (b, a)], [(b, a), (a,), (b,)], [(b,), (b, a), (a,)])):
        places = settled(tmp_path / f"patients{n}", *studies)
        assert places[f"\\{a}"] == places[f"\\{b}"]
        seen.append(places[f"\\{a}"])
    assert seen[0] == seen[1] == seen[2]
    assert not seen[0].apart


def test_a_link_that_comes_later_moves_nobody(tmp_path: Path) -> None:
    a, b = parts_apart()
    path = tmp_path / "patients"
    first = settled(path, (a,))
    later = settled(path, (b, a), ("C", b))
    assert later[f"\\{b}"].part == later["\\C"].part == first[f"\\{a}"].part
    assert later[f"\\{b}"].patient == first[f"\\{a}"].patient
    assert settled(path, ("C",))["\\C"] == later["\\C"]


def test_one_who_was_in_two_parts_before_anybody_knew_stays_in_the_older_and_is_left_out_of_the_other(
    tmp_path: Path,
) -> None:
    a, b = parts_apart()
    path = tmp_path / "patients"
    before = settled(path, (a,), ("Q",)) | settled(path, (b,))
    linked = settled(path, (b, a))
    assert linked[f"\\{a}"] == before[f"\\{a}"]
    assert (linked[f"\\{b}"].part, linked[f"\\{b}"].apart) == (before[f"\\{b}"].part, True)
    # It is known from then on, also by a study that tells of no link.
    assert settled(path, (b,))[f"\\{b}"].apart
    assert not settled(path, (a,))[f"\\{a}"].apart
    assert CANARY not in path.read_text()
    assert f'"{a}"' not in path.read_text()


def test_a_damaged_file_of_patients_stops_the_export_instead_of_moving_patients(tmp_path: Path) -> None:
    (tmp_path / "patients").write_text("[1, 2\n")
    with pytest.raises(ConfigError, match="put it back from a backup"):
        settled(tmp_path / "patients", ("A",))


def test_the_other_id_of_an_exported_patient_goes_to_the_same_part_and_name(node: Node, tmp_path: Path) -> None:
    from tests.unit.test_reviews import corrected_node

    a, b = parts_apart()
    settled(node.folder / "export.patients", (a,))
    corrected_node(node, PatientID=b, OtherPatientIDs=[a, "X"])
    [name] = export(node, tmp_path / "out").cases
    identity = f"\\{a}"
    assert name.startswith(f"{NAMES.part(identity)}/{NAMES.patient(identity)}")
