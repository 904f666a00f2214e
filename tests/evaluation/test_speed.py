"""Speed: what the figures of a benchmark say, how they are measured, and what becomes of them."""

import argparse
import json
import platform
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from optimum_moreau import MoreauPruner, PruningPlan
from optimum_moreau.cli import benchmark, prepare
from optimum_moreau.errors import CheckpointError, ConfigError, PlanError
from optimum_moreau.evaluation.records import Measurement
from optimum_moreau.evaluation.speed import SPEED_NAME, Series, Side, Speed, SpeedSettings, measure_speed, measurement
from optimum_moreau.files import filled
from optimum_moreau.loading import check_same_tokenizer
from optimum_moreau.saving.records import Records
from tests.tiny import contents, tiny_model

FIGURES = {
    "prefill": [100.0] * 2,
    "decode": [50.0] * 2,
    "time to first token": [10.0] * 2,
    "load time": [1.0],
    "peak memory": [1000.0],
    "parameters": 10,
    "dtype": "float32",
    "device": "cpu, made up, 1 thread",
}
FAST = ("--batch-sizes", "1,2", "--prompt-tokens", "8", "--new-tokens", "4", "--rounds", "3", "--repeats", "1")


def side(name="a", *, size=100, channels=(64,), heads=(64,), hidden=64, **values):
    """A side whose series are those given: prefill, decode, first, load, memory."""
    metrics = {"first": "time to first token", "load": "load time", "memory": "peak memory"}
    series = [Series(metrics.get(key, key), None if key in ("load", "memory") else 1, v) for key, v in values.items()]
    return Side(name, 10, size, hidden, heads, channels, tuple(series))


def speed(model, baseline, rounds=3):
    return Speed("cpu, made up, 1 thread", "float32", rounds, 1, 8, 4, model, baseline)


# The law


@pytest.mark.parametrize(
    ("metric", "model", "base", "ratio", "verdict"),
    [
        ("prefill", (12.0, 15.0, 11.0), (10.0, 10.0, 10.0), 1.2, "faster"),
        ("prefill", (12.0, 20.0, 33.0), (10.0, 18.0, 30.0), 1.1111, "faster"),  # the machine sped up: by pairs alone
        ("decode", (12.0, 15.0, 9.0), (10.0, 10.0, 10.0), 1.2, "no speed-up"),
        ("decode", (10.02, 10.03, 10.04), (10.0, 10.0, 10.0), 1.003, "no speed-up"),  # 1.00 in two decimals
        ("decode", (9.0, 8.0, 5.0), (10.0, 10.0, 10.0), 0.8, "slower"),
        ("first", (5.0, 4.0, 8.0), (10.0, 10.0, 10.0), 2.0, "faster"),
        ("load", (20.0, 40.0, 30.0), (10.0, 10.0, 10.0), 1 / 3, "slower"),
        ("memory", (50.0, 80.0, 40.0), (100.0, 100.0, 100.0), 2.0, "smaller"),
        ("memory", (50.0, 80.0, 140.0), (100.0, 100.0, 100.0), 1.25, "no difference"),
    ],
)
def test_a_gain_is_what_every_round_shows(metric, model, base, ratio, verdict):
    found = speed(side(**{metric: model}), side(**{metric: base})).rows[0]
    assert found.verdict == verdict and found.ratio.median == pytest.approx(ratio, rel=1e-3)
    assert (found.model.low, found.model.high) == (min(model), max(model))
    assert (found.baseline.low, found.baseline.high) == (min(base), max(base))
    assert found.ratio.low <= found.ratio.median <= found.ratio.high


def test_the_size_on_disk_is_a_row_and_a_model_alone_has_no_verdict():
    found = speed(side(size=50), side(size=100)).rows[-1]
    assert (found.metric, found.ratio.median, found.verdict) == ("size on disk", 2.0, "smaller")
    alone = speed(side(decode=(1.0, 2.0, 3.0)), None)
    assert alone.verdict == "" and all(row.ratio is None and row.verdict == "" for row in alone.rows)


