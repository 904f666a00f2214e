"""The command line: one JSON object on standard output, everything else on standard error, help at once."""

import argparse
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan, perplexity
from optimum_moreau import cli as commands
from optimum_moreau.cli import VERBS, prepare
from optimum_moreau.cli.settings import config_from
from optimum_moreau.config import Mask
from optimum_moreau.config.flat import known_names
from optimum_moreau.config.settings import settings_of
from optimum_moreau.errors import ConfigError
from optimum_moreau.evaluation.records import load_measurements
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.models.families import FAMILIES
from optimum_moreau.registry import CRITERIA, METHODS
from tests import warm
from tests.tiny import contents, tiny_model, weights_in

BIN = Path(sys.executable).parent
PROGRAMS = (("optimum-moreau",), ("optimum-cli", "moreau"))
PLAIN = ("--preset", "plain", "--criterion", "random")  # reads no text
SETTINGS = ("--ratio", "0.15", "--samples", "2", "--seq-len", "16", "--seed", "3", "--budget", "uniform")
PRUNE_KEYS = {
    "parameters_before",
    "parameters_after",
    "ratio_requested",
    "ratio_achieved",
    "contributions",
    "adjustments",
    "export",
    "verified_max_abs_difference",
    "seconds",
    "peak_memory_bytes",
    "output",
}
# field of MoreauPrunerConfig → (its flag's value, what it becomes)
FLAGS = {
    "criterion": ("taylor", "taylor"),
    "pruning_ratio": ("0.3", 0.3),
    "unit_ratio": ("0.25,0.5", (0.25, 0.5)),
    "attention_layers": ("4:30", (4, 30)),
    "mlp_layers": ("0:2", (0, 2)),
    "targets": ("mlp", ("mlp",)),
    "budget": ("global", "global"),
    "protect": ("0.01", 0.01),
    "protect_outliers": ("5", 5.0),
    "aggregation": ("max", "max"),
    "rho": ("0.1", 0.1),
    "step_size": ("1e-4", 1e-4),
    "relative_rho": ("0.1", 0.1),
    "step_ratio": ("0.5", 0.5),
    "eta": ("1e-6", 1e-6),
    "eta_quantile": ("0.2", 0.2),
    "sigma": ("0.01", 0.01),
    "noise": ("absolute", "absolute"),
    "steps": ("5", 5),
    "noise_samples": ("2", 2),
    "passes": ("7", 7),
    "average_last": ("3", 3),
    "channel_group": ("unit", "unit"),
    "reduction": ("importance", "importance"),
    "released": (None, True),
    "calibration_samples": ("20", 20),
    "sequence_length": ("64", 64),
    "batch_size": ("4", 4),
    "multiple_of": ("8", 8),
    "state_dtype": ("bfloat16", "bfloat16"),
    "offload": ("disk", "disk"),
    "target_parameters": ("5.5B", 5_500_000_000),
    "target_bytes": ("12GiB", 12 * 2**30),
    "whole_layers": ("2:6", (2, 6)),
    "layer_criterion": ("block-influence", "block-influence"),
    "fold_norms": (None, True),
    "uniform": (None, True),
    "engine": ("vllm", "vllm"),
    "tensor_parallel": ("2", 2),
    "seed": ("1", 1),
    "alpha": ("10", 10.0),
    "exponent": ("1", 1.0),
    "norm_order": ("1", 1.0),
    "input_weight": ("0.5", 0.5),
    "output_weight": ("0.5", 0.5),
    "sample_share": ("0.2", 0.2),
    "lora_rank": ("4", 4),
    "learning_rate": ("1e-3", 1e-3),
    "decay": ("0.5", 0.5),
    "damping": ("0.1", 0.1),
    "group": ("8", 8),
    "pattern": ("2:4", "2:4"),
    "sparsity": ("0.6", 0.6),
    "mask_group": ("layer", "layer"),
    "refine": ("dsnot", "dsnot"),
    "update": (None, True),
    "permute": (None, True),
    "feed_forward": ("no", False),
    "compensation": ("refit", "refit"),
    "compensation_samples": ("64", 64),
    "held_out": ("8", 8),
    "target": ("matrix", "matrix"),
    "ridge": ("0.1", 0.1),
    "intercept": (None, True),
    "rounds": ("3", 3),
    "schedule": ("linear", "linear"),
    "export": ("custom", "custom"),
    "temperature": ("5", 5.0),
    "strength": ("0.1", 0.1),
    "outlier": ("3", 3.0),
    "weigh": ("loss", "loss"),
    "gradient_windows": ("8", 8),
    "batch_tokens": ("512", 512),
    "patience": ("9", 9),
    "search_objective": ("loss", "loss"),
    "search_by": ("passes", "passes"),
    "search_levels": ("3", 3),
    "search_heads": ("2", 2.0),
    "heads": ("0.5", 0.5),
    "search_windows": ("8", 8),
    "search_rounds": ("0", 0),
    "search_minutes": ("30", 30.0),
}
ALIASES = {"pruning_ratio": "--ratio", "calibration_samples": "--samples", "sequence_length": "--seq-len"}


