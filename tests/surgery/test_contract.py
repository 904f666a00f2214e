"""The contract of every family and export: a pruned model is saved, and a fresh process loads the same model.

All folders are made once, and read by two fresh processes (`fresh_process.py`): one in an environment of transformers
and torch only, where stock exports load without remote code and own types with it; one that imports this package, for
the own types.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, apply_plan
from optimum_moreau.config.settings import settings_of
from optimum_moreau.errors import ExportError
from optimum_moreau.registry import CRITERIA
from tests.bare_environment import make_bare_environment
from tests.fresh_process import NEW_TOKENS, PROMPT
from tests.tiny import FAMILIES, assert_same_state, cut_plan, snapshot, tiny_model

SCRIPT = Path(__file__).parents[1] / "fresh_process.py"
MHA = {"num_key_value_heads": 4}
BIASES = {"attention_bias": True, "mlp_bias": True}
EVEN = {"unit_ratio": (0.25, 0.5), "attention_layers": (0, 3), "mlp_layers": (0, 3)}
UNEVEN = {"unit_ratio": 0.5, "attention_layers": (1, 2), "mlp_layers": (0, 2)}


@dataclass(frozen=True)
class Case:
    """A model, how it is pruned, and the model type that must come out."""

    family: str
    settings: dict
    model_type: str
    changes: dict = field(default_factory=dict)
    criterion: str = "taylor"
    verified: bool = True


UNLIKE = ("llama", "qwen2", "gemma2", "phi3", "starcoder2")  # one of each layout: biases, caps, fused, two matrices

CASES = {
    # Each verification is a process of its own, and sees nothing in which stock exports differ: one stands for all.
    **{f"{f}-stock": Case(f, EVEN | {"unit_ratio": 0.5}, f, verified=f == "llama") for f in FAMILIES},
    **{f"{f}-own": Case(f, UNEVEN, f"moreau_{f}", verified=f in UNLIKE) for f in FAMILIES},
    "llama-as-mistral": Case("llama", EVEN, "mistral", MHA),
    "llama-own-bias": Case("llama", EVEN, "moreau_llama", MHA | BIASES, verified=False),
    "llama-own-tied": Case("llama", UNEVEN, "moreau_llama", {"tie_word_embeddings": True}, verified=False),
    "llama-own-bfloat16": Case("llama", UNEVEN, "moreau_llama", {"dtype": torch.bfloat16}, verified=False),
    "mistral-own-window": Case("mistral", UNEVEN, "moreau_mistral", {"sliding_window": 4}, verified=False),
    **{f"by-{name}": Case("llama", EVEN, "mistral", MHA, name, verified=False) for name in CRITERIA},
}
SIX_TARGETS = {
    "attention": ("attention",),
    "mlp": ("mlp",),
    "both": ("attention", "mlp"),
    "hidden": ("hidden",),
    "layers": ("layers",),
    "all": ("attention", "mlp", "hidden", "layers"),
}


def target_case(family, target, export):
    """Stock: every layer in scope, so that one shape is left; auto: not every layer, which heads and channels show."""
    own = export == "custom" or (export == "auto" and target not in ("hidden", "layers"))
    scope = {name: (0, 4) if export == "stock" else (1, 3) for name in ("attention_layers", "mlp_layers")}
    settings = {"targets": SIX_TARGETS[target], "unit_ratio": 0.5, "whole_layers": (0, 4), "export": export, **scope}
    if export == "auto":
        settings["unit_ratio"] = 0.25 if target in ("hidden", "layers") else 0.5
    if target == "all":
        settings["unit_ratio"] = (0.5, 0.5, 0.25, 0.25)
    model_type = f"moreau_{family}" if own else family
    return Case(family, settings, model_type, {"num_hidden_layers": 4}, verified=False)


# Every pair of family, target and export: the families take turns.
TARGET_CASES = [
    (("llama", "mistral")[(i + j) % 2], target, export)
    for i, target in enumerate(SIX_TARGETS)
    for j, export in enumerate(("auto", "stock", "custom"))
]
CASES |= {"-".join(case): target_case(*case) for case in TARGET_CASES}
# Case, how it was saved, and whether the fresh process has this package.
LOADS = [
    (name, saved, package)
    for name, case in CASES.items()
    for saved in (("plain", "verified") if case.verified else ("plain",))
    for package in ((False, True) if case.model_type.startswith("moreau_") else (False,))
]
every_load = pytest.mark.parametrize(
    "load", LOADS, ids=[f"{n}-{s}-{'package' if p else 'no-package'}" for n, s, p in LOADS]
)
SMALL = {"calibration_samples": 2, "sequence_length": 16}
FEW_STEPS = {"steps": 2, "noise_samples": 1, "passes": 2}


def pruner_for(case, tokenizer):
    few = {
        name: count
        for name, count in FEW_STEPS.items()
        if name in {one.name for one in settings_of(CRITERIA.get(case.criterion))}
    }
    return MoreauPruner(
        MoreauPrunerConfig(criterion=case.criterion, **case.settings, **SMALL, **few), tokenizer=tokenizer
    )


@torch.no_grad()
def expected_of(model, ids):
    greedy = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    return SimpleNamespace(
        logits=model(ids).logits, hidden=model.model(ids).last_hidden_state, generated=model.generate(ids, **greedy)
    )


def load_all(folders, package, work):
    results = work / f"results-{'package' if package else 'alone'}"
    results.mkdir()
    request = {
        "package": package,
        "results": str(results),
        "folders": {
            f"{name}-{saved}": {
                "folder": str(folder),
                "remote_code": not package and CASES[name].model_type.startswith("moreau_"),
            }
            for (name, saved), folder in folders.items()
        },
    }
    environment = {**os.environ, "HF_HOME": str(work / "hf")}
    if not package:
        environment["PYTHONPATH"] = str(make_bare_environment(work / "bare"))
    subprocess.run(
        [sys.executable, *(["-I"] if package else ["-S", "-P"]), str(SCRIPT)],
        input=json.dumps(request),
        text=True,
        check=True,
        cwd=work,
        env=environment,
    )
    return {
        key: SimpleNamespace(
            folder=folder,
            again=results / f"{'-'.join(key)}-again",
            words=json.loads((results / f"{'-'.join(key)}.json").read_text()),
            tensors=load_file(results / f"{'-'.join(key)}.safetensors"),
        )
        for key, folder in folders.items()
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory, tokenizer, text):
    """(case, saved, package) → what a fresh process found, beside what was in memory."""
    work = tmp_path_factory.mktemp("contract")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    folders, expected = {}, {}
    for name, case in CASES.items():
        model = tiny_model(case.family, vocab_size=len(tokenizer), **case.changes)
        pruner = pruner_for(case, tokenizer)
        pruner.prune(model, [text])
        folders[name, "plain"] = work / f"{name}-plain"
        model.save_pretrained(folders[name, "plain"], max_shard_size="20KB")
        tokenizer.save_pretrained(folders[name, "plain"])
        if case.verified:
            folders[name, "verified"] = work / f"{name}-verified"
            pruner.save_pretrained(folders[name, "verified"])
        expected[name] = expected_of(model, ids)
    own = {key: folder for key, folder in folders.items() if CASES[key[0]].model_type.startswith("moreau_")}
    by_package = {False: load_all(folders, False, work), True: load_all(own, True, work)}
    for package, results in by_package.items():
        for (name, _), result in results.items():
            result.case, result.expected, result.package = CASES[name], expected[name], package
    return by_package


@pytest.fixture
def loaded(found, load):
    name, saved, package = load
    return found[package][name, saved]


@every_load
def test_a_fresh_process_computes_the_same_logits(loaded):
    assert torch.equal(loaded.tensors["logits"], loaded.expected.logits)
    assert torch.equal(loaded.tensors["hidden"], loaded.expected.hidden)


@every_load
def test_the_saved_type_is_what_loads(loaded):
    config = json.loads((loaded.folder / "config.json").read_text())
    own = loaded.case.model_type.startswith("moreau_")
    home = "transformers.models." if not own else "optimum_moreau." if loaded.package else "transformers_modules."
    assert config["model_type"] == loaded.case.model_type
    assert all(loaded.words[part].startswith(home) for part in ("config", "model", "decoder"))
    assert (loaded.folder / "modeling_moreau.py").exists() == ("auto_map" in config) == own
    assert loaded.words["dtype"] == f"torch.{config['dtype']}"


@every_load
def test_greedy_text_is_the_same_with_every_cache(loaded):
    for cache in ("dynamic cache", "static cache", "no cache"):
        assert torch.equal(loaded.tensors[cache], loaded.expected.generated), cache


@every_load
def test_eager_attention_and_bfloat16_are_close(loaded):
    logits = loaded.tensors["logits"].float()
    allowed = 1e-5 * logits.abs().max() if loaded.case.changes.get("dtype") is None else 0.05 * logits.abs().max()
    first = "eager" if loaded.case.family == "gemma2" else "sdpa"  # only eager caps attention logits, as gemma2 does
    assert loaded.words["attention"] == [first, "eager"]
    assert (loaded.tensors["eager"].float() - logits).abs().max() <= allowed
    assert (loaded.tensors["bfloat16"].float() - logits).abs().max() <= 0.1 * logits.abs().max()


@every_load
def test_gradient_checkpointing_changes_no_gradient(loaded):
    assert loaded.tensors["gradient"].any()
    assert torch.allclose(loaded.tensors["checkpointed gradient"], loaded.tensors["gradient"], atol=1e-6)


@every_load
def test_the_tokenizer_is_the_same(loaded, tokenizer):
    assert torch.equal(loaded.tensors["ids"], tokenizer(PROMPT, return_tensors="pt")["input_ids"])


@every_load
def test_a_reloaded_model_saves_the_same_checkpoint(loaded):
    """With the package or without, as often as one likes."""
    config, again = (json.loads((folder / "config.json").read_text()) for folder in (loaded.folder, loaded.again))
    older = {"torch_dtype", "rope_theta", "rope_scaling"}  # that transformers 5 does not write by itself
    assert {k: v for k, v in again.items() if k not in older} == {k: v for k, v in config.items() if k not in older}
    assert (loaded.again / "modeling_moreau.py").exists() == (loaded.folder / "modeling_moreau.py").exists()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.verified])
def test_plain_and_verified_saves_hold_the_same_model(found, name):
    plain, verified = (found[False][name, saved] for saved in ("plain", "verified"))
    shards, whole = (len(list(save.folder.glob("model*.safetensors"))) for save in (plain, verified))
    assert shards > 1 and whole == 1
    assert torch.equal(plain.tensors["logits"], verified.tensors["logits"])


@pytest.mark.parametrize("remote", [False, True], ids=["plain", "trusting"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reloaded_own_type_can_be_pruned_again(found, family, remote):
    result = found[False][f"{family}-own", "plain"]
    model = AutoModelForCausalLM.from_pretrained(result.folder, trust_remote_code=remote)
    assert type(model).__module__.startswith("optimum_moreau.")  # where the package is, its classes go first
    assert torch.equal(model(result.tensors["ids"]).logits, result.expected.logits)
    assert apply_plan(model, cut_plan(model, (1, 0, 1), (0, 0, 12))) == family  # every layer has the same shape again
    assert type(model).__module__.startswith(f"transformers.models.{family.removesuffix('_text')}.")


# The export decision


@pytest.mark.parametrize("family", FAMILIES)
def test_custom_is_always_the_own_type(family):
    model, stock = tiny_model(family), tiny_model(family)
    plan = cut_plan(model, (1, 1, 1), (8, 8, 8))
    ids = torch.arange(12)[None]
    assert apply_plan(model, plan, "custom") == model.config.model_type == f"moreau_{family}"
    assert apply_plan(stock, plan, "stock") == family
    assert torch.equal(model(ids).logits, stock(ids).logits)


def test_llama_as_mistral_is_the_same_network():
    as_mistral, own = tiny_model("llama", **MHA), tiny_model("llama", **MHA)
    plan = cut_plan(own, (1, 1, 1), (8, 8, 8))
    ids = torch.arange(12)[None]
    assert apply_plan(as_mistral, plan) == "mistral" and apply_plan(own, plan, "custom") == "moreau_llama"
    assert as_mistral.config.sliding_window is None
    assert torch.equal(as_mistral(ids).logits, own(ids).logits)


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"mlp_bias": True}], ids=str)
def test_llama_with_a_bias_is_never_mistral(biases):
    model = tiny_model("llama", **MHA, **biases)
    assert apply_plan(model, cut_plan(model, (1, 1, 1), (8, 8, 8))) == "moreau_llama"


@pytest.mark.parametrize(
    ("changes", "cut", "kv_heads", "channels"),
    [
        ({}, ((0, 1, 0), (3, 0, 9)), 2, 20),
        (MHA, ((1, 1, 0), (4, 4, 4)), 3, 20),  # as mistral
        (MHA | BIASES, ((1, 1, 1), (4, 4, 4)), 4, 20),  # 3 heads do not divide the width, and mistral has no bias
    ],
)
def test_stock_is_refused_with_the_nearest_legal_shape(changes, cut, kv_heads, channels):
    model = tiny_model("llama", **changes)
    before = snapshot(model)
    with pytest.raises(ExportError, match=f"nearest legal plan: .*, {kv_heads} KV heads, {channels} channels"):
        apply_plan(model, cut_plan(model, *cut), "stock")
    assert_same_state(model, before)
    total = model.config.num_key_value_heads
    apply_plan(model, cut_plan(model, [total - kv_heads] * 3, [24 - channels] * 3), "stock")
