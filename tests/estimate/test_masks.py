"""What a dry run says of a mask, from config.json alone, is what masking does; its estimate is near the measured."""

import json
import logging
import os
import sys

import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.estimate import estimate_scoring, skeleton_of
from optimum_moreau.loading import load_model
from optimum_moreau.masks.scope import estimate_zeros
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.models.stream import StreamedLayer
from optimum_moreau.models.units import model_shape
from tests import warm
from tests.conftest import ROOT
from tests.tiny import FAMILIES, tiny_model

MASKS = {
    "2:4": {"pattern": "2:4"},
    "1:8": {"pattern": "1:8", "criterion": "sparsegpt"},
    "rows": {"pattern": "unstructured", "sparsity": 0.3},
    "matrices": {"pattern": "unstructured", "sparsity": 0.37, "mask_group": "layer"},
    "all": {"pattern": "unstructured", "sparsity": 0.37, "budget": "global"},
    "scope": {"pattern": "unstructured", "sparsity": 0.37, "attention_layers": (1, 2), "targets": ("attention",)},
    "surgeon": {"pattern": "unstructured", "sparsity": 0.37, "criterion": "sparsegpt"},
    "update": {"pattern": "unstructured", "sparsity": 0.37, "update": True},
    "refined": {"pattern": "unstructured", "sparsity": 0.37, "criterion": "sparsegpt", "refine": "dsnot"},
    "none": {"pattern": "unstructured", "sparsity": 0.0},
}


def estimated(model, **settings):
    shape = model_shape(model)
    config = MoreauPrunerConfig(**{"criterion": "wanda", **settings}).resolve(model.config)
    return shape, config, estimate_zeros(skeleton_of(model), shape, config)


@pytest.mark.parametrize("settings", MASKS.values(), ids=MASKS)
def test_the_zeros_are_those_that_there_will_be(settings, tokens):
    model = tiny_model("llama", intermediate_size=152)  # more than one block of the surgeon's columns
    shape, config, expected = estimated(model, **settings)
    found = sparsify(model, shape, tokens, config)
    assert expected.zeros == sum(one.zeros for one in found.matrices)
    assert (expected.matrices, expected.weights) == (len(found.matrices), sum(one.total for one in found.matrices))
    assert expected.of_model == found.of_model


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family(family):
    model = tiny_model(family)
    shape, config, expected = estimated(model, criterion="magnitude", pattern="unstructured", sparsity=0.3)
    assert expected.zeros == sum(one.zeros for one in sparsify(model, shape, None, config).matrices)


def test_owl_gives_about_as_many(tokens):
    model = tiny_model("llama")
    shape, config, expected = estimated(model, pattern="unstructured", budget="owl")
    found = sparsify(model, shape, tokens, config)
    assert expected.by_scores
    assert expected.zeros == pytest.approx(sum(one.zeros for one in found.matrices), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"feed_forward": False}, 1),
        ({}, 2),
        ({"criterion": "sparsegpt"}, 5),
        ({"criterion": "sparsegpt", "feed_forward": False}, 5),
        ({"criterion": "sparsegpt", "targets": ("mlp",)}, 3),
        ({"criterion": "magnitude"}, 0),
        ({"criterion": "magnitude", "refine": "dsnot"}, 2),
        ({"pattern": "unstructured", "budget": "owl"}, 3),
        ({"pattern": "unstructured", "budget": "global"}, 3),
        ({"criterion": "gblm"}, 1),
        ({"pattern": "units"}, 1),
    ],
    ids=str,
)
def test_passes_are_counted_as_they_run(settings, passes, tokens, monkeypatch):
    model = tiny_model("llama")
    settings = {"criterion": "wanda", "pattern": "2:4", **settings}
    config = MoreauPrunerConfig(calibration_samples=4, sequence_length=16, **settings).resolve(model.config)
    ran = []
    run = StreamedLayer._run
    monkeypatch.setattr(StreamedLayer, "_run", lambda self, **how: ran.append(self.index) or run(self, **how))
    estimate = estimate_scoring(skeleton_of(model), model_shape(model), config, "cpu")
    MoreauPruner(config).prune(model, tokens)
    assert estimate.forwards == passes == ran.count(1)  # the last layer's output is read by none
    assert any("forward pass" in line for line in estimate.lines) == bool(passes + estimate.passes)