def run(*arguments, code=0):
    """Runs a program of this environment in a process of its own."""
    process = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    assert process.returncode == code, process.stderr
    return process


@pytest.fixture(scope="module")
def text_file(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, tiny_folder, text_file):
    """`optimum-moreau prune … --json`: its process and its folder."""
    folder = tmp_path_factory.mktemp("pruned") / "pruned"
    arguments = (BIN / "optimum-moreau", "prune", tiny_folder, "-o", folder, "--calibration", text_file)
    return run(*arguments, *SETTINGS, "--json"), folder


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_help_of_every_verb_answers_at_once_with_an_example(program, verb):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = run(sys.executable, "-X", "importtime", BIN / program[0], *program[1:], verb, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "optimum_moreau.cli" in imported and not imported & {"torch", "transformers", "datasets"}
    # processor time: wall time depends on what else the machine does
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert f"example:\n  {' '.join(program)} {verb} " in process.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_every_verb_parses(verb):
    parser = argparse.ArgumentParser(verb)
    prepare(verb, parser)
    parser.parse_args(parser.epilog.split(verb, 1)[1].split())


def owner_of(field):
    """A method, as flags and as settings, that has a setting of this flat name; nothing for the config's own."""
    for kind, registry in METHODS.items():
        for name in registry:
            if field in {one.was for one in settings_of(registry.get(name))}:
                return {kind: name}
    return {}


def test_every_field_and_every_setting_has_its_flag_here():
    """`FLAGS` tries each of them."""
    own = {one.was for one in settings_of(MoreauPrunerConfig)}
    assert FLAGS.keys() == (own - {"mask"}) | known_names().keys() | {"pattern"}


@pytest.mark.parametrize("field", FLAGS)
@pytest.mark.parametrize("verb", ["prune", "plan"])
def test_every_field_of_the_config_has_its_flag(verb, field):
    parser = argparse.ArgumentParser()
    prepare(verb, parser)
    _, expected = FLAGS[field]
    masks = {
        "permute": "2:4",
        **dict.fromkeys(("sparsity", "refine", "update", "mask_group", "feed_forward"), "unstructured"),
    }
    others = {"fold_norms": {"targets": ("hidden",)}}.get(field, {})
    if field == "layer_criterion":
        others = {"targets": ("layers",)}
    elif field in masks:
        others = {"pattern": masks[field]}
    elif field not in {one.was for one in settings_of(MoreauPrunerConfig)} and field != "pattern":
        others = owner_of(field)
    for flag in filter(None, (f"--{field.replace('_', '-')}", ALIASES.get(field))):
        words = {name: [value] if isinstance(value, str) else value for name, value in others.items()}
        given = [word for name, values in words.items() for word in (f"--{name}", *values)]
        args = parser.parse_args(["model", "-o", "out", flag, *filter(None, [FLAGS[field][0]]), *given])
        assert config_from(args) == MoreauPrunerConfig.best(**{field: expected}, **others)


def test_a_methods_settings_are_given_together():
    parser = argparse.ArgumentParser()
    prepare("prune", parser)
    flags = ["--criterion", "moreau", "--criterion-args", "steps=5,sigma=0.1", "--budget", "owl", "--budget-args"]
    args = parser.parse_args(["model", "-o", "out", *flags, "strength=0.1", "--compensation-args", "windows=64"])
    expected = MoreauPrunerConfig.best(
        criterion={"name": "moreau", "steps": 5, "sigma": 0.1},
        budget={"name": "owl", "strength": 0.1},
        compensation={"name": "refit", "windows": 64},
    )
    assert config_from(args) == expected
    args = parser.parse_args(["model", "-o", "out", "--mask", "2:4", "--mask-args", "refine=dsnot,feed_forward=no"])
    assert config_from(args).mask == Mask("2:4", refine="dsnot", feed_forward=False)


def test_settings_in_several_flags_are_all_taken_and_none_twice():
    parser = argparse.ArgumentParser()
    prepare("prune", parser)
    flags = ["model", "-o", "out", "--criterion", "moreau", "--criterion-args", "steps=5", "--criterion-args"]
    criterion = config_from(parser.parse_args([*flags, "sigma=0.1"])).criterion
    assert (criterion.steps, criterion.sigma) == (5, 0.1)
    with pytest.raises(ConfigError, match="--criterion-args: steps is given twice; give it once"):
        config_from(parser.parse_args([*flags, "steps=6"]))


def test_a_setting_chooses_no_method(caplog):
    parser = argparse.ArgumentParser()
    prepare("prune", parser)
    found = config_from(parser.parse_args(["model", "-o", "out", "--steps", "5", "--protect", "0.1"]))
    assert found == MoreauPrunerConfig.best(budget={"name": "uniform", "heads": 0.0, "protect": 0.1})
    assert "surgeon does not use steps: ignored" in caplog.text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--criterion", "moreau-gs", "--criterion-args", "sgma=1"],
            "moreau-gs: unknown setting 'sgma'. Did you mean 'sigma'?",
        ),
        (["--criterion", "moreau", "--criterion-args", "sigma=x"], "sigma: 'x' is not a number ≥ 0"),
        (["--criterion-args", "sigma"], "--criterion-args: 'sigma' is not NAME=VALUE"),
        (["--criterion", "tailor", "--criterion-args", "sigma=1"], "unknown criterion 'tailor'. Did you mean 'taylor'"),
        (["--budget-args", "protect=2"], "protect: 2.0 is not a share in [0, 1)"),
    ],
)
def test_a_wrong_setting_is_named(flags, words):
    parser = argparse.ArgumentParser()
    prepare("prune", parser)
    with pytest.raises(ConfigError, match=re.escape(words)):
        config_from(parser.parse_args(["model", "-o", "out", *flags]))


