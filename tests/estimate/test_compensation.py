"""What a dry run says of compensation and rounds is what runs; its memory is near the measured."""

import json
import logging
import os
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.compensation.refit import RIDGES
from optimum_moreau.compensation.silence import reached
from optimum_moreau.data.parts import parted
from optimum_moreau.estimate import estimate_compensation, estimate_scoring, skeleton_of
from optimum_moreau.estimate.forwards import budget_operations
from optimum_moreau.models.units import decoder_layers, model_shape
from optimum_moreau.planning import expected_plan
from tests import warm
from tests.conftest import ROOT
from tests.tiny import tiny_model

ALL = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}


def estimated(model, **settings):
    values = {"criterion": "magnitude", "compensation": "refit", "compensation_samples": 12, "sequence_length": 16}
    config = MoreauPrunerConfig(**{**values, "unit_ratio": 0.5, **ALL, **settings}).resolve(model.config)
    shape = model_shape(model)
    plan = expected_plan(shape, config)
    return shape, plan, config, estimate_compensation(skeleton_of(model), shape, plan, config, "cpu")


def windows_through(model, name):
    """Counts the windows that pass through a module of every layer, in a list."""
    counted = []
    for layer in decoder_layers(model):
        layer.get_submodule(name).register_forward_hook(lambda module, args, out: counted.append(len(args[0])))
    return counted


def text(count=18):
    """Twelve windows to fit on, and six that are held out."""
    return parted(torch.randint(64, (count, 16), generator=torch.Generator().manual_seed(1)), 6)


@pytest.mark.parametrize(
    ("family", "settings", "passes"),
    [
        ("llama", {}, (9, 6)),
        ("llama", {"batch_size": 5}, (9, 6)),
        ("llama", {"compensation": "bias"}, (9, 6)),
        ("cohere", {}, (9, 6)),
        ("exaone4", {}, (12, 9)),  # norms behind what is given: the layer runs once more
        ("llama", {"attention_layers": (1, 3), "mlp_layers": (1, 3)}, (7, 5)),  # one stream up to the first that loses
        ("llama", {"targets": ("mlp",), "mlp_layers": (2, 3)}, (4, 4)),  # nor is o_proj adjusted before what loses
        ("llama", {"targets": ("mlp", "layers"), "unit_ratio": (0.5, 0.4), "whole_layers": (0, 2)}, (7, 5)),
        ("llama", {"unit_ratio": 0.0}, (0, 0)),
        ("llama", {"targets": ("hidden",)}, (9, 6)),  # narrow from the embedding on
    ],
    ids=str,
)
def test_passes_are_counted_as_they_run(family, settings, passes):
    model = tiny_model(family)
    shape, plan, config, estimate = estimated(model, **settings)
    assert (estimate.attention_passes, estimate.mlp_passes) == passes
    names = ("self_attn.q_proj", "mlp.up_proj", "self_attn.o_proj", "mlp.down_proj")
    counted = {name: windows_through(model, name) for name in names}
    with compensated(model, shape, plan, text(), config):
        pass
    # one window of each stream shows what layers are given besides; and the loss of the others, three times
    besides = (2 + 3 * 6) * shape.depth * plan.removes
    ran = {name: (sum(windows) - besides) / 12 for name, windows in counted.items()}
    assert (ran["self_attn.q_proj"], ran["mlp.up_proj"]) == passes
    adjusted = [block for blocks in reached(shape, plan).values() for block in blocks if plan.removes]
    assert ran["self_attn.o_proj"] == passes[0] - sum(block.kind == "attention" for block in adjusted)
    once_more = sum(block.kind == "mlp" for block in adjusted) * (not shape.family.adds)
    assert ran["mlp.down_proj"] == passes[1] - once_more


