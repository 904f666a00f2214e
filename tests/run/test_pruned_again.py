"""A model that was pruned before is pruned further with a word: what it had, what it has, how to begin again."""

import copy
import io
import logging
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, apply_plan
from tests.tiny import assert_same_state, snapshot, tiny_model

CONFIG = MoreauPrunerConfig("magnitude", unit_ratio=0.25, targets=("mlp",), mlp_layers=(0, 3))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def warned(caplog):
    """Runs an action; returns the lines about a model that was pruned before."""

    def run(action, *args):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            action(*args)
        return [record.getMessage() for record in caplog.records if "was pruned before" in record.getMessage()]

    return run


def words(before, now, base="the base"):
    return [
        f"the model was pruned before, from {before:,} parameters to {now:,}, and what goes now goes from these; to"
        f" start from the base again, load it anew: AutoModelForCausalLM.from_pretrained({base})"
    ]


def test_the_same_object_is_pruned_further_with_both_counts(llama, warned):
    pruner, base = MoreauPruner(CONFIG), parameters(llama)
    assert not warned(pruner.prune, llama)
    once = parameters(llama)
    assert warned(pruner.prune, llama) == words(base, once)
    twice = parameters(llama)
    assert twice < once < base
    assert warned(MoreauPruner(CONFIG).prune, llama) == words(base, twice)  # by another pruner; the base's count stays


def test_applying_a_plan_counts_too(llama, warned):
    plan, _ = MoreauPruner(CONFIG).plan(llama)
    base = parameters(llama)
    assert not warned(MoreauPruner().apply, llama, plan)
    once = parameters(llama)
    again, _ = MoreauPruner(CONFIG).plan(llama)
    assert warned(MoreauPruner().apply, llama, again) == words(base, once)
    apply_plan(model := tiny_model("llama"), plan)
    assert warned(MoreauPruner(CONFIG).prune, model) == words(base, once)


def test_a_copy_is_as_pruned_and_nothing_of_it_is_saved(llama, warned, tmp_path):
    plain = {*vars(llama)}
    MoreauPruner(CONFIG).prune(llama)
    before = snapshot(llama)
    copied, pickled = copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))
    torch.save(llama, stream := io.BytesIO())
    loaded = torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    for other in (copied, pickled, loaded):
        assert_same_state(other, before)
        assert len(warned(MoreauPruner(CONFIG).prune, other)) == 1
    llama.save_pretrained(tmp_path)
    assert "parameters_of_base" not in (tmp_path / "config.json").read_text()
    assert {*vars(llama)} - plain == {"parameters_of_base"}
    assert not warned(MoreauPruner(CONFIG).prune, tiny_model("llama"))


def test_a_pruned_folder_is_one_too(folders, tiny_folder, warned):
    for folder in folders.values():
        model = AutoModelForCausalLM.from_pretrained(folder)
        base, once = parameters(AutoModelForCausalLM.from_pretrained(tiny_folder)), parameters(model)
        assert warned(MoreauPruner(CONFIG).prune, model) == words(base, once, "'tiny-llama'")
        twice = parameters(model)
        assert warned(MoreauPruner(CONFIG).prune, model) == words(base, twice, "'tiny-llama'")
    assert not warned(MoreauPruner(CONFIG).prune, AutoModelForCausalLM.from_pretrained(tiny_folder))


def test_a_mask_takes_no_units(warned, tmp_path, tokenizer, unverified):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    masked = MoreauPruner(MoreauPrunerConfig("magnitude", pattern="2:4"), tokenizer=tokenizer)
    assert not warned(masked.prune, model)
    masked.save_pretrained(tmp_path / "masked")
    assert not warned(MoreauPruner(CONFIG).prune, AutoModelForCausalLM.from_pretrained(tmp_path / "masked"))


def test_a_damaged_record_is_none(llama, warned, tmp_path):
    llama.save_pretrained(tmp_path)
    for text in ("", "[]", "[" * 1000, '{"parameters_before": "x"}', '{"parameters_before": NaN}'):
        (tmp_path / "pruning_summary.json").write_text(text)
        assert not warned(MoreauPruner(CONFIG).prune, AutoModelForCausalLM.from_pretrained(tmp_path))