@pytest.mark.parametrize("verb", ["prune", "plan"])
def test_the_help_fits_on_a_screen_and_a_half(verb):
    shown = run(BIN / "optimum-moreau", verb, "--help").stdout.splitlines()
    assert len(shown) <= 70
    everything = run(BIN / "optimum-moreau", verb, "--help-all").stdout
    assert all(f"--{field.replace('_', '-')}" in everything for field in known_names())


def test_flags_are_over_the_preset():
    parser = argparse.ArgumentParser()
    prepare("prune", parser)
    args = parser.parse_args(["model", "-o", "out", "--preset", "best", "--budget", "global", "--ratio", "0.3"])
    assert config_from(args) == MoreauPrunerConfig.best(budget="global", pruning_ratio=0.3)
    args = parser.parse_args(["model", "-o", "out", "--preset", "paper"])
    assert config_from(args) == MoreauPrunerConfig.paper()
    args = parser.parse_args(["model", "-o", "out", "--preset", "plain", "--ratio", "0.3"])
    assert config_from(args) == MoreauPrunerConfig(pruning_ratio=0.3)


def test_no_flags_mean_what_is_best():
    parser = argparse.ArgumentParser()
    prepare("prune", parser)
    assert config_from(parser.parse_args(["model", "-o", "out"])) == MoreauPrunerConfig.best() == MoreauPruner().config


def test_prune_prints_one_json_object_and_nothing_else(pruned):
    process, folder = pruned
    (line,) = process.stdout.splitlines()
    result = json.loads(line)
    assert result.keys() >= PRUNE_KEYS
    assert result["ratio_requested"] == 0.15
    assert result["ratio_achieved"] == pytest.approx(1 - result["parameters_after"] / result["parameters_before"])
    assert result["verified_max_abs_difference"] == 0
    assert result["seconds"] > 0 and result["peak_memory_bytes"] > 0
    assert result["output"] == str(folder)