MEASURE = """
import gc, json, sys
import torch
from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.estimate import estimate_scoring, skeleton_of
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.models.memory import reset_peak_memory, resident_bytes
from optimum_moreau.models.units import model_shape
from tests.tiny import tiny_model

torch.set_num_threads(1)
model = tiny_model(hidden_size=512, intermediate_size=1376, num_hidden_layers=2, head_dim=128, vocab_size=512,
                   max_position_embeddings=256)
tokens = torch.randint(512, (8, 256))
settings = json.loads(sys.argv[1])
config = MoreauPrunerConfig(calibration_samples=8, sequence_length=256, batch_size=4, **settings).resolve(model.config)
shape = model_shape(model)
estimate = estimate_scoring(skeleton_of(model), shape, config, "cpu")
with torch.no_grad():
    model.model(input_ids=tokens[:1], use_cache=False)  # what a first pass allocates once
    torch.linalg.cholesky_ex(torch.eye(64))
gc.collect()
reset_peak_memory()
before = resident_bytes()
sparsify(model, shape, tokens, config)
print(json.dumps([resident_bytes(peak=True) - before, estimate.peak_memory_bytes - estimate.model_bytes]))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the peak of resident memory starts anew on Linux only"
)
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "taylor"])
def test_the_memory_is_near_what_is_measured(criterion):
    """In a process of its own; within a factor of two."""
    command = [sys.executable, "-c", MEASURE, json.dumps({"criterion": criterion, "pattern": "2:4"})]
    done = warm.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    measured, estimated = json.loads(done.stdout)
    assert 0.5 < estimated / measured < 2, (estimated / 2**20, measured / 2**20)


# The verb


def test_a_dry_run_says_it_and_writes_nothing(command, tmp_path):
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    flags = ("--criterion", "wanda", "--pattern", "2:4", "--dry-run")
    code, out, err = command("prune", tmp_path, *flags, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["sparsity"]["zeros"] == found["sparsity"]["weights"] // 2 and found["sparsity"]["matrices"] == 21
    assert found["parameters"] == sum(p.numel() for p in model.parameters()) and found["export"] == "llama"
    assert found["bytes"] == 4 * found["parameters"] and found["scoring"]["forwards"] == 2
    code, out, err = command("prune", tmp_path, *flags)
    assert code == 0 and "zeros       8,064 of 16,128 weights in 21 matrices (50.00 %; " in out and "2:4\n" in out
    assert "on disk" in out and "as before" in out and "2 forward passes, roughly" in out
    code, out, err = command("prune", tmp_path, "--pattern", "unstructured", "--budget", "owl", "--dry-run")
    assert code == 0 and "about" in out and "their spread follows the scores" in out
    code, out, err = command("prune", tmp_path, "--ratio", "0.3", "--dry-run")  # of units: as `plan --dry-run`
    assert (code, out.splitlines()[:3]) == (
        0, command("plan", tmp_path, "--ratio", "0.3", "--dry-run")[1].splitlines()[:3],
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_a_dry_run_refuses_a_pattern_that_does_not_fit(command, tmp_path):
    tiny_model("llama", intermediate_size=26).config.save_pretrained(tmp_path)
    code, out, err = command("prune", tmp_path, "--pattern", "2:4", "--dry-run")
    assert (code, out) == (2, "") and "layers.0.mlp.down_proj: 26 inputs are no multiple of 4" in err


# Units of a masked model


def test_pruning_a_masked_folder_by_units_says_what_becomes_of_the_mask(tiny_folder, tmp_path, caplog, unverified):
    masking = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", pattern="2:4"))
    model = load_model(str(tiny_folder))
    masking.prune(model)
    masking.save_pretrained(tmp_path / "masked")
    units = MoreauPrunerConfig(criterion="magnitude", pruning_ratio=0.1)
    with caplog.at_level(logging.WARNING):
        MoreauPruner(units).prune(load_model(str(tiny_folder)))
    assert "was masked" not in caplog.text
    pruner = MoreauPruner(units)
    with caplog.at_level(logging.WARNING):
        result = pruner.prune(load_model(str(tmp_path / "masked")))
    assert caplog.text.count("the model was masked (2:4): its zeros stay") == 1 and result.sparsity is None
    zeros = sum(int((w == 0).sum()) for w in pruner._model.parameters())
    assert zeros > 0
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # the same pruner, the same model
        masking.config = units
        masking.prune(model)
    assert caplog.text.count("was masked (2:4)") == 1


def test_masking_a_masked_model_again_says_that_its_zeros_stay(caplog):
    model = tiny_model("llama")
    pruner = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", pattern="2:4"))
    with caplog.at_level(logging.WARNING), torch.no_grad():
        pruner.prune(model)
        assert "was masked" not in caplog.text
        pruner.prune(model)
    assert caplog.text.count("was masked (2:4) already") == 1
