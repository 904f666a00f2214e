"""The runner of studies measures, goes on where it stopped, and says in a line what is wrong; each study is legal."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import study as studies  # noqa: E402
import texts  # noqa: E402

# by its file: the runner of the paper's tables has the same name
_SPEC = importlib.util.spec_from_file_location("run_of_studies", FOLDER / "run.py")
runner = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(runner)

STUDY = {
    "about": "Two rows.",
    "models": ["tiny", "gone"],
    "seeds": 2,
    "segments": 2,
    "measures": {"perplexity": None, "overlap": None},
    "protocols": {"25 %": {"unit_ratio": 0.25, "scope": "all", "calibration_samples": 2, "sequence_length": 16}},
    "rows": {"taylor": {"criterion": "taylor"}, "refit": {"criterion": "taylor", "compensation": "refit"}},
}


@pytest.fixture
def run(tmp_path, tiny_folder, text, monkeypatch, capsys):
    """Runs a study on a tiny model: arguments → (exit code, runs of the output, lines of standard error)."""
    files = [tmp_path / name for name in ("calibration.txt", "evaluation.txt")]
    for file in files:
        file.write_text(text, encoding="utf-8")
    known = {
        name: texts.Subject(name, folder, *files, "text", {"other": [files[0], files[1]]})
        for name, folder in (("tiny", tiny_folder), ("gone", tmp_path / "gone"))
    }
    for module in (studies, runner):
        monkeypatch.setattr(module, "subjects", lambda _: known)
    output = tmp_path / "data" / "study.jsonl"

    def call(*arguments, **changes):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), encoding="utf-8")
        code = 0
        try:
            words = ["--output", output, "--work", tmp_path / "work", *arguments]
            runner.main([str(tmp_path / "study.yaml"), *map(str, words)])
        except SystemExit as stop:
            code = stop.code
        runs = [json.loads(line) for line in output.read_text().splitlines()] if output.is_file() and not code else []
        return SimpleNamespace(
            code=code, runs=runs, output=output, said=[line for line in capsys.readouterr().err.splitlines() if line]
        )

    return call


def test_a_study_is_measured_and_gone_on_with(run):
    found = run("--seeds", 1)
    assert not found.code, found.said
    assert [(one["protocol"], one["row"], one["seed"]) for one in found.runs] == [
        ("", "dense", 0), ("25 %", "taylor", 0), ("25 %", "refit", 0)
    ]  # fmt: skip
    dense, taylor, refit = found.runs
    assert all(math.isfinite(one["perplexity"]) and one["model"] == "tiny" and one["commit"] for one in found.runs)
    assert dense["removed"] == 0 < taylor["removed"] == refit["removed"]
    assert taylor["kept"] == refit["kept"]  # one scoring served both
    assert refit["perplexity"] != taylor["perplexity"]
    assert any("gone is not there: skipped" in line for line in found.said)

    again = run()
    assert again.runs[:3] == found.runs  # nothing made again
    assert [(one["row"], one["seed"], len(one["overlap"])) for one in again.runs[3:]] == [
        ("taylor", 1, 1), ("refit", 1, 1)
    ]  # fmt: skip


def test_masks_share_their_scores_and_say_their_zeros(run):
    mask = {"pattern": "unstructured", "calibration_samples": 2, "sequence_length": 16}
    found = run(
        "--seeds", 1, "--models", "tiny",
        measures={"zeros": None},
        protocols={"50 %": {**mask, "sparsity": 0.5}, "60 %": {**mask, "sparsity": 0.6}},
        rows={"taylor": {"criterion": "taylor"}, "wanda": {"criterion": "wanda", "protocols": ["60 %"]}},
    )  # fmt: skip
    assert not found.code, found.said
    assert [(one["row"], one["protocol"]) for one in found.runs] == [
        ("taylor", "50 %"), ("taylor", "60 %"), ("wanda", "60 %")
    ]  # fmt: skip
    assert [one["zeros"] for one in found.runs] == pytest.approx([0.5, 0.6, 0.6], abs=0.02)


def test_agreements_are_rows_of_their_own_and_made_once(run):
    few = {"unit_ratio": None, "pruning_ratio": 0.2, "calibration_samples": 2, "sequence_length": 16}
    asked = {
        "seeds": None,
        "measures": {"robustness": {"draws": 2}},
        "protocols": {"bf16 – fp16": few, "draws": few},
        "rows": {"taylor": {"criterion": "taylor"}},
    }
    found = run("--models", "tiny", **asked)
    assert not found.code, found.said
    assert [(one["protocol"], one["seed"], one["draws"]) for one in found.runs] == [
        ("bf16 – fp16", None, 2), ("draws", None, 2)
    ]  # fmt: skip
    for one in found.runs:
        assert all(0 <= one[name] <= 1 for name in ("kept", "removed_units")) and -1 <= one["rank"] <= 1
        assert ("diff" in one) == (one["protocol"] != "draws")
    assert run("--models", "tiny", **asked).runs == found.runs  # nothing made again


@pytest.mark.parametrize(
    ("arguments", "changes", "problem"),
    [
        (("--rows", "taylr"), {}, "unknown row 'taylr'. Did you mean 'taylor'?"),
        (("--models", "tinny"), {}, "unknown model 'tinny'. Did you mean 'tiny'?"),
        ((), {"measures": {"perplexty": None}}, "unknown measure 'perplexty'. Did you mean 'perplexity'?"),
        ((), {"rows": {"a": {"protocols": ["30 %"]}}}, "unknown protocol '30 %'"),
        ((), {"rows": {"a": {"criterion": "taylr"}}}, "taylr"),
        ((), {"rwos": {}}, "rwos"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, arguments, changes, problem):
    found = run("--seeds", 1, *arguments, **changes)
    assert found.code == 2 and problem in found.said[-1]


def test_a_damaged_line_is_named(run):
    output = run("--rows", "dense").output
    output.write_text(output.read_text() + '{"model": "tiny", "proto', encoding="utf-8")
    found = run()
    assert found.code == 2 and "study.jsonl:2: is no run; remove the line" in found.said[-1]


def test_a_study_that_is_not_there_is_said(capsys):
    with pytest.raises(SystemExit):
        runner.main([str(FOLDER / "studies" / "qualitty.yaml")])
    assert "no such study. Did you mean 'quality'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file", sorted(set((FOLDER / "studies").glob("*.yaml")) - {FOLDER / "studies" / "models.yaml"})
)
def test_every_run_of_every_study_is_a_legal_config(file):
    study = studies.read_study(file)
    runs = [run for model in study.models for run in study.runs(model, study.rows, study.protocols, 1)]
    assert {row for _, row, _ in runs} == set(study.rows) and {name for name, _, _ in runs} == set(study.protocols)
    for protocol, row, seed in runs:
        study.config(protocol, row, seed, depth=5).resolve(SimpleNamespace(num_hidden_layers=5))
