"""Claims about bundles: what is whole is read back exactly, and everything else is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from dicom_node.errors import BundleError
from dicom_node.model.bundle import CARD, FORM_FILE, WEIGHTS, default_bundle, load_bundle, write_bundle
from dicom_node.model.network import build_network
from dicom_node.model.refine import Refiner
from dicom_node.model.spec import MergeSpec, NetworkSpec, PreprocessSpec, RefinementSpec

TINY = NetworkSpec(
    backbone="resnet18",
    levels=2,
    fpn_channels=8,
    box_head_width=8,
    mask_head_channels=(8,),
    anchors=((6.0, 12.0), (24.0, 48.0)),
    roi_canonical_px=16.0,
    rpn_pre_nms=20,
    rpn_post_nms=10,
)

TINY_REFINEMENT = RefinementSpec(widths=(2, 4))


def refined_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of both networks."""
    torch.manual_seed(seed)
    second = {f"refinement.{n}": v for n, v in Refiner(TINY_REFINEMENT).state_dict().items()}
    return build_network(TINY, PreprocessSpec()).state_dict() | second


def description(**other: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "version": "0.0.1",
        "network": TINY.model_dump(mode="json"),
        "preprocessing": PreprocessSpec().model_dump(mode="json"),
        "merging": MergeSpec().model_dump(mode="json"),
        "thresholds": {"proposal_score": 0.02, "operating_point": 0.25},
        "classes": [{"name": "nodule", "code_value": "27925004", "coding_scheme": "SCT", "code_meaning": "Nodule"}],
        "training_data": "random weights",
        "metrics": [],
        "licence": "Apache-2.0",
    } | other


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weights = build_network(TINY, PreprocessSpec()).state_dict()
    write_bundle(tmp_path / "tiny", description(), weights, "card")
    return tmp_path / "tiny"


@pytest.fixture
def refined(tmp_path: Path) -> Path:
    form = description(refinement=TINY_REFINEMENT.model_dump(mode="json"))
    write_bundle(tmp_path / "refined", form, refined_weights(), "card")
    return tmp_path / "refined"


def change_form(folder: Path, **other: Any) -> None:
    raw = json.loads((folder / FORM_FILE).read_text())
    (folder / FORM_FILE).write_text(json.dumps(raw | other))


def change_weights(folder: Path, **other: torch.Tensor | None) -> None:
    """Rewrites the weights and their hash, as a careless author would."""
    import hashlib

    weights = {n: v for n, v in (load_file(folder / WEIGHTS) | other).items() if v is not None}
    stored = save(weights)
    (folder / WEIGHTS).write_bytes(stored)
    change_form(folder, weights_sha256=hashlib.sha256(stored).hexdigest())


def test_what_was_written_is_read_back(folder: Path):
    torch.manual_seed(0)
    original = build_network(TINY, PreprocessSpec()).state_dict()
    bundle = load_bundle(folder)
    assert bundle.form.network == TINY
    assert bundle.weights.keys() == original.keys()
    assert all(torch.allclose(bundle.weights[n], original[n], rtol=1e-3, atol=1e-6) for n in original)
    assert not bundle.network().training


def test_matrices_are_stored_in_half_precision(folder: Path):
    assert load_file(folder / WEIGHTS)["roi_heads.box_head.fc6.weight"].dtype == torch.float16


def test_identity_names_every_number_that_shaped_the_result(folder: Path):
    identity = load_bundle(folder).identity
    assert (identity.name, identity.version, identity.operating_point) == ("tiny", "0.0.1", 0.25)
    assert identity.parameters["thresholds.operating_point"] == 0.25
    assert identity.parameters["merging.nms_iou"] == MergeSpec().nms_iou
    assert identity.parameters["preprocessing.spacing_mm"] == 1.0
    json.dumps(identity.parameters)


def test_the_hash_covers_the_form_as_well_as_the_weights(folder: Path):
    before = load_bundle(folder).sha256
    change_form(folder, thresholds={"proposal_score": 0.02, "operating_point": 0.3})
    assert load_bundle(folder).sha256 != before


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [WEIGHTS, FORM_FILE, CARD])
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} can't be read"):
        load_bundle(folder)


def test_one_altered_byte_of_the_weights_is_noticed(folder: Path):
    stored = bytearray((folder / WEIGHTS).read_bytes())
    stored[-1] ^= 1
    (folder / WEIGHTS).write_bytes(stored)
    with pytest.raises(BundleError, match="altered or cut short"):
        load_bundle(folder)


