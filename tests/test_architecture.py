"""The way of `prune` is short, as docs/architecture.md tells it; and a run reads, makes and decides each thing once."""

import re
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from optimum_moreau import Recipe
from optimum_moreau.cli.cli import main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "optimum_moreau"
LINE = re.compile(r"^\d+\. `(.+?)`: `(\w+)`", re.MULTILINE)
WAY = LINE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
SETTINGS = {"criterion": "moreau", "steps": 2, "unit_ratio": 0.5, "calibration_samples": 3, "sequence_length": 16}
SETTINGS |= {"compensation": "refit", "compensation_samples": 6, "attention_layers": (0, 2), "mlp_layers": (0, 2)}


def place(frame):
    """File within the package, and function, of a frame; `None`: it is another's."""
    file = Path(frame.f_code.co_filename)
    return (file.relative_to(PACKAGE).as_posix(), frame.f_code.co_name) if file.is_relative_to(PACKAGE) else None


@contextmanager
def calls(wanted):
    """What is called in the block, in order: file and function, and the files of the package that it was reached by."""
    found = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_name in names and (here := place(frame)) in wanted:
            above, files = frame.f_back, set()
            while above is not None:
                files.add((place(above) or ("", ""))[0])
                above = above.f_back
            found.append((here, files - {""}))

    names = {name for _, name in wanted}
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


@pytest.fixture
def recipe(tiny_folder, tmp_path):
    """A recipe whose steps read two texts."""
    words = " ".join(f"word{i % 97} and {i % 13}" for i in range(4000))
    for name in ("calibration", "held_out"):
        (tmp_path / f"{name}.txt").write_text(f"{name} {words}")
    return {
        "model": str(tiny_folder),
        "output": str(tmp_path / "pruned"),
        "calibration": str(tmp_path / "calibration.txt"),
        "evaluate": str(tmp_path / "held_out.txt"),
        "prune": SETTINGS,
    }


def test_prune_crosses_at_most_sixteen_files_and_those_that_the_page_names(recipe, tmp_path):
    assert len({file for file, _ in WAY}) == len(WAY) <= 16
    file = tmp_path / "recipe.yaml"
    file.write_text(Recipe.from_dict(recipe).to_yaml())
    with calls(set(WAY)) as found:
        assert main(["prune", "--config", str(file)]) in (0, None)
    assert list(dict.fromkeys(here for here, _ in found)) == WAY
    named = {file for file, _ in WAY}
    for (file, function), files in found:
        assert files <= named, f"{file}: {function} is reached through {files - named}"


def test_a_run_reads_each_text_once_and_makes_shape_config_and_export_once(recipe, monkeypatch):
    read, call = [], PreTrainedTokenizerBase.__call__

    def counted(self, text, *rest, **options):
        read.append(text)
        return call(self, text, *rest, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    once = {
        ("models/units.py", "model_shape"): 1,
        ("data/sources.py", "read_documents"): 2,  # the calibration, and what is measured on
        ("config/pruner_config.py", "resolve"): 1,
    }
    planned, export = ("planning/budget.py", "make_plan"), ("surgery/export.py", "decide_export")
    with calls({*once, planned, export}) as found:
        Recipe.from_dict(recipe).run()
    order = [here for here, _ in found]
    counts = Counter(order)
    assert {here: counts[here] for here in once} == once
    assert order[order.index(planned) :].count(export) == 1  # before, the expected plan is checked
    texts = Counter(text for text in read if len(text) > 100)
    assert texts and set(texts.values()) == {1}