def test_the_verdict_is_plain():
    ten = (10.0, 10.0, 10.0)
    none = speed(side(prefill=ten, decode=(9.0, 11.0, 10.0)), side(prefill=ten, decode=ten))
    assert none.verdict.startswith("no speed-up on this device (cpu, made up, 1 thread): prefill 1.00 ×, decode 1.00 ×")
    some = speed(side(prefill=(12.0, 12.0, 12.0), decode=(9.0, 9.0, 9.0)), side(prefill=ten, decode=ten))
    assert some.verdict == (
        "faster on this device (cpu, made up, 1 thread): prefill 1.20 × at batch 1; slower: decode 0.90 × at batch 1"
    )


def test_the_notes_say_only_what_holds_of_the_shapes():
    ten = (10.0, 10.0, 10.0)
    whole = speed(
        side(decode=(12.0, 12.0, 12.0), channels=(128, 64)), side(decode=ten, channels=(256, 256))
    ).shape_notes
    assert whole == ("all widths are multiples of 64: no tile of a matrix unit is computed in part",)
    odd = " ".join(
        speed(
            side(decode=ten, channels=(100, 72, 64), heads=(64, 64, 64)),
            side(decode=ten, channels=(128, 128, 128), heads=(64, 64, 64)),
        ).shape_notes
    )
    assert "MLP channels in 2 of 3 layers, of the base in 0 of 3 layers" in odd
    assert "--multiple-of 64" in odd and "attention" not in odd and "as many layers as its base" in odd
    thin = speed(side(decode=ten, hidden=60, channels=(128,)), side(decode=ten, hidden=68, channels=(128,)))
    assert thin.shape_notes[0] == "not a multiple of 64: hidden size 60, of the base 68"
    shallow = speed(side(decode=ten, channels=(100,)), side(decode=ten, channels=(128, 128)))
    assert "as many layers" not in " ".join(shallow.shape_notes)


# The record


def test_a_benchmark_survives_json_and_a_damaged_one_is_refused(tmp_path):
    made = speed(side(decode=(1.0, 2.0, 3.0)), side("b", decode=(1.0, 2.0, 4.0)))
    made.save(tmp_path / SPEED_NAME)
    assert Speed.load(tmp_path / SPEED_NAME) == made
    values = json.loads((tmp_path / SPEED_NAME).read_text())
    for damaged in (
        {**values, "rounds": 4},
        {**values, "baseline": side(prefill=(1.0, 1.0, 1.0)).__dict__ | {"series": []}},
        {key: value for key, value in values.items() if key != "device"},
        {
            **values,
            "model": {**values["model"], "series": [{"metric": "decode", "batch_size": 1, "values": [0, 1, 1]}]},
        },
        [],
    ):
        (tmp_path / SPEED_NAME).write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match=r"benchmark\.json: cannot be read as a benchmark"):
            Speed.load(tmp_path / SPEED_NAME)


# The measurement


@pytest.fixture
def processes(monkeypatch):
    """Instead of fresh processes: the names of what they would have measured, in order."""
    order = []

    def measure(name, folder, weights, request):
        order.append(Path(name).name)
        batches = len(request["batch_sizes"])
        return {key: value[:batches] if isinstance(value, list) else value for key, value in FIGURES.items()}

    monkeypatch.setattr(measurement, "measure_once", measure)
    return order


def test_rounds_are_interleaved(processes, folders, tiny_folder):
    measure_speed(str(folders["stock"]), str(tiny_folder), SpeedSettings((1, 2), 8, 4, rounds=5))
    assert processes == ["stock", "tiny-llama", "tiny-llama", "stock"] * 2 + ["stock", "tiny-llama"]
    processes.clear()
    measure_speed(str(folders["stock"]), None, SpeedSettings((1,), 8, 4, rounds=2))
    assert processes == ["stock", "stock"]