def test_standard_error_foretells_memory_and_time_and_shows_no_progress_bars_where_it_is_no_terminal(pruned):
    lines = pruned[0].stderr.splitlines()
    scoring, refit, peak = (line for line in lines if not line.startswith(("WARNING: comp", "INFO: loss on")))
    assert re.fullmatch(r"INFO: scored; peak memory [\d.]+ [MG]iB, Python and its libraries included", peak)
    size = r"[\d.]+ (?:[KM]i)?B"
    parts = f"about {size} at the peak: model {size}, criterion {size}, one pass {size}"
    assert re.fullmatch(rf"INFO: surgeon: scoring 1 forward pass, roughly \d+ s; memory {parts}", scoring)
    passes = r"\d+ passes of 1024 windows through a layer's attention, \d+ through its MLP"
    passes += r", the loss of 16 others 3 times, roughly \d+ s"
    assert re.match(rf"INFO: refit {passes}; its memory about {size} at the peak", refit)


def test_the_pruned_folder_loads(pruned):
    result, folder = json.loads(pruned[0].stdout), pruned[1]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == result["parameters_after"]
    assert model.config.model_type == result["export"]
    ids = tokenizer("The quick", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3).shape[1] == ids.shape[1] + 3


def test_the_library_prunes_as_the_command_does(pruned, tiny_folder, text_file):
    model = load_model(str(tiny_folder))
    config = MoreauPrunerConfig.best(
        pruning_ratio=0.15, calibration_samples=2, sequence_length=16, seed=3, budget="uniform"
    )
    result = MoreauPruner(config, tokenizer=load_tokenizer(str(tiny_folder))).prune(model, text_file)
    assert result.plan == PruningPlan.load(pruned[1])


def test_plan_then_apply_is_prune(command, pruned, tiny_folder, text_file, tmp_path):
    before, plan, folder = contents(tiny_folder), tmp_path / "plan.json", tmp_path / "applied"
    code, out, err = command("plan", tiny_folder, "-o", plan, "--calibration", text_file, *SETTINGS, "--json")
    assert (code, err) == (0, "") and list(tmp_path.iterdir()) == [plan]
    planned, whole = json.loads(out), json.loads(pruned[0].stdout)
    assert planned.pop("compensates_by") == whole["compensation"]["step"] == "refit"
    assert 0 < whole["compensation"]["mean_error_after"] <= whole["compensation"]["mean_error_before"]
    assert planned.keys() <= PRUNE_KEYS
    assert all(planned[key] == whole[key] for key in planned if key != "output")

    code, out, err = command("apply", plan, tiny_folder, "-o", folder, "--calibration", text_file, "--json")
    taken_back = "taken back, since it raised the loss" in err  # the model's loss on this text says nothing
    assert code == 0 and taken_back == whole["compensation"]["held_out"]["taken_back"]
    assert json.loads(out).keys() >= PRUNE_KEYS
    weights, expected = weights_in(folder), weights_in(pruned[1])
    assert weights.keys() == expected.keys() and all(weights[name].equal(expected[name]) for name in expected)
    assert contents(tiny_folder) == before


def test_optimum_cli_prunes_to_an_own_type_which_evaluate_loads(command, tiny_folder, text_file, tmp_path):
    scope = ("--attention-layers", "1:2", "--mlp-layers", "1:2", "--unit-ratio", "0.5", "--criterion", "magnitude")
    words = ("moreau", "prune", tiny_folder, "-o", tmp_path / "own", *scope)
    process = warm.run([sys.executable, BIN / "optimum-cli", *words])
    (notice,) = [line for line in process.stdout.splitlines() if line.startswith("note ")]
    assert "exported as moreau_llama: layers differ in shape; it loads once optimum_moreau is imported" in notice
    assert "--attention-layers 0:3" in notice and "moreau_llama" not in process.stderr  # said once
    code, out, err = command("evaluate", tmp_path / "own", "--text", text_file, "--json")
    assert code == 0 and json.loads(out)["perplexity"] > 1
    assert "calibration text alone" in err and len(err.splitlines()) == 1  # the text that ships


def test_python_m_is_the_same_program():
    assert (
        json.loads(run(sys.executable, "-m", "optimum_moreau", "families", "--json").stdout).keys() == FAMILIES.keys()
    )


@pytest.fixture(scope="module")
def with_base(tmp_path_factory, folders, tiny_folder, text_file):
    """A copy of a pruned folder, and what `evaluate --baseline BASE --save` found of it."""
    folder = tmp_path_factory.mktemp("evaluated") / "pruned"
    shutil.copytree(folders["stock"], folder)
    arguments = (folder, "--baseline", tiny_folder, "--text", text_file, "--seq-len", 32, "--max-segments", 2, "--save")
    process = warm.run([sys.executable, BIN / "optimum-moreau", "evaluate", *arguments, "--json"])
    return folder, json.loads(process.stdout)


