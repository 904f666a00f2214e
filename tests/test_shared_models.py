"""Real trained models, pruned by 20 % with the real text they know; skipped where `../shared` is not there."""

import math
from pathlib import Path
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


def loss_of(model, tokenizer, texts):
    return math.log(perplexity(model, tokenizer, texts, max_segments=20).perplexity)


def documents_of(text):
    from optimum_moreau.data.sources import read_documents

    documents = read_documents(text)
    return documents if len(documents) > 1 else [documents[0][i : i + 2000] for i in range(0, 400_000, 2000)]


def assert_no_worse_than_the_cut(load, tokenizer, documents, **settings):
    """Compensates and cuts alone by the same plan, and measures on documents of the same kind that were not read."""
    half = len(documents) // 2
    read, apart = documents[:half], documents[half:]
    config = MoreauPrunerConfig(**settings)
    model = load()
    result = MoreauPruner(config, tokenizer=tokenizer).prune(model, read)
    compensated = loss_of(model, tokenizer, apart)
    model = load()
    plain = MoreauPrunerConfig(**config.to_dict() | {"compensation": "none"})
    cut = MoreauPruner(plain, tokenizer=tokenizer).prune(model, read, scores=result.scores)
    assert cut.plan.layers == result.plan.layers
    alone = loss_of(model, tokenizer, apart)
    assert compensated <= alone
    return compensated, alone, result.summary.compensation["held_out"]


@pytest.mark.parametrize("settings", [{}, {"budget": "search"}], ids=["best", "search"])
@pytest.mark.parametrize("name", TEXTS)
def test_the_preset_is_never_worse_than_the_same_cut_without_compensation(name, settings, shared):
    folder, text = str(shared / "models" / name), str(shared / "data" / TEXTS[name][0])
    settings = MoreauPrunerConfig.best(pruning_ratio=0.2, calibration_samples=32, **settings).to_dict()
    assert_no_worse_than_the_cut(
        lambda: load_model(folder, device="cpu").eval(), load_tokenizer(folder), documents_of(text), **settings
    )


def test_a_refit_on_little_text_does_not_harm_a_real_model(shared):
    """The first edition's refit of 16 windows took SmolLM2-135M from 165 to 402 on other text, and said success."""
    folder = Path("~/.cache/optimum-moreau/smollm2-135m").expanduser()
    if not folder.is_dir():
        pytest.skip("no SmolLM2-135M: `python ../shared/models/get_smollm2.py` makes it")
    documents = documents_of(str(shared / "data" / "c4_demo.jsonl"))
    settings = {"criterion": "magnitude", "pruning_ratio": 0.2, "targets": ("mlp",)}
    compensated, alone, held_out = assert_no_worse_than_the_cut(
        lambda: load_model(str(folder), device="cpu").eval(),
        load_tokenizer(str(folder)),
        documents[:240],
        **settings,
        compensation={"name": "refit", "windows": 16, "held_out": 8},
    )
    assert compensated < alone or held_out["taken_back"]
