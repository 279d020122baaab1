"""python -m training: what it prints, and with which code it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.fakes.recipes import tiny_text
from training import cli
from training.cli.common import typed_command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_folder_that_is_no_cache_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_text())
    arguments = ("train", "--recipe", str(recipe), "--cache", str(tmp_path / "none"), "--out", str(tmp_path / "run"))
    assert run(monkeypatch, *arguments) == 1
    assert "holds no prepared data: run `python -m training prepare` first" in capsys.readouterr().err


def test_a_wrong_recipe_is_a_wrong_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_text() + "colour: red\n")
    assert run(monkeypatch, "train", "--recipe", str(recipe), "--cache", "c", "--out", "o") == 2
    assert "colour: unknown key" in capsys.readouterr().err


def test_a_recipe_without_a_second_stage_can_not_be_refined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_text())
    arguments = ("refine", "--recipe", str(recipe), "--cache", "c", "--mined", "m", "--out", "o")
    assert run(monkeypatch, *arguments) == 2
    assert "no `refinement`" in capsys.readouterr().err


def test_a_subset_without_scans_is_a_wrong_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii.gz").touch()
    arguments = ("--bundle", "b", "--source", str(tmp_path), "--layout", "nifti", "--out", "o")
    assert run(monkeypatch, "evaluate", *arguments, "--subset", "3") == 2
    assert f"no scan in {tmp_path} is of subset 3" in capsys.readouterr().err


def test_a_record_of_a_command_tells_nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "train", "--cache", "/data/hospital/cache", "--seed", "1"])
    assert typed_command() == "python -m training train --cache cache --seed 1"


def test_froc_prints_the_official_figures(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lists, reference = shared_data / "luna16", shared_data / "luna16" / "froc_reference" / "deepseed_fold9"
    files = {
        "submission": reference / "predictions.csv.gz", "annotations": lists / "annotations.csv.gz",
        "excluded": lists / "annotations_excluded.csv.gz", "seriesuids": reference / "seriesuids.csv",
    }  # fmt: skip
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert run(monkeypatch, "froc", *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cpm"] == pytest.approx(0.847619, abs=1e-6)


def test_truth_counts_luna16_and_its_outlines(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "truth", "--lists", str(shared_data / "luna16"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["scans"], report["nodules"], report["excluded"]) == (888, 1186, 35192)


def test_the_card_of_the_shipped_model_is_what_its_files_make_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dicom_node.model.bundle import CARD, default_bundle

    assert run(monkeypatch, "card", "--bundle", str(default_bundle())) == 0
    assert capsys.readouterr().out == (default_bundle() / CARD).read_text()
