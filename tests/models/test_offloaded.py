"""Models that accelerate keeps elsewhere, in part or whole: scored, cut and saved as loaded ones."""

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.errors import UnsupportedModelError
from optimum_moreau.models.placement import is_offloaded, state_to_save
from optimum_moreau.models.units import model_shape
from optimum_moreau.scoring.scores import score_units
from tests.tiny import tiny_model

TARGETS = [("attention", "mlp"), ("hidden",), ("layers",), ("attention", "mlp", "hidden"), ("hidden", "layers")]


def config_for(targets, **changes):
    how_much = {"pruning_ratio": 0.1, "whole_layers": (0, 3)} if "layers" in targets else {"unit_ratio": 0.5}
    how_much |= {"layer_criterion": "block-influence"} if targets == ("hidden", "layers") else {}
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
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = partly_on_disk(tmp_path / "base", tied=False)
    pruner = MoreauPruner(config_for(("attention", "mlp")))
    pruner.prune(model, tokens)
    assert pruner.save_pretrained(tmp_path / "pruned").max_abs_difference == 0
    assert is_offloaded(model)


def test_weights_out_of_scope_are_loaded_anew_for_the_backward_pass(tokens, tmp_path):
    """Else autograd would hold every loaded weight above the first layer in scope until then."""
    tiny_model("llama").save_pretrained(tmp_path)
    model = whole_in_memory(tmp_path, False)
    shapes = {tuple(parameter.shape) for name, parameter in model.named_parameters() if "mlp" in name or "head" in name}
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score_units(model, model_shape(model), tokens, config_for(("attention",)).resolve(model.config))
    assert kept and not shapes & {shape for shape in kept}


def test_the_published_code_needs_a_loaded_model(tokens, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="released holds the whole model several times; load it without"):
        MoreauPruner(config_for(("mlp",), released=True)).prune(whole_in_memory(tmp_path, False), tokens)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("targets", [("attention", "mlp"), ("hidden",), ("hidden", "layers")], ids=",".join)
@pytest.mark.parametrize("place", PLACES)
def test_scoring_leaves_an_offloaded_model_where_it_is(place, targets, tied, tokens, tmp_path):
    tiny_model("llama", tie_word_embeddings=tied).save_pretrained(tmp_path)
    loaded, offloaded = AutoModelForCausalLM.from_pretrained(tmp_path), place(tmp_path, tied)
    away = names_away(offloaded)
    pruner = MoreauPruner(config_for(targets))
    expected, found = (pruner.plan(model, tokens)[1].values for model in (loaded, offloaded))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert names_away(offloaded) == away


def names_away(model):
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.is_meta}
