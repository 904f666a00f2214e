"""What README and CONTRIBUTING print works as printed, and tables of quality are of the runs that are kept."""

import importlib
import itertools
import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from optimum_moreau.cli import criteria, families, main
from optimum_moreau.registry import CRITERIA
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture
def after_the_demo(tmp_path, monkeypatch, tiny_folder, text):
    """A folder that looks as it does after `make demo`."""
    folder = tmp_path / "demo_output" / "tiny-llama"
    shutil.copytree(tiny_folder, folder)
    for name in ("calibration", "heldout"):
        import json

        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in (text, text[::2])))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_example_runs(after_the_demo, capsys):
    (example,) = blocks(README, "python")
    exec(compile(example, "README.md", "exec"), {})
    before, after = capsys.readouterr().out.split("->")
    assert int(after) < int(before)
    assert (after_the_demo / "pruned" / "config.json").is_file()


def test_the_commands_run(after_the_demo, capsys):
    lines = [line for block in blocks(README, "console") for line in block.splitlines() if "moreau" in line]
    assert len(lines) == 18
    for line in lines:
        capsys.readouterr()
        words, redirected, file = shlex.split(line), ">" in line, line.split()[-1]
        arguments = words[2:] if words[0] == "optimum-cli" else words[1:]
        assert main(arguments[:-2] if redirected else arguments) == 0, f"{line}\n{capsys.readouterr().err}"
        if redirected:
            (after_the_demo / file).write_text(capsys.readouterr().out)


def test_the_table_of_criteria_and_patterns_is_the_codes_own():
    assert criteria.show(criteria.run(None)) in README


def test_the_family_table_is_the_codes_own():
    assert families.show(families.run(None)) in README


def test_the_criterion_of_contributing_prunes(monkeypatch, llama, tmp_path):
    source, line = blocks(CONTRIBUTING, "python")[:2]
    (tmp_path / "cube.py").write_text(source.replace("from .criterion", "from optimum_moreau.criteria"))
    monkeypatch.syspath_prepend(tmp_path)
    name, target = re.fullmatch(r'"(\w+)": f"\{_CRITERIA\}\.(\w+:\w+)",\n', line).groups()
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))  # forgotten after the test
    CRITERIA.register(name, target)

    from optimum_moreau import MoreauPruner, MoreauPrunerConfig

    before = sum(p.numel() for p in llama.parameters())
    MoreauPruner(MoreauPrunerConfig(criterion="cube", pruning_ratio=0.1)).prune(llama)
    assert sum(p.numel() for p in llama.parameters()) < before


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("quality")


@pytest.fixture
def runs(quality):
    return quality.read_runs(ROOT / "docs" / "quality-runs.json")


def test_every_row_of_quality_has_five_draws_on_every_model_and_every_step_three_recovered(quality, runs):
    draws = Counter(key[:3] for key in runs)
    models = [subject.model for subject in quality.SUBJECTS]
    expected = dict.fromkeys(itertools.product(models, quality.ROWS, quality.SHARES), 5)
    recovered = [quality.tuned(row, 100) for row in quality.RECOVERED]
    expected |= dict.fromkeys(itertools.product(models, recovered, (0.2, 0.5)), 3)
    expected |= {(model, "dense", 0.0): 1 for model in models}
    assert draws == expected


@pytest.mark.parametrize("model", ["stories260K", "babyllama-char105", "wikitext-llama-5m"])
def test_the_tables_of_quality_are_of_the_runs_that_are_kept(quality, runs, model):
    others = [row for row in quality.ROWS if row not in quality.STEPS]
    whole = quality.read_runs(ROOT / "docs" / "quality-runs-whole.json")
    on_all_segments = ("taylor", "+ refit", "wanda, 128 samples, refit", "+ wanda for taylor")
    for table in (
        quality.table(model, runs, quality.STEPS, quality.SHARES),
        quality.table(model, runs, others, quality.SHARES),
        quality.table(model, whole, on_all_segments, (0.2, 0.5)),
        quality.recovery_table(model, runs, quality.RECOVERED, (0.2, 0.5), 100),
    ):
        assert "\n".join(["", *table, "", ""]) in RESULTS


def test_the_readmes_table_of_quality_is_of_the_runs_that_are_kept(quality, runs):
    columns = list(itertools.product([subject.model for subject in quality.SUBJECTS], (0.2, 0.5)))
    title, _, *rows = re.search(r"\| perplexity, untuned.*?\n\n", README, re.S)[0].strip().split("\n")
    heads = (f"{model} ({runs[model, 'dense', 0.0, 0][0]:.2f}), {100 * share:.0f} %" for model, share in columns)
    assert title.split(" | ", 1)[1] == f"{' | '.join(heads)} |"
    for line, row in zip(rows, quality.STEPS, strict=True):
        cells = (quality.drawn(runs, model, row, share).values() for model, share in columns)
        words = (quality.spread([value for value, _ in found]) for found in cells)
        assert line.split(" | ", 1)[1] == f"{' | '.join(words)} |"


UNKNOWN_TO_READERS = re.compile(
    r"(?i)\b(?:DESIGN|METHODS|ECOSYSTEM|STYLE)\.md\b|\bwas lent\b|\bchecker ran\b|\bother jobs\b|this workplace"
)


def test_no_public_file_names_what_its_readers_do_not_have():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        file = ROOT / name
        if name.endswith(".jsonl") or not file.is_file() or file == Path(__file__):
            continue
        text = file.read_bytes().decode("utf-8", errors="ignore")
        assert not (found := UNKNOWN_TO_READERS.search(text)), f"{name}: {found}"
