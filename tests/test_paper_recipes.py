"""The paper's tables as recipes: what they say is right, a tiny model runs through them, what is missing is said."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.criteria.moreau import MoreauGS
from optimum_moreau.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "benchmarks" / "paper"
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

import recipe  # noqa: E402
import run  # noqa: E402

AS_WRITTEN, PUBLISHED_CODE = "MoreauPruner-GS, Algorithm 1 as written", "MoreauPruner-GS, published code"


@pytest.fixture(params=recipe.TABLES)
def table(request):
    return recipe.read_recipe(request.param)


@pytest.fixture
def texts(tmp_path, text):
    """A text file, and a file of records to tune on."""
    plain, records = tmp_path / "text.txt", tmp_path / "records.jsonl"
    plain.write_text(text, encoding="utf-8")
    records.write_text("".join(json.dumps({"text": part}) + "\n" for part in text.split("\n\n")[:4]), encoding="utf-8")
    return plain, records


@pytest.fixture
def runner(capsys):
    """Runs `run.py`: arguments → (exit code, standard output, last line of standard error)."""

    def call(*words):
        code = 0
        try:
            run.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err.strip().splitlines()

    return call


def kept(file):
    """The runs that a file holds, one a line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# The recipes


def test_there_is_a_recipe_for_every_table():
    assert [f"table{n}" for n in (1, 2, 3, 6, 7, 8, 9, 10, 11)] == recipe.TABLES


def test_every_row_is_a_config_of_the_papers_protocol(table):
    for label, row in table.rows.items():
        if label == recipe.DENSE or row.missing:
            continue
        config = table.config(label, next(iter(table.ratios)), 10, seed=1)
        assert isinstance(config, MoreauPrunerConfig)
        assert (config.sequence_length, config.calibration_samples, config.seed) == (128, 10, 1)
        assert config.unit_ratio == next(iter(table.ratios.values()))


def test_group_sparse_rows_stand_for_the_paper_and_for_its_code(table):
    if AS_WRITTEN not in table.rows:
        assert table.name in ("table1", "table8")
        return
    ratio = next(iter(table.ratios))
    written, code = (table.config(row, ratio, 10, 0) for row in (AS_WRITTEN, PUBLISHED_CODE))
    assert written.criterion.resolved().eta == MoreauGS.paper_eta and not written.criterion.released
    assert code.criterion.released
    assert not any(place.row == AS_WRITTEN for place in table.published)  # no figure of the paper comes from it
    assert any("released=True" in note for note in table.notes)


def test_every_published_figure_has_a_place_and_a_column(table):
    assert table.published
    for place, figures in table.published.items():
        assert place in table.places()
        assert figures and set(figures) <= set(table.columns)


def test_protocol_and_row_tell_what_a_run_did_in_every_table():
    bench, configs = object.__new__(run.Bench), {}
    for name in recipe.TABLES:
        bench.recipe, bench.tasks, bench.asked = recipe.read_recipe(name), {}, SimpleNamespace(limit=None)
        places = [place for place in bench.recipe.places() if place.dtype != recipe.DIFF]
        assert len({(bench.protocol(place), place.row) for place in places}) == len(places)
        for place in places:
            if not bench.recipe.rows[place.row].missing:
                fields = bench.recipe.fields(place.row, place.ratio)
                assert configs.setdefault((bench.protocol(place), place.row), fields) == fields


def test_published_averages_are_those_of_the_seven_tasks(table):
    for place, figures in table.published.items():
        if set(table.tasks) <= set(figures) and table.tasks:
            mean = sum(figures[task] for task in table.tasks) / 7
            # the paper's own average of WANDA is 0.29 off
            assert abs(mean - figures[recipe.AVERAGE]) < (0.3 if place.row == "WANDA" else 0.015), place


def test_tables_1_and_8_publish_the_same():
    one, eight = (recipe.read_recipe(name) for name in ("table1", "table8"))
    assert one.published == {
        place: {name: figures[name] for name in one.texts} for place, figures in eight.published.items()
    }