def test_another_model_than_the_base_is_refused_in_the_first_round(folders, tiny_folder, monkeypatch):
    plan, measured = PruningPlan.load(folders["stock"]), []

    def measure_as(fingerprint):
        monkeypatch.setattr(
            measurement, "measure_once", lambda *a: measured.append(a) or {**FIGURES, "fingerprint": fingerprint}
        )
        return measure_speed(str(folders["stock"]), str(tiny_folder), SpeedSettings((1,), 8, 4, rounds=3), plan=plan)

    assert measure_as(plan.fingerprint).baseline is not None and len(measured) == 6
    measured.clear()
    with pytest.raises(PlanError, match=r"tiny-llama: is not the model this was pruned from \(tiny-llama\)"):
        measure_as("another")
    assert len(measured) == 2


@pytest.fixture(scope="module")
def benchmarked(folders, tiny_folder, tmp_path_factory):
    """A pruned folder of an own type, and what the verb found of it, in real processes."""
    folder = tmp_path_factory.mktemp("benchmark") / "pruned"
    shutil.copytree(folders["own"], folder)
    parser = argparse.ArgumentParser()
    prepare("benchmark", parser)
    return folder, benchmark.run(parser.parse_args([str(folder), "--baseline", str(tiny_folder), *FAST]))


def test_the_verb_measures_both_models_and_saves(benchmarked, tiny_folder):
    folder, result = benchmarked
    found = Speed.load(folder / SPEED_NAME)
    assert found == filled(
        Speed, {one.name: result[one.name] for one in fields(Speed)}, "result", "a benchmark"
    ) and result["saved"] == str(folder)
    metrics = [(row.metric, row.batch_size) for row in found.rows]
    by_batch = [(metric, batch) for metric in ("prefill", "decode", "time to first token") for batch in (1, 2)]
    assert metrics == [*by_batch, ("load time", None), ("peak memory", None), ("size on disk", None)]
    assert (found.model.name, found.baseline.name) == ("pruned", "tiny-llama")
    assert found.device == f"cpu, {platform.machine()}, 1 thread" and found.dtype == "float32"
    for one, where in ((found.model, folder), (found.baseline, tiny_folder)):
        assert one.bytes_on_disk == (where / "model.safetensors").stat().st_size
    summary = Records.load(folder).summary
    assert (found.baseline.parameters, found.model.parameters) == (summary.parameters_before, summary.parameters_after)
    assert found.model.mlp_channels == tuple(layer["channels"] for layer in summary.layers_after)
    # a prefill of one token's choice more is the time to the first token
    rows = {(row.metric, row.batch_size): row.model for row in found.rows}
    assert rows["time to first token", 1].low >= 1000 * 8 / rows["prefill", 1].high


def test_the_verb_prints_every_row_and_the_verdict(benchmarked):
    _, result = benchmarked
    shown = benchmark.show(result)
    assert all(row["metric"] in shown for row in result["rows"]) and result["verdict"] in shown
    assert "\nmeasured " in shown and "\nsaved " in shown and result["shape_notes"][0] in shown


def test_the_card_tells_of_it_and_of_no_folder_or_host(benchmarked):
    folder, result = benchmarked
    card, record = (folder / "README.md").read_text(), (folder / SPEED_NAME).read_text()
    section = card.split("## Speed")[1].split("\n## ")[0]
    assert section.count("\n| ") == 1 + len(result["rows"]) and "`tiny-llama`" in section
    assert result["verdict"][1:] in section and result["device"] in section
    for private in (str(folder.parent), "/tmp/", platform.node()):
        assert private not in card and private not in record


