"""The runner of studies measures, goes on where it stopped, and says in a line what is wrong; each study is legal."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from optimum_moreau import MoreauPruner
from optimum_moreau.errors import DataError

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import bench  # noqa: E402
import gpu  # noqa: E402
import peers  # noqa: E402
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

MODEL = SimpleNamespace(num_hidden_layers=5, num_attention_heads=4, hidden_size=32, intermediate_size=24)


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
        printed = capsys.readouterr()
        return SimpleNamespace(
            code=code,
            runs=runs,
            output=output,
            work=tmp_path / "work",
            printed=printed.out.splitlines(),
            said=[line for line in printed.err.splitlines() if line],
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


def test_draws_come_last_where_a_study_says_so_and_rows_may_have_fewer(run):
    few = {"unit_ratio": 0.5, "scope": "all", "calibration_samples": 2, "sequence_length": 16, "seeds": 1}
    found = run(
        "--models", "tiny", "--missing",
        order=["seed", "protocol", "row"],
        protocols={**STUDY["protocols"], "50 %": few},
        rows={"taylor": {"criterion": "taylor"}, "magnitude": {"criterion": "magnitude", "seeds": 1}},
    )  # fmt: skip
    assert not found.code and not found.runs, found.said
    assert [line.split(" | ")[1:4] for line in found.printed] == [
        ["", "dense", "seed 0"],
        ["25 %", "taylor", "seed 0"], ["25 %", "magnitude", "seed 0"],
        ["50 %", "taylor", "seed 0"], ["50 %", "magnitude", "seed 0"],
        ["25 %", "taylor", "seed 1"],
    ]  # fmt: skip


def test_a_measure_asked_for_later_is_added_to_the_runs_that_are_there(run, monkeypatch):
    others = {"held_out": {"text": "other", "segments": 2}, "long": {"length": 32, "segments": 1}}
    asked = {
        "measures": {"perplexity": None, **others},
        "apart": ["held_out", "long"],
        "rows": {"taylor": {"criterion": "taylor"}, "random": {"criterion": "random", "measures": ["long"]}},
    }  # fmt: skip
    few = ("--models", "tiny", "--seeds", 1)
    first = run(*few, **asked)
    assert not first.code, first.said
    assert [(one["row"], one["measured"]) for one in first.runs] == [
        ("dense", ["perplexity", "long"]), ("taylor", ["perplexity"]), ("random", ["perplexity", "long"])
    ]  # fmt: skip
    assert all(one["loss"] == pytest.approx(math.log(one["perplexity"]), abs=1e-5) for one in first.runs)
    monkeypatch.setattr(MoreauPruner, "plan", None)  # scores are on disk
    second = run(*few, "--measures", "held_out", **asked)
    assert not second.code, second.said
    for before, now in zip(first.runs, second.runs, strict=True):
        assert now.items() >= {key: value for key, value in before.items() if key != "measured"}.items()
        assert now["measured"] == [*before["measured"], "held_out"]
        assert {"other", "other_loss"} == now.keys() - before.keys()
    assert run(*few, "--measures", "held_out", **asked).runs == second.runs


def test_scores_are_kept_for_their_text_and_for_what_decides_them(run, monkeypatch):
    few = {"criterion": "taylor", "calibration_samples": 2, "sequence_length": 16, "scope": "all"}
    asked = {
        "protocols": {"10 %": {"unit_ratio": 0.1}, "25 %": {"unit_ratio": 0.25}},
        "rows": {"taylor": few, "on another text": {**few, "calibration": "other"}},
        "measures": {"kept": None},
    }
    made = []
    plan = MoreauPruner.plan
    monkeypatch.setattr(MoreauPruner, "plan", lambda *args, **words: made.append(1) or plan(*args, **words))
    found = run("--models", "tiny", "--seeds", 1, **asked)
    assert not found.code and len(made) == 2, found.said
    found.output.unlink()
    again = run("--models", "tiny", "--seeds", 1, **asked)
    assert len(made) == 2 and [one["kept"] for one in again.runs] == [one["kept"] for one in found.runs]
    assert len(list(again.work.glob("scores/*.safetensors"))) == 2
    for file in again.work.glob("scores/*.safetensors"):
        file.write_bytes(b"damaged")
    again.output.unlink()
    assert [one["kept"] for one in run("--models", "tiny", "--seeds", 1, **asked).runs] == [
        one["kept"] for one in found.runs
    ] and len(made) == 4  # fmt: skip


def test_a_row_may_be_recovered(run):
    recovery = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2, "sequence_length": 16, "validation": 0.0}
    rows = {"taylor": {"criterion": "taylor"}, "recovered": {"criterion": "taylor", "recovery": recovery}}
    found = run("--models", "tiny", "--seeds", 1, "--rows", "taylor", "recovered", rows=rows)
    assert not found.code, found.said
    _, taylor, recovered = found.runs
    assert taylor["kept"] == recovered["kept"] and recovered["recovery_seconds"] > 0
    assert recovered["perplexity"] != taylor["perplexity"]


def test_rows_of_other_packages_are_run_where_these_are_and_else_named(run, monkeypatch):
    def cut(model, tokens, taken, width):
        assert tokens.shape == (2, 16)
        for layer in model.model.layers:
            mlp = layer.mlp
            mlp.gate_proj.weight, mlp.up_proj.weight = (
                torch.nn.Parameter(part.weight[: width - taken]) for part in (mlp.gate_proj, mlp.up_proj)
            )
            mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, : width - taken])

    packages = {"here": peers.Peer("here==1", "json", cut), "gone": peers.Peer("gone==1", "no_such_package", cut)}
    for module in (peers, studies, runner, bench):
        monkeypatch.setattr(module, "PEERS", packages)
    few = {"pruning_ratio": 0.1, "calibration_samples": 2, "sequence_length": 16}
    asked = {"protocols": {"20 %": few}, "rows": {"one": {"peer": "here"}, "other": {"peer": "gone"}}}
    found = run("--models", "tiny", "--seeds", 1, measures={"perplexity": None}, **asked)
    assert not found.code and [one["row"] for one in found.runs] == ["dense", "one"], found.said
    assert found.runs[1]["removed"] == pytest.approx(0.1, abs=0.02) and math.isfinite(found.runs[1]["perplexity"])
    assert any("other: gone==1 is not installed" in line for line in found.said)
    asked["protocols"]["20 %"] = {**few, "pruning_ratio": 0.99}
    assert "ask for less" in run("--models", "tiny", "--seeds", 2, measures={"perplexity": None}, **asked).said[-1]


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_package_that_is_installed_removes_the_share_that_is_asked_for(name, llama):
    if not peers.PEERS[name].there():
        pytest.skip(f"{name} is not installed")
    before = sum(parameter.numel() for parameter in llama.parameters())
    peers.cut_by(peers.PEERS[name], llama, torch.randint(llama.config.vocab_size, (4, 16)), 0.2)
    after = sum(parameter.numel() for parameter in llama.parameters())
    assert 1 - after / before == pytest.approx(0.2, abs=0.02)
    shapes = {layer.mlp.down_proj.weight.shape for layer in llama.model.layers}
    assert len(shapes) == 1 and llama.config.intermediate_size == shapes.pop()[1]
    assert torch.isfinite(llama(torch.randint(llama.config.vocab_size, (1, 8))).logits).all()


def test_a_run_that_fails_is_named_and_the_others_go_on(run):
    rows = {"broken": {"criterion": "taylor", "calibration": "othr"}, **STUDY["rows"]}
    found = run("--models", "tiny", "--seeds", 1, rows=rows)
    assert found.code == 2 and "unknown text 'othr'. Did you mean 'other'?" in found.said[-1]
    assert [json.loads(line)["row"] for line in found.output.read_text().splitlines()] == ["dense", "taylor", "refit"]


def test_a_text_is_a_file_documents_of_it_or_several_in_equal_parts(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{i} " * 40}) for i in range(5)))
    (tmp_path / "b.txt").write_text("long text " * 100)
    records = [{"instruction": f"Say {i}.", "input": "", "output": "a word " * 20} for i in range(20)]
    (tmp_path / "c.json").write_text(json.dumps(records))
    some = {"file": tmp_path / "a.jsonl", "documents": [1, 4]}
    assert [one[0] for one in texts.documents_of(some)] == ["1", "2", "3"]
    found = texts.documents_of([some, tmp_path / "b.txt", tmp_path / "c.json"])
    assert found[:3] == texts.documents_of(some) and len(found) == 9
    parts = [sum(map(len, found[i : i + 3])) for i in (0, 3, 6)]
    assert parts == [3 * 80] * 3
    assert all(20 < len(one) < 120 for one in found) and found[6].startswith("Say 0.\n\na word")
    assert found == texts.documents_of([some, tmp_path / "b.txt", tmp_path / "c.json"])


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
        study.config(protocol, row, seed, depth=5).resolve(MODEL)


def test_a_file_that_travels_in_parts_is_put_together_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LARGEST", 10)
    whole, parts = tmp_path / "model.gguf", tmp_path / "parts"
    whole.write_bytes(bytes(range(256)))
    gpu.split(whole, parts)
    assert max(part.stat().st_size for part in parts.iterdir()) == 10
    (tmp_path / "there").mkdir()
    assert gpu.joined(parts, tmp_path / "there" / whole.name).read_bytes() == whole.read_bytes()
    (parts / "model.gguf.003").unlink()
    for folder in (tmp_path, parts):
        with pytest.raises(
            DataError, match=r"parts of model\.gguf are missing; `python benchmarks/gpu\.py pack FOLDER`"
        ):
            gpu.joined(folder, tmp_path / "there" / whole.name)
    whole.write_bytes(b"short")
    gpu.split(whole, parts)
    assert gpu.joined(parts, tmp_path / "there" / whole.name).read_bytes() == b"short"