def test_evaluate_saves_both_models_figures_and_writes_the_card_anew(with_base, tiny_folder):
    folder, found = with_base
    pruned, base = found["perplexity"], found["baseline"]["perplexity"]
    assert found["baseline"]["model"] == tiny_folder.name
    assert found["differences"][0]["value"] == pytest.approx(pruned - base)
    measured = load_measurements(folder / "evaluation.json")
    protocol = "32-token segments, no BOS, the first 2"
    assert [(one.stage, one.protocol, one.value) for one in measured] == [
        ("before", protocol, base),
        ("pruned", protocol, pruned),
    ]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| perplexity, {protocol} of `text.txt` | {base:.4f} | {pruned:.4f} |" in card


def test_evaluate_replaces_a_figure_and_keeps_none_of_another_text(command, with_base, text_file, tmp_path):
    folder = shutil.copytree(with_base[0], tmp_path / "pruned")
    arguments = ("evaluate", folder, "--seq-len", 32, "--max-segments", 2, "--save", "--text")
    assert command(*arguments, text_file)[0] == 0
    assert load_measurements(folder / "evaluation.json") == load_measurements(with_base[0] / "evaluation.json")
    (tmp_path / "text.txt").write_text("Another text of this name. " * 50)
    assert command(*arguments, tmp_path / "text.txt")[0] == 0
    (one,) = load_measurements(folder / "evaluation.json")
    assert one.stage == "pruned"


def test_evaluate_refuses_to_save_or_compare_what_it_cannot(command, tiny_folder, folders, text_file, tmp_path):
    before = contents(tiny_folder)
    code, out, err = command("evaluate", tiny_folder, "--text", text_file, "--save")
    assert (code, out) == (2, "") and "holds no pruning_plan.json; --save needs a folder that prune or apply" in err
    assert contents(tiny_folder) == before
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(other)
    before = contents(folders["stock"])
    code, out, err = command("evaluate", tiny_folder, "--text", text_file, "--limit", "5")
    assert (code, out) == (2, "") and "--limit: is of zero-shot tasks" in err
    stranger = tmp_path / "stranger"
    tiny_model("llama", vocab_size=load_model(str(tiny_folder)).config.vocab_size, seed=1).save_pretrained(stranger)
    load_tokenizer(str(tiny_folder)).save_pretrained(stranger)
    mine = shutil.copytree(folders["stock"], tmp_path / "mine")
    untouched = contents(mine)
    code, out, err = command("evaluate", mine, "--text", text_file, "--seq-len", 32, "--baseline", stranger, "--save")
    assert (code, out) == (2, "") and "stranger: is not the model this was pruned from (tiny-llama)" in err
    assert contents(mine) == untouched
    code, out, err = command("evaluate", folders["stock"], "--text", text_file, "--baseline", other, "--save")
    assert (code, out) == (2, "") and "different tokenizers" in err and len(err.splitlines()) == 1, err
    assert contents(folders["stock"]) == before


def test_evaluate_measures_what_the_library_measures(command, tiny_folder, text_file):
    code, out, err = command("evaluate", tiny_folder, "--text", text_file, "--seq-len", 32, "--json")
    model, tokenizer = load_model(str(tiny_folder)), load_tokenizer(str(tiny_folder))
    assert (code, err) == (0, "")
    result = json.loads(out)
    found = vars(perplexity(model, tokenizer, text_file, sequence_length=32))
    assert result == {"text": "text.txt", **found} and result["protocol"] == "32-token segments, no BOS"
    assert result.keys() == {"text", "protocol", "perplexity", "tokens", "segments"} and math.isfinite(
        result["perplexity"]
    )