@pytest.mark.parametrize("compensation", ["refit", "scale"])
def test_operations_are_those_counted(compensation):
    """Of matrix products; beside them the errors, in float64, and one window of each stream for layers' arguments."""
    model = tiny_model("llama")
    shape, plan, config, estimate = estimated(model, compensation=compensation)
    with FlopCounterMode(display=False) as counter, compensated(model, shape, plan, text(), config) as done:
        pass
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    entries = sum(w.numel() for name, w in model.named_parameters() if "_proj.weight" in name)
    kept = [(len(plan.kept(b).kept) * (16 if b.kind == "attention" else 1), 32) for b in shape.blocks]
    candidates = len(RIDGES) if compensation == "refit" else 1
    errors = sum(2 * k * k * rows * (2 * candidates + 2) for k, rows in kept)
    if compensation == "scale":  # it has its regression, on both folds together where it is taken
        taken = [2 + (one.error_after < one.error_before) for one in done.matrices]
        errors += sum(2 * k * k * rows * times for (k, rows), times in zip(kept, taken, strict=True))
    assert products == estimate.operations + 2 * 2 * 16 * entries + errors
    solved = [k**3 / 3 * (compensation == "refit") + 2 * k * k * rows for k, rows in kept]
    expected = sum((2 * candidates + 1) * one for one in solved)
    expected += sum((2 * candidates + 2) * 2 * k * k * rows for k, rows in kept)
    assert estimate.fit_operations == pytest.approx(expected)


@pytest.mark.parametrize("budget", ["search", "sensitivity"])
def test_a_budget_by_loss_takes_the_operations_of_the_windows_that_it_reads(budget):
    model, found = tiny_model("llama"), {}
    for samples in (1, 3, 4, 12):
        budgets = {"name": budget, "windows": 4}
        settings = {"budget": budgets, "calibration_samples": samples, "compensation": "none"}
        shape, _, config, _ = estimated(model, **settings)
        found[samples] = budget_operations(skeleton_of(model), shape, config)
    assert found[3] == pytest.approx(3 * found[1]) and found[12] == found[4] == pytest.approx(4 * found[1])


def test_a_search_is_foretold_and_bounded(monkeypatch):
    monkeypatch.setattr("optimum_moreau.estimate.scoring.product_rate", lambda *_: 1e6)
    model, seconds = tiny_model("llama"), {}
    for minutes in (None, 1.0, 1e9):
        budgets = {"name": "search", "windows": 4, "minutes": minutes}
        shape, _, config, _ = estimated(model, budget=budgets, criterion="magnitude", calibration_samples=12)
        estimate = estimate_scoring(skeleton_of(model), shape, config, "cpu")
        seconds[minutes] = estimate.seconds
    passes = config.budget.extent(shape, config).passes
    assert f"{passes + 1} forward passes, {passes} of them over 4 windows" in estimate.lines[0]  # and one for XᵀX
    assert seconds[None] == seconds[1e9] > 60 == seconds[1.0]


def test_rounds_score_and_compensate_as_often_as_estimated(monkeypatch):
    model = tiny_model("llama")
    settings = {"rounds": 3, "criterion": "wanda", "calibration_samples": 4}
    shape, _, config, estimate = estimated(model, **settings)
    scoring = estimate_scoring(skeleton_of(model), shape, config, "cpu")
    assert (scoring.times, estimate.times, scoring.forwards) == (3, 3, 1)
    assert "in each of 3 rounds" in scoring.lines[0] and "in each of 3 rounds" in estimate.lines[0]
    counted = windows_through(model, "mlp.down_proj")
    text = torch.randint(64, (40, 16))
    MoreauPruner(config).prune(model, text)
    whole = 3 * (12 * estimate.mlp_passes + (2 + 3 * 6) * shape.depth) + 3 * (4 * scoring.forwards + 1) * shape.depth
    assert sum(counted) == whole
    once = estimate_scoring(skeleton_of(tiny_model()), shape, estimated(tiny_model(), criterion="wanda")[2], "cpu")
    assert once.times == 1 and "rounds" not in once.lines[0]