def test_truncated_weights_are_noticed(folder: Path):
    stored = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(stored[: len(stored) // 2])
    with pytest.raises(BundleError, match="altered or cut short"):
        load_bundle(folder)


def test_weights_that_are_no_safetensors_are_refused(folder: Path):
    import hashlib

    (folder / WEIGHTS).write_bytes(b"\x80\x04not tensors")
    change_form(folder, weights_sha256=hashlib.sha256(b"\x80\x04not tensors").hexdigest())
    with pytest.raises(BundleError, match="not a safetensors file"):
        load_bundle(folder)


def test_an_unknown_form_is_refused_before_its_keys(folder: Path):
    change_form(folder, form=2, something_new=1)
    with pytest.raises(BundleError, match="form 2 is unknown; this version reads form 1"):
        load_bundle(folder)


def test_an_unknown_key_is_refused_with_its_place(folder: Path):
    raw = json.loads((folder / FORM_FILE).read_text())
    change_form(folder, merging=raw["merging"] | {"magic": 1})
    with pytest.raises(BundleError, match=r"merging\.magic"):
        load_bundle(folder)


def test_a_number_written_as_text_is_refused(folder: Path):
    change_form(folder, thresholds={"proposal_score": "0.02", "operating_point": 0.3})
    with pytest.raises(BundleError, match=r"thresholds\.proposal_score"):
        load_bundle(folder)


def test_a_form_that_is_no_json_is_refused(folder: Path):
    (folder / FORM_FILE).write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rpn.head.cls_logits.bias": torch.zeros(3)}, r"has shape \(3,\), the network needs \(2,\)"),
        ({"rpn.head.cls_logits.bias": None}, r"rpn\.head\.cls_logits\.bias is missing"),
        ({"extra": torch.zeros(1)}, "extra is not part of the network"),
        ({"rpn.head.cls_logits.bias": torch.tensor([0.0, float("nan")])}, "is not finite"),
    ],
)
def test_weights_that_do_not_fit_the_network_are_refused(folder: Path, change: dict[str, Any], text: str):
    change_weights(folder, **change)
    with pytest.raises(BundleError, match=text):
        load_bundle(folder)


def test_both_networks_are_read_back(refined: Path):
    bundle, original = load_bundle(refined), refined_weights()
    assert bundle.form.refinement == TINY_REFINEMENT
    second = bundle.refiner()
    assert second is not None
    assert not second.training
    for name, value in second.state_dict().items():
        assert torch.allclose(value, original[f"refinement.{name}"], rtol=1e-3, atol=1e-6)
    assert bundle.network().state_dict().keys() == build_network(TINY, PreprocessSpec()).state_dict().keys()


def test_a_bundle_without_a_second_network_has_none(folder: Path):
    assert load_bundle(folder).refiner() is None


def test_a_bundle_written_before_there_was_a_second_network_is_read(folder: Path):
    raw = json.loads((folder / FORM_FILE).read_text())
    del raw["refinement"]
    (folder / FORM_FILE).write_text(json.dumps(raw))
    assert load_bundle(folder).form.refinement is None


def test_identity_names_the_second_networks_numbers_only_where_there_is_one(refined: Path, folder: Path):
    parameters = load_bundle(refined).identity.parameters
    assert parameters["refinement.weight"] == TINY_REFINEMENT.weight
    assert parameters["refinement.widths"] == [2, 4]
    json.dumps(parameters)
    assert not any(name.startswith("refinement") for name in load_bundle(folder).identity.parameters)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"refinement.logit.bias": torch.zeros(3)}, r"refinement\.logit\.bias has shape \(3,\)"),
        ({"refinement.logit.bias": None}, r"refinement\.logit\.bias is missing"),
        ({"refinement.extra": torch.zeros(1)}, r"refinement\.extra is not part of the network"),
        ({"refinement.logit.bias": torch.tensor([float("inf")])}, r"refinement\.logit\.bias is not finite"),
    ],
)
def test_weights_that_do_not_fit_the_second_network_are_refused(refined: Path, change: dict[str, Any], text: str):
    change_weights(refined, **change)
    with pytest.raises(BundleError, match=text):
        load_bundle(refined)


def test_weights_of_a_second_network_that_the_form_does_not_know_are_refused(refined: Path):
    change_form(refined, refinement=None)
    with pytest.raises(BundleError, match=r"refinement\..* is not part of the network"):
        load_bundle(refined)


@pytest.mark.parametrize("cube", [20, 60])
def test_a_cube_too_small_or_too_large_in_mm_is_refused(refined: Path, cube: int):
    change_form(refined, refinement=TINY_REFINEMENT.model_dump(mode="json") | {"cube": cube})
    with pytest.raises(BundleError, match="32 to 48 mm"):
        load_bundle(refined)


def test_the_bundle_in_the_package_is_whole_and_small():
    bundle = load_bundle(default_bundle())
    assert bundle.form.name == "lung_nodule_small"
    assert bundle.form.licence == "Apache-2.0"
    assert (bundle.folder / WEIGHTS).stat().st_size < 45e6
    assert "not for diagnosis" in (bundle.folder / CARD).read_text()