def test_evaluate_and_the_card_name_the_protocol(command, bos_tokenizer, folders, text_file, tmp_path):
    folder = shutil.copytree(folders["stock"], tmp_path / "pruned")
    bos_tokenizer.save_pretrained(folder)
    arguments = ("evaluate", folder, "--text", text_file, "--seq-len", 32, "--save")
    for flags, protocol in (((), "32-token segments after <s>"), (("--bos", "paper"), "32-token segments, no BOS")):
        code, out, _ = command(*arguments, *flags)
        assert code == 0 and f"text.txt, {protocol}: " in out
    recorded = [one.protocol for one in load_measurements(folder / "evaluation.json")]
    assert recorded == ["32-token segments after <s>", "32-token segments, no BOS"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| perplexity, 32-token segments after &lt;s&gt; of `text.txt` |" in card
    assert "| perplexity, 32-token segments, no BOS of `text.txt` |" in card
    code, out, err = command(*arguments, "--bos", "papers")
    assert (code, out) == (2, "") and "'papers'" in err and len(err.splitlines()) == 1, err


def test_evaluate_tells_the_calibration_text_from_others(command, pruned, text_file, tmp_path):
    """By its content; where a record holds no hash of that, by its name."""
    folder = shutil.copytree(pruned[1], tmp_path / "pruned")
    copy, other = tmp_path / "copy.txt", tmp_path / "text.txt"
    shutil.copy(text_file, copy)
    other.write_text("Something that was not read before. " * 60)
    flags = ("--seq-len", 32, "--max-segments", 2, "--save")
    code, out, err = command("evaluate", folder, "--text", copy, *flags)
    assert code == 0 and "copy.txt, calibration text, 32-token" in out
    assert "measured on the calibration text alone" in err and len(err.splitlines()) == 1
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "of `copy.txt`, calibration text |" in card and "\n\nMeasured on the calibration text alone" in card
    code, out, err = command("evaluate", folder, "--text", copy, "--text", other, *flags)
    assert (code, err) == (0, "") and "text.txt, other text, 32-token" in out
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "of `text.txt`, other text |" in card and "calibration text alone" not in card
    summary = json.loads((folder / "pruning_summary.json").read_text())
    del summary["calibration"]["text_sha256"]  # as an older version wrote it
    (folder / "pruning_summary.json").write_text(json.dumps(summary))
    found = json.loads(command("evaluate", folder, "--text", copy, "--text", other, *flags[:-1], "--json")[1])
    assert [one["kind"] for one in found["texts"]] == ["other text", "calibration text"]


BESIDE = ("block-influence", "dsnot", "r2-dsnot", "cosine", "owl", "zscore", "sensitivity", "search")


@pytest.mark.parametrize(("verb", "names"), [("criteria", (*CRITERIA, *BESIDE)), ("families", tuple(FAMILIES))])
def test_the_lists_are_the_tables(command, verb, names):
    _, text, _ = command(verb)
    code, out, err = command(verb, "--json")
    assert (code, err) == (0, "") and tuple(json.loads(out)) == names
    assert all(re.search(rf"(^|`| |=){name}[` ]", text, re.MULTILINE) for name in names)


def test_without_json_the_result_is_for_a_reader(command, tiny_folder, text_file):
    code, out, _ = command("evaluate", tiny_folder, "--text", text_file, "--max-segments", 2)
    assert code == 0 and out.startswith("perplexity ") and "2 segments" in out


def test_an_interruption_saves_nothing(command, tiny_folder, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("optimum_moreau.pruner.verify", interrupt)  # the weights are written beside the target
    code, out, err = command("prune", tiny_folder, "-o", tmp_path / "out", *PLAIN)
    assert (code, out, err) == (130, "", "optimum-moreau prune: interrupted; nothing was saved\n")
    assert os.listdir(tmp_path) == []


def test_a_plan_is_not_overwritten_unasked(command, tiny_folder, tmp_path):
    arguments = ["plan", tiny_folder, "-o", tmp_path / "plan.json", "--criterion", "random"]
    assert command(*arguments)[0] == 0
    first = (tmp_path / "plan.json").read_text()
    code, _, err = command(*arguments, "--seed", "1")
    assert code == 2
    assert "exists; choose another file, or overwrite (--overwrite)" in err
    assert (tmp_path / "plan.json").read_text() == first
    assert command(*arguments, "--seed", "1", "--overwrite")[0] == 0
    assert (tmp_path / "plan.json").read_text() != first


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        commands.main(["--version"])
    assert capsys.readouterr().out.startswith("optimum-moreau 0.")


def test_planning_again_from_scores_is_planning_at_that_ratio(command, tiny_folder, text_file, tmp_path):
    """… without loading a weight: only config.json is left of the model."""
    common = ["--calibration", text_file, "--samples", 2, "--seq-len", 16, "--criterion", "taylor"]
    common += ["--budget", "search", "--budget-args", "rounds=0"]  # they are of one size
    assert command("prune", tiny_folder, "-o", tmp_path / "pruned", "--ratio", 0.1, *common)[0] == 0
    assert command("plan", tiny_folder, "-o", tmp_path / "scored.json", "--unit-ratio", 0.5, *common)[0] == 0
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_folder / "config.json", bare)
    scores = tmp_path / "pruned" / "pruning" / "pruning_scores.safetensors"
    again = ["plan", bare, "--from-scores", scores, "-o", tmp_path / "again.json"]
    assert command(*again, "--unit-ratio", 0.5)[0] == 0
    assert PruningPlan.load(tmp_path / "again.json") == PruningPlan.load(tmp_path / "scored.json")
    code, _, err = command(*again, "--overwrite", "--criterion", "random")
    assert code == 2 and "criterion decided the scores" in err


def test_scores_of_a_search_serve_an_engine_of_uniform_layers(command, tiny_folder, text_file, tmp_path):
    """… whose layers are of one shape: nobody asked for the budget that the scores were made with."""
    flags = ("--calibration", text_file, "--samples", 2, "--seq-len", 16, "--attention-layers", "0:3")
    whole = ("--mlp-layers", "0:3", "--ratio", 0.15, "--budget", "search")
    assert command("prune", tiny_folder, "-o", tmp_path / "pruned", *flags, *whole)[0] == 0
    scores = tmp_path / "pruned"  # the folder that holds them
    for number, one_shape in enumerate((("--uniform",), ("--engine", "vllm"))):
        plan = tmp_path / f"{number}.json"
        code, _, err = command("plan", tiny_folder, "-o", plan, "--from-scores", scores, *one_shape)
        assert (code, err) == (0, "") and PruningPlan.load(plan).config["budget"]["name"] == "uniform"


def test_steps_are_kept_where_gradients_are_averaged(command, tiny_folder, text_file, tmp_path):
    flags = ("--criterion", "moreau", "--calibration", text_file, "--samples", 2, "--seq-len", 16)
    keeping = (*flags, "--checkpoint-dir", tmp_path / "steps")
    code, _, err = command("plan", tiny_folder, "-o", tmp_path / "plan.json", *keeping)
    assert code == 2 and "or take moreau or moreau-gs with reduction 'gradient' (--reduction gradient)" in err
    assert command("plan", tiny_folder, "-o", tmp_path / "plan.json", *keeping, "--reduction", "gradient")[0] == 0


def test_scores_of_another_model_are_refused(command, tiny_folder, tmp_path):
    assert command("prune", tiny_folder, "-o", tmp_path / "pruned", "--criterion", "random")[0] == 0
    tiny_model("llama", intermediate_size=32).save_pretrained(tmp_path / "other")
    scores = tmp_path / "pruned" / "pruning" / "pruning_scores.safetensors"
    code, _, err = command("plan", tmp_path / "other", "--from-scores", scores, "-o", tmp_path / "plan.json")
    assert code == 2 and re.search(r"layers\.0\.mlp: 24 scores for 32 units", err)
    assert not (tmp_path / "plan.json").exists()


def test_plan_diff_prints_the_overlap(command, tiny_folder, tmp_path):
    for seed in (0, 1):
        settings = ["--criterion", "random", "--unit-ratio", 0.5, "--seed", seed]
        assert command("plan", tiny_folder, "-o", tmp_path / f"{seed}.json", *settings)[0] == 0
    code, out, _ = command("plan-diff", tmp_path / "0.json", tmp_path / "1.json", "--json")
    assert code == 0 and 0 < json.loads(out)["all"]["kept"] < 1
    code, out, _ = command("plan-diff", tmp_path / "0.json", tmp_path / "0.json")
    assert code == 0 and out.splitlines()[-1].split() == ["all", "1.000", "1.000"]


@pytest.mark.parametrize(
    ("words", "heads"),
    [
        (["--preset", "fast"], 0.0),
        (["--preset", "fast", "--budget-args", "heads=0.5"], 0.5),
        (["--preset", "fast", "--budget-args", "protect=0.1"], 0.0),
        (["--preset", "best", "--uniform", "--budget-args", "heads=0.25"], 0.25),
        (["--budget", "uniform"], 1.0),
    ],
)
def test_settings_of_a_budget_are_of_the_one_that_the_preset_takes(command, words, heads):
    import yaml

    code, out, err = command("prune", "model", "-o", "out", *words, "--calibration", "text.txt", "--print-config")
    assert (code, err) == (0, "")
    budget = yaml.safe_load(out)["prune"]["budget"]
    assert budget["name"] == "uniform" and budget["heads"] == heads