def test_streams_are_the_hidden_states_of_all_windows_twice(monkeypatch):
    monkeypatch.setattr("optimum_moreau.estimate.compensation.product_rate", lambda *_: 1e9)
    model = tiny_model("llama", dtype=torch.bfloat16)
    *_, estimate = estimated(model)
    assert estimate.stream_bytes == 6 * 12 * 16 * 32 * 2
    shape, plan, config, _ = estimated(model, intercept=True)
    on_gpu = estimate_compensation(skeleton_of(model), shape, plan, config, "cuda")
    assert on_gpu.peak_memory_bytes == on_gpu.model_bytes + on_gpu.work_bytes
    assert "; on the CPU hidden states 72.0 KiB" in on_gpu.lines[1]
    assert estimated(model, compensation="none")[3] is None


MEASURE = """
import gc, json, sys
import torch
from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.data.parts import parted
from optimum_moreau.estimate import estimate_compensation, skeleton_of
from optimum_moreau.planning import expected_plan
from optimum_moreau.models.memory import reset_peak_memory, resident_bytes
from optimum_moreau.models.units import model_shape
from tests.tiny import tiny_model

torch.set_num_threads(1)
model = tiny_model(hidden_size=512, intermediate_size=1376, num_hidden_layers=2, head_dim=128, vocab_size=512,
                   max_position_embeddings=256)
tokens = torch.randint(512, (24, 256))
config = MoreauPrunerConfig(compensation="refit", compensation_samples=16, sequence_length=256, batch_size=4,
                            attention_layers=(0, 2), mlp_layers=(0, 2), **json.loads(sys.argv[1])).resolve(model.config)
shape = model_shape(model)
plan = expected_plan(shape, config)
estimate = estimate_compensation(skeleton_of(model), shape, plan, config, "cpu")
with torch.no_grad():
    model.model(input_ids=tokens[:1], use_cache=False)  # what a first pass allocates once
    torch.linalg.cholesky_ex(torch.eye(64))
gc.collect()
reset_peak_memory()
before = resident_bytes()
with compensated(model, shape, plan, parted(tokens, 8), config, undone=True):
    pass
print(json.dumps([resident_bytes(peak=True) - before, estimate.peak_memory_bytes - estimate.model_bytes]))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the peak of resident memory starts anew on Linux only"
)
@pytest.mark.parametrize("settings", [{}, {"intercept": True}], ids=str)
def test_the_memory_is_near_what_is_measured(settings):
    """In a process of its own; within a factor of two."""
    command = [sys.executable, "-c", MEASURE, json.dumps(settings)]
    done = warm.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    measured, estimated = json.loads(done.stdout)
    assert 0.5 < estimated / measured < 2, (estimated / 2**20, measured / 2**20)


@pytest.mark.parametrize("verb", ["plan", "prune"])
def test_a_dry_run_says_it(verb, command, tmp_path):
    tiny_model("llama").config.save_pretrained(tmp_path)
    flags = (verb, tmp_path, "--dry-run", "--compensation", "refit", "--rounds", "2", "--ratio", "0.2")
    code, out, err = command(*flags, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["scoring"]["times"] == found["compensation"]["times"] == 2
    assert found["compensation"]["step"] == "refit" and found["compensation"]["stream_bytes"] == 6 * 128 * 128 * 32 * 4
    code, out, err = command(*flags)
    assert out.startswith("settings    criterion surgeon on 256 windows, budget uniform, compensation refit\n")
    assert code == 0 and "\nrefit       8 passes of 128 windows through a layer's attention, 6 " in out
    assert "in each of 2 rounds, roughly" in out and "\nits memory  about " in out
    code, out, err = command(verb, tmp_path, "--preset", "plain", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["compensation"] == {}


def test_the_log_says_it_before_scoring(caplog):
    model = tiny_model("llama")
    *_, config, _ = estimated(model)
    with caplog.at_level(logging.INFO, "optimum_moreau.run.scoring"):
        MoreauPruner(config).prune(model, torch.randint(64, (40, 16)))
    words = caplog.text
    assert (
        "refit 9 passes of 12 windows through a layer's attention, 6 through its MLP, the loss of 6 others 3" in words
    )
    assert words.index("refit 9 passes") < words.index("scored; peak memory")
