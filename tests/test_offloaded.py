"""Models that accelerate keeps elsewhere, in part or whole: scored, cut and saved as loaded ones."""

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.placement import is_offloaded, state_to_save
from optimum_moreau.scores import score_units
from optimum_moreau.units import model_shape
from tests.tiny import tiny_model

TARGETS = [("attention", "mlp"), ("hidden",), ("layers",), ("attention", "mlp", "hidden")]


def config_for(targets, **changes):
    how_much = {"pruning_ratio": 0.1, "whole_layers": (0, 3)} if "layers" in targets else {"unit_ratio": 0.5}
    scope = {"attention_layers": (0, 3), "mlp_layers": (0, 3), "calibration_samples": 4, "sequence_length": 8}
    return MoreauPrunerConfig(criterion="moreau", steps=2, targets=targets, **how_much, **scope, **changes)


def partly_on_disk(folder, tied):
    """As `device_map="auto"` leaves a model that does not fit."""
    on_disk = ["model.layers.1", "model.layers.2", *([] if tied else ["lm_head"])]
    here = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", *(["lm_head"] if tied else [])]
    places = dict.fromkeys(here, "cpu") | dict.fromkeys(on_disk, "disk")
    return AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=str(folder / "offload"))


def whole_in_memory(folder, tied):
    return accelerate.cpu_offload(AutoModelForCausalLM.from_pretrained(folder), execution_device=torch.device("cpu"))


def whole_on_disk(folder, tied):
    model = AutoModelForCausalLM.from_pretrained(folder)
    accelerate.disk_offload(model, offload_dir=str(folder / "offload"), execution_device=torch.device("cpu"))
    return model


PLACES = [partly_on_disk, whole_in_memory, whole_on_disk]


@pytest.mark.parametrize("export", ["auto", "custom"])
@pytest.mark.parametrize("targets", TARGETS, ids=",".join)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("place", PLACES)
def test_an_offloaded_model_is_cut_as_a_loaded_one(place, family, tied, targets, export, tokens, tmp_path):
    tiny_model(family, tie_word_embeddings=tied).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    offloaded = place(tmp_path, tied)
    config = config_for(targets, export=export)
    expected, found = (MoreauPruner(config).prune(model, tokens) for model in (loaded, offloaded))
    assert found.plan == expected.plan
    assert found.summary.parameters_after == expected.summary.parameters_after
    assert is_offloaded(offloaded)
    with torch.no_grad():
        assert torch.equal(offloaded(input_ids=tokens).logits, loaded(input_ids=tokens).logits)
    offloaded.save_pretrained(tmp_path / "pruned", state_dict=state_to_save(offloaded))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    for name, value in loaded.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value), name


def test_an_offloaded_model_is_saved_and_verified(tokens, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    model = partly_on_disk(tmp_path, tied=False)
    pruner = MoreauPruner(config_for(("attention", "mlp")))
    pruner.prune(model, tokens)
    assert pruner.save_pretrained(tmp_path / "pruned").max_abs_difference == 0
    assert is_offloaded(model)


@pytest.mark.parametrize("targets", [("attention", "mlp"), ("hidden",)], ids=",".join)
@pytest.mark.parametrize("place", PLACES)
def test_scoring_leaves_an_offloaded_model_where_it_is(place, targets, tokens, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    loaded, offloaded = AutoModelForCausalLM.from_pretrained(tmp_path), place(tmp_path, False)
    away = {name for name, parameter in offloaded.named_parameters() if parameter.is_meta}
    config = config_for(targets).resolve(loaded.config)
    expected, found = (score_units(m, model_shape(m), tokens, config).values for m in (loaded, offloaded))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert {name for name, parameter in offloaded.named_parameters() if parameter.is_meta} == away
