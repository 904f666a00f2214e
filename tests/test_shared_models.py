"""Real trained models, pruned by 20 % with the real text they know; skipped where `../shared` is not there."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, perplexity
from optimum_moreau.loading import load_model, load_tokenizer

# model → calibration text, evaluation text
TEXTS = {
    "stories260K": ("tinystories_1k.jsonl", "tinystories_1k.jsonl"),
    "babyllama-char105": ("tinystories_1k.jsonl", "tinystories_1k.jsonl"),
    "wikitext-llama-5m": ("wikitext2.valid.txt", "wikitext2.test.txt"),
}
CONFIG = MoreauPrunerConfig(
    pruning_ratio=0.2,
    criterion="moreau-gs",
    attention_layers=(1, 5),
    mlp_layers=(1, 5),
    sequence_length=64,
    calibration_samples=4,
    steps=3,
)
SEGMENTS = 40


@pytest.fixture(params=TEXTS)
def real(request, shared):
    """A model on the CPU, its tokenizer, and its texts."""
    folder = str(shared / "models" / request.param)
    calibration, evaluation = (str(shared / "data" / name) for name in TEXTS[request.param])
    model = load_model(folder, device="cpu").eval()
    return SimpleNamespace(
        model=model, tokenizer=load_tokenizer(folder), calibration=calibration, evaluation=evaluation
    )


def perplexity_of(model, real):
    return perplexity(model, real.tokenizer, real.evaluation, max_segments=SEGMENTS).perplexity


def test_a_pruned_model_is_worse_than_dense_and_far_better_than_chance(real, tmp_path):
    torch.manual_seed(0)
    chance = perplexity_of(AutoModelForCausalLM.from_config(real.model.config, dtype=real.model.dtype), real)
    dense = perplexity_of(real.model, real)
    pruner = MoreauPruner(CONFIG, tokenizer=real.tokenizer)
    summary = pruner.prune(real.model, real.calibration).summary
    pruned = perplexity_of(real.model, real)
    assert dense < pruned
    assert math.log(pruned) < (math.log(dense) + math.log(chance)) / 2
    assert summary.ratio_achieved == pytest.approx(0.2, abs=0.01)
    assert summary.parameters_after == real.model.num_parameters()

    difference = pruner.save_pretrained(tmp_path / "out").max_abs_difference
    assert difference <= (1e-4 if real.model.dtype == torch.float32 else 0.1)
    assert perplexity_of(load_model(str(tmp_path / "out"), device="cpu"), real) == pytest.approx(pruned, rel=1e-5)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(real):
    other = MoreauPrunerConfig(**CONFIG.to_dict() | {"seed": 1})
    first, second, third = (
        MoreauPruner(config, tokenizer=real.tokenizer).plan(real.model, real.calibration)[0]
        for config in (CONFIG, CONFIG, other)
    )
    assert first == second
    assert first.layers != third.layers