def test_published_differences_are_those_of_the_dtypes():
    table = recipe.read_recipe("table8")
    for place, figures in table.published.items():
        if place.dtype == recipe.DIFF:
            one, two = (table.published[replace(place, dtype=dtype)] for dtype in table.dtypes)
            assert all(abs(abs(one[name] - two[name]) - value) < 0.0101 for name, value in figures.items())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"published": {"columns": ["row", "WikiText2"], "figures": [["LLM-Prunner", 1.0]]}}, "no place"),
        ({"published": {"columns": ["row", "Wikitext"], "figures": [["LLM-Pruner", 1.0]]}}, "Did you mean 'WikiText2'"),
        ({"tasks": ["boolqq"]}, "unknown task 'boolqq'"),
        ({"recoveries": {"untuned": None, "tunned": {}}}, "unknown recovery 'tunned'"),
        ({"rows": {"LLM-Pruner": {"config": {"criterion": "taylr"}}}}, "taylr"),
        ({"rwos": {}}, "unknown entry 'rwos'"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(change, problem, tmp_path, monkeypatch):
    values = yaml.safe_load((FOLDER / "table3.yaml").read_text(encoding="utf-8")) | change
    (tmp_path / "table3.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=problem):
        recipe.read_recipe("table3")


# Runs on a tiny model


def test_table_1_runs_in_both_dtypes(runner, tiny_folder, texts, tmp_path):
    words = "table1", tiny_folder, "--calibration", texts[0], "--text", f"own={texts[0]}", "--seeds", 1
    words = *words, "--max-segments", 2, "--output", tmp_path
    code, out, _ = runner(*words)
    assert code == 0
    found = kept(tmp_path / "table1.jsonl")
    assert len(found) == 4 * 2 * 2  # ratios, rows, dtypes
    assert all(math.isfinite(one["perplexity"]) for one in found)
    assert {one["model"] for one in found} == {tiny_folder.name}
    assert "| 5 % | LLM-Pruner | Diff | 0.05 | 0.15 |" in out  # the paper's figures, and ours beside them
    assert f"{tiny_folder.name}: own" in out and "LLaMA-7B, paper: WikiText2" in out
    assert "Left out here: perplexity on WikiText2 (no --text WikiText2=FILE)" in out
    assert (tmp_path / f"table1-{tiny_folder.name}.md").read_text(encoding="utf-8") == out[:-1]
    before = (tmp_path / "table1.jsonl").read_text(encoding="utf-8")
    assert runner(*words)[0] == 0
    assert (tmp_path / "table1.jsonl").read_text(encoding="utf-8") == before  # nothing made again


@pytest.fixture
def short_table_3(monkeypatch):
    """Table 3 with the dense model, one row of its own, and two that every such table has."""
    whole = recipe.read_recipe("table3")
    rows = {name: whole.rows[name] for name in (recipe.DENSE, "Magnitude", "WANDA", PUBLISHED_CODE)}
    published = {place: figures for place, figures in whole.published.items() if place.row in rows}
    monkeypatch.setattr(run, "read_recipe", lambda _: replace(whole, rows=rows, published=published))


def test_table_3_runs_tuned_and_untuned(short_table_3, runner, tiny_folder, texts, tmp_path):
    code, out, _ = runner(
        "table3", tiny_folder, "--calibration", texts[0], "--text", f"WikiText2={texts[0]}", "--recovery", texts[1],
        "--seeds", 1, "--max-segments", 2, "--max-steps", 1, "--micro-batch", 64, "--output", tmp_path,
    )  # fmt: skip
    assert code == 0
    runs = kept(tmp_path / "table3.jsonl")
    found = {(one["row"], one["protocol"]): one["perplexity"] for one in runs}
    assert set(found) == {
        ("dense", ""), ("Magnitude", "untuned"), (PUBLISHED_CODE, "untuned"), (PUBLISHED_CODE, "tuned")
    }  # fmt: skip
    assert all(math.isfinite(value) for value in found.values())
    assert found[PUBLISHED_CODE, "tuned"] != found[PUBLISHED_CODE, "untuned"]
    assert "| untuned | WANDA | 22.12 | 38.19 | 53.23 | not run here |" in out
    assert "WANDA (structured Wanda is not in this package)" in out
    assert "zero-shot tasks (no --task-path)" in out


def test_calibration_sizes_are_lowered_and_said_so(runner, monkeypatch, tiny_folder, texts, tmp_path):
    whole = recipe.read_recipe("table7")
    rows = {PUBLISHED_CODE: whole.rows[PUBLISHED_CODE]}
    monkeypatch.setattr(run, "read_recipe", lambda _: replace(whole, rows=rows))
    words = "table7", tiny_folder, "--calibration", texts[0], "--text", f"own={texts[0]}", "--seeds", 1
    code, out, _ = runner(*words, "--max-segments", 2, "--max-samples", 12, "--output", tmp_path)
    assert code == 0
    assert f"| {PUBLISHED_CODE} | 10 | 18.72 ± 0.29 | 34.91 ± 0.85 | 57.30 ± 0.53 |" in out
    assert f"| {PUBLISHED_CODE} | 1000 (here 12) | 18.50 ± 0.10 |" in out
    runs = kept(tmp_path / "table7.jsonl")
    assert [one["protocol"] for one in runs] == ["untuned", "untuned, 12 samples"]


def test_scores_are_shared_by_tables_with_the_same_rows(short_table_3, runner, tiny_folder, texts, tmp_path):
    words = tiny_folder, "--calibration", texts[0], "--text", f"own={texts[0]}", "--seeds", 1, "--max-segments", 2
    runner("table3", *words, "--output", tmp_path)
    seconds = {one["row"]: one["seconds"] for one in kept(tmp_path / "table3.jsonl")}
    (tmp_path / "table3.jsonl").rename(tmp_path / "table9.jsonl")
    assert runner("table3", *words, "--output", tmp_path)[0] == 0
    again = {one["row"]: one["seconds"] for one in kept(tmp_path / "table3.jsonl")}
    assert again == seconds  # as found, not measured anew


# What is asked for wrongly


def test_what_is_wrong_is_said_in_one_line(runner, tiny_folder, texts, tmp_path):
    calibration = "--calibration", texts[0], "--output", tmp_path
    text = "--text", f"own={texts[0]}"
    for words, problem in (
        (("tabel1", tiny_folder, *calibration, *text), "unknown table 'tabel1'. Did you mean 'table1'?"),
        (("table1", tiny_folder, *calibration), "nothing to measure; give --text NAME=FILE"),
        (("table1", tiny_folder, *calibration, "--text", "own"), "'own' is not NAME=FILE"),
        (("table1", tiny_folder, *calibration, "--text", "own=gone.txt"), "gone.txt: no such file"),
        (("table1", tiny_folder, *text), "--calibration"),
        (("table1", tmp_path / "gone", *calibration, *text), "gone: no such folder"),
        (("table1", tiny_folder, *calibration, *text, "--seeds", 0), "--seeds: '0' is not a whole number ≥ 1"),
        (("table3", tiny_folder, *calibration, *text, "--task-path", tmp_path), "holds no task 'boolq'"),
    ):
        code, _, err = runner(*words)
        assert code == 2 and problem in err[-1] and len(err) == 1, (words, err)