def test_figures_stay_with_their_weights_and_go_with_no_others(benchmarked, tmp_path, unverified):
    folder = tmp_path / "pruned"
    shutil.copytree(benchmarked[0], folder)
    more = [Measurement("pruned", "a.txt", "perplexity", "128-token segments", 9.0)]
    replace(Records.load(folder), measurements=more).rewrite_card(folder)
    card = (folder / "README.md").read_text()
    assert "## Speed" in card and "`a.txt`" in card and Records.load(folder).speed is not None
    MoreauPruner.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / SPEED_NAME).exists()
    assert "## Speed" not in (tmp_path / "again" / "README.md").read_text()


def test_nothing_is_saved_where_it_is_not_asked_for_or_not_compared(processes, benchmarked, tiny_folder, command):
    folder, _ = benchmarked
    for where, flags in (
        (folder, ("--baseline", tiny_folder, "--no-save")),
        (folder, ()),
        (tiny_folder, ("--baseline", folder)),  # holds no plan
    ):
        before = contents(where)
        code, out, err = command("benchmark", where, *flags, *FAST, "--json")
        assert (code, err) == (0, "") and json.loads(out)["saved"] is None
        assert contents(where) == before


# Bad input


@pytest.fixture(scope="module")
def others(tmp_path_factory, tiny_folder, tokenizer):
    """Models that cannot be compared with the tiny one."""
    found = {name: tmp_path_factory.mktemp("others") / name for name in ("words", "half", "mute", "broken")}
    for name, folder in found.items():
        shutil.copytree(tiny_folder, folder)
        if name == "half":
            tiny_model("llama", vocab_size=len(tokenizer)).half().save_pretrained(folder)
    words = {f"w{i}": i for i in range(300)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0"))).save_pretrained(found["words"])
    for file in found["mute"].glob("tokenizer*"):
        file.unlink()
    weights = found["broken"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--baseline", "nowhere/at/all"), "nowhere/at/all: no such folder"),
        (("--baseline", "words"), "have different tokenizers (300 and 300 tokens"),
        (("--baseline", "half"), "half in float16; give --dtype, one for both"),
        (("--baseline", "mute"), "mute: has no tokenizer"),
        (("--batch-sizes", "1,x"), "'1,x' is not a whole number ≥ 1, or several, e.g. 1,4,16"),
        (("--batch-sizes", "0"), "'0' is not a whole number"),
        (("--batch-sizes", ""), "'' is not a whole number"),
        (("--new-tokens", "0"), "new_tokens: 0 is not a whole number ≥ 1"),
        (
            ("--prompt-tokens", "100", "--new-tokens", "32"),
            "has 128 positions, and 100 prompt_tokens and 32 new_tokens",
        ),
        (("--baseline", "mute", "--rounds", "2"), "rounds: 2 cannot tell chance from speed-up; give at least 3"),
        (("--device", "tpu"), "device: 'tpu' cannot be used here"),
        (("--dtype", "int3"), "dtype: unknown value 'int3'"),
        (("--baseline", "mute", "--card-template", "no.md"), "no.md: no such card template"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_before_it_is(flags, message, processes, folders, others, command):
    before = contents(folders["stock"])
    flags = [str(others.get(flag, flag)) for flag in flags]
    defaults = [] if "--prompt-tokens" in flags else ["--prompt-tokens", "8", "--new-tokens", "4"]
    code, out, err = command("benchmark", folders["stock"], *defaults, *flags)
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1, err
    assert contents(folders["stock"]) == before and not processes


def test_a_measurement_that_breaks_off_says_of_which_model_and_why(others, command, fresh_processes):
    before = contents(others["broken"])
    code, out, err = command("benchmark", others["broken"], *FAST)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1, err
    assert "broken: cannot be measured in a fresh process" in err and "the weights cannot be loaded" in err
    assert contents(others["broken"]) == before


def test_models_of_one_tokenizer_are_let_through(others, tiny_folder):
    check_same_tokenizer(str(tiny_folder), str(others["half"]))
    with pytest.raises(ConfigError, match="different tokenizers"):
        check_same_tokenizer(str(tiny_folder), str(others["words"]))
