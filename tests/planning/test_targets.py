"""Hidden channels and whole layers: a cut computes what its oracle computes; targets combine, counts are exact."""

import copy
import itertools
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan, apply_plan
from optimum_moreau.criteria.block_influence import block_influence
from optimum_moreau.errors import DataError, PlanError, UnsupportedModelError
from optimum_moreau.models.families import FAMILIES as ROWS
from optimum_moreau.models.units import decoder_layers, model_shape
from optimum_moreau.planning import Kept, make_plan, removed_parameters
from optimum_moreau.scoring.scores import UnitScores, score_units
from tests.tiny import FAMILIES, assert_same_state, cut_plan, snapshot, tiny_model

IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))
RMS_FAMILIES = [family for family in FAMILIES if not ROWS[family].hidden_refusal]
OTHERS = [family for family in FAMILIES if ROWS[family].hidden_refusal]
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
NOTHING, UNEVEN = ((0, 0, 0), (0, 0, 0)), ((0, 1, 0), (3, 0, 9))
SMALL = {"calibration_samples": 2, "sequence_length": 12}
ALL_LAYERS = {"attention_layers": (0, 3), "mlp_layers": (0, 3), "whole_layers": (0, 3)}

both_ties = pytest.mark.parametrize("tied", [UNTIED, TIED], ids=["untied", "tied"])


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def hidden_plan(model, removed=8, *, cut=NOTHING, layers=None, **config):
    """A plan that removes random hidden channels, units and layers."""
    plan = cut_plan(model, *cut)
    width = model.config.hidden_size
    kept = torch.randperm(width, generator=torch.Generator().manual_seed(3))[removed:].sort().values.tolist()
    return replace(plan, hidden=Kept(tuple(kept), width), kept_layers=layers, config=config)


class Averaging(nn.Module):
    """An RMS norm in float64 that averages over `count` channels; the channels cut are zero."""

    def __init__(self, norm, count):
        super().__init__()
        self.weight, self.count = norm.weight, count
        self.epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / self.count + self.epsilon)


@torch.no_grad()
def masked(model, plan, count):
    """The dense model without the hidden channels that go: nothing writes them, and norms average over `count`."""
    model = copy.deepcopy(model)
    gone = sorted(set(range(plan.hidden.total)) - set(plan.hidden.kept))
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    model.model.embed_tokens.weight[:, gone] = 0
    for layer in model.model.layers:
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            module.weight[gone] = 0
            if module.bias is not None:
                module.bias[gone] = 0
        for name, module in list(layer.named_children()):
            if isinstance(getattr(module, "weight", None), torch.Tensor):
                setattr(layer, name, Averaging(module, count))
    model.model.norm = Averaging(model.model.norm, count)
    return model


def float64_norms(model):
    """The model with norms that do not round to float32 on the way."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if "norm" in name and not isinstance(child, Averaging):
                setattr(module, name, Averaging(child, child.weight.numel()))
    return model


@pytest.mark.parametrize("family", RMS_FAMILIES)
@both_ties
@pytest.mark.parametrize("export", ["auto", "custom"])
def test_cut_hidden_channels_equal_the_model_whose_norms_average_over_those_kept(family, tied, export):
    model = tiny_model(family, dtype=torch.float64, **tied)
    plan = hidden_plan(model)
    expected = logits(float64_norms(masked(model, plan, len(plan.hidden.kept))))
    assert (logits(model) - expected).abs().max() > 1e-3
    apply_plan(model, plan, export)
    assert model.config.hidden_size == 24
    assert (logits(float64_norms(model)) - expected).abs().max() <= 1e-9


@pytest.mark.parametrize("family", [family for family in RMS_FAMILIES if not ROWS[family].qk_norms])
def test_folded_norms_keep_the_averages_over_the_original_width(family):
    model = tiny_model(family, dtype=torch.float64)
    plan = hidden_plan(model, fold_norms=True)
    expected = logits(float64_norms(masked(model, plan, plan.hidden.total)))
    epsilon = model.config.rms_norm_eps
    apply_plan(model, plan)
    assert model.config.rms_norm_eps == pytest.approx(epsilon * 32 / 24, rel=1e-12)
    assert (logits(float64_norms(model)) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("family", [family for family in RMS_FAMILIES if ROWS[family].qk_norms])
def test_folding_is_refused_where_other_norms_share_the_epsilon(family):
    model = tiny_model(family)
    before = snapshot(model)
    with pytest.raises(PlanError, match="fold_norms: the q and k norms"):
        apply_plan(model, hidden_plan(model, fold_norms=True))
    with pytest.raises(PlanError, match="fold_norms: the q and k norms"):
        MoreauPruner(MoreauPrunerConfig("random", 0.2, targets=("hidden",), fold_norms=True)).prune(model)
    assert_same_state(model, before)


@pytest.mark.parametrize("family", OTHERS)
def test_hidden_channels_are_refused_where_no_cut_is_exact(family):
    model = tiny_model(family)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=f"hidden channels of '{family}' cannot be cut: its "):
        MoreauPruner(MoreauPrunerConfig("random", 0.2, targets=("hidden", "mlp"))).prune(model)
    with pytest.raises(PlanError, match="plan removes hidden channels, but its"):
        apply_plan(model, hidden_plan(model))
    assert_same_state(model, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [(0, 2), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("export", ["auto", "custom"])
def test_removed_layers_equal_skipped_ones(family, kept, export):
    model = tiny_model(family, dtype=torch.float64)
    skipping = copy.deepcopy(model)
    for index, layer in enumerate(skipping.model.layers):
        if index not in kept:
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
    lists = {key: value for key, value in model.config.to_dict().items() if isinstance(value, list) and len(value) == 3}
    apply_plan(model, replace(cut_plan(model, *NOTHING), kept_layers=kept), export)
    assert (logits(model) - logits(skipping)).abs().max() <= 1e-9
    assert model.config.num_hidden_layers == len(model.model.layers) == len(kept)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(len(kept)))
    for key, value in lists.items():
        assert model.config.to_dict()[key] == [value[i] for i in kept], key
    if export == "auto":
        assert model.config.model_type == family


@pytest.mark.parametrize("family", RMS_FAMILIES)
@both_ties
def test_units_hidden_channels_and_layers_are_cut_at_once_as_in_turn(family, tied):
    once, turns = tiny_model(family, **tied), tiny_model(family, **tied)
    plan = hidden_plan(once, cut=UNEVEN, layers=(0, 2))
    apply_plan(once, plan, "custom")
    apply_plan(turns, cut_plan(turns, *UNEVEN), "custom")
    apply_plan(turns, replace(cut_plan(turns, *NOTHING), hidden=plan.hidden), "custom")
    apply_plan(turns, replace(cut_plan(turns, *NOTHING), kept_layers=(0, 2)), "custom")
    assert torch.equal(logits(once), logits(turns))
    assert once.state_dict().keys() == turns.state_dict().keys()
    ties = once.lm_head.weight is once.model.embed_tokens.weight
    assert ties == once.config.tie_word_embeddings == tied["tie_word_embeddings"]


@pytest.mark.parametrize("family", RMS_FAMILIES)
def test_sizes_follow_the_weights_and_lora_trains_on_a_narrower_shallower_model(family):
    model = tiny_model(family, dtype=torch.float64)
    apply_plan(model, hidden_plan(model, cut=UNEVEN, layers=(0, 2)))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
    assert model.model.embed_tokens.embedding_dim == model.config.hidden_size == 24
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
    lora(IDS, labels=IDS).loss.backward()
    expected = logits(lora.eval())
    assert torch.allclose(logits(lora.merge_and_unload()), expected, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@both_ties
def test_a_plan_counts_its_parameters_exactly(family, tied):
    model = tiny_model(family, **tied)
    shape = model_shape(model)
    plan = cut_plan(model, *UNEVEN)
    plans = [plan, replace(plan, kept_layers=(0, 2))]
    if not ROWS[family].hidden_refusal:
        plans += [hidden_plan(model, cut=UNEVEN), hidden_plan(model, cut=UNEVEN, layers=(1, 2))]
    for plan in plans:
        pruned = tiny_model(family, **tied)
        apply_plan(pruned, plan, "custom")
        assert shape.parameters - removed_parameters(plan, shape) == sum(p.numel() for p in pruned.parameters())


@pytest.mark.parametrize("budget", ["uniform", "global"])
@pytest.mark.parametrize(
    "targets",
    [t for n in (1, 2, 3, 4) for t in itertools.combinations(("attention", "mlp", "hidden", "layers"), n)],
    ids=",".join,
)
def test_every_combination_of_targets_cuts_and_says_what_each_gives(targets, budget):
    model = tiny_model("llama", num_hidden_layers=6)
    before = sum(p.numel() for p in model.parameters())
    settings = {"targets": targets, "budget": budget, "criterion": "taylor", **SMALL}
    result = MoreauPruner(MoreauPrunerConfig(pruning_ratio=0.2, **settings)).prune(model, IDS)
    after = sum(p.numel() for p in model.parameters())
    assert result.summary.parameters_after == after < before
    assert sum(result.plan.contributions.values()) == before - after
    assert set(result.plan.contributions) <= set(targets)
    assert PruningPlan.from_dict(result.plan.to_dict()) == result.plan
    finest = "mlp" in targets
    assert abs((before - after) / before - 0.2) <= (0.02 if finest else 0.1)


def test_every_target_gives_where_its_part_is_not_too_small():
    model = tiny_model("llama", num_hidden_layers=12, num_key_value_heads=4)
    config = MoreauPrunerConfig("magnitude", 0.5, targets=("attention", "mlp", "hidden", "layers"))
    given = MoreauPruner(config).prune(model).plan.contributions
    assert set(given) == {"attention", "mlp", "hidden", "layers"}
    assert given["layers"] == pytest.approx(given["hidden"], rel=0.3)
    assert given["attention"] + given["mlp"] == pytest.approx(given["hidden"], rel=0.3)


def test_a_plan_whose_layers_are_damaged_leaves_the_model_alone(llama):
    before = snapshot(llama)
    for kept in ((), (0, 7), (1, 0), (0, 0)):
        with pytest.raises(PlanError, match="kept_layers: must be sorted"):
            apply_plan(llama, replace(cut_plan(llama, *NOTHING), kept_layers=kept))
    assert_same_state(llama, before)


def test_block_influence_without_text_is_refused(llama):
    config = MoreauPrunerConfig(targets=("layers",), layer_criterion="block-influence").resolve(llama.config)
    with pytest.raises(DataError, match="block-influence' reads calibration text"):
        score_units(llama, model_shape(llama), None, config)


def test_units_of_layers_that_go_are_left_whole_in_the_plan():
    model = tiny_model("llama", num_hidden_layers=6)
    config = MoreauPrunerConfig("magnitude", unit_ratio=(0.5, 0.5), targets=("mlp", "layers"), whole_layers=(1, 5))
    result = MoreauPruner(config).prune(model)
    gone = set(range(6)) - set(result.plan.kept_layers)
    assert len(gone) == 2 and gone <= {1, 2, 3, 4}
    assert all(result.plan.layers[i]["mlp"].removed == 0 for i in gone)
    assert result.summary.unit_ratio_achieved == {"mlp": 0.5, "layers": 0.5}
    assert [layer is None for layer in result.summary.layers_after] == [i in gone for i in range(6)]


# Which go


def test_a_layer_is_worth_the_sum_of_its_units():
    model = tiny_model("llama")
    config = MoreauPrunerConfig("taylor", targets=("layers",), **SMALL, **ALL_LAYERS).resolve(model.config)
    values = score_units(model, model_shape(model), IDS, config).values
    for i in range(3):
        units = values[f"layers.{i}.attention"].sum() + values[f"layers.{i}.mlp"].sum()
        assert values[f"layers.{i}"].item() == pytest.approx(units.item(), rel=1e-12)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "exaone4"])
def test_block_influence_is_one_minus_the_mean_cosine_of_input_and_output(family):
    model = tiny_model(family)
    ids = IDS.where(IDS != 1, 2)  # the padding's embedding is zero, which has no direction
    last = []
    model.model.layers[-1].register_forward_hook(
        lambda _, args, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        found = block_influence(model, decoder_layers(model), [ids[:1], ids[1:]])
        states = [*model(ids, output_hidden_states=True).hidden_states[:-1], last[-1]]
    for i, (x, y) in enumerate(itertools.pairwise(states)):
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        assert found[i].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-6)


def test_block_influence_alone_needs_no_backward_pass(monkeypatch):
    model = tiny_model("llama")
    config = MoreauPrunerConfig(
        "moreau", 0.3, targets=("layers",), layer_criterion="block-influence", **SMALL, **ALL_LAYERS
    )
    monkeypatch.setattr(torch.autograd, "grad", None)
    result = MoreauPruner(config).prune(model, IDS)
    scores = torch.cat([result.scores.values[f"layers.{i}"] for i in range(3)])
    assert set(range(3)) - set(result.plan.kept_layers) == {scores.argmin().item()}
    assert model.config.model_type == "llama"


def test_a_hidden_unit_is_scored_over_every_matrix_on_its_residual_side():
    model = tiny_model("llama", **TIED)
    shape = model_shape(model)
    config = MoreauPrunerConfig("magnitude", targets=("hidden",)).resolve(model.config)
    found = score_units(model, shape, None, config).values["hidden"]
    expected = model.model.embed_tokens.weight.abs().sum(0, dtype=torch.float64)
    for layer in model.model.layers:
        a, m = layer.self_attn, layer.mlp
        expected += sum(w.weight.abs().sum(0) for w in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj))
        expected += sum(w.weight.abs().sum(1) for w in (a.o_proj, m.down_proj))
    assert torch.allclose(found, expected.detach(), rtol=1e-6)


def test_the_hidden_size_is_one_that_the_stock_config_takes():
    for heads, groups in ((4, 2), (8, 8)):
        model = tiny_model("llama", num_attention_heads=heads, num_key_value_heads=groups, hidden_size=64)
        MoreauPruner(MoreauPrunerConfig("magnitude", 0.13, targets=("hidden",))).prune(model)
        assert model.config.model_type == "llama" and model.config.hidden_size % heads == 0


def test_fewer_heads_and_hidden_channels_are_mistral_shaped():
    model = tiny_model("llama", num_key_value_heads=4)
    config = MoreauPrunerConfig("magnitude", unit_ratio=(0.25, 0.1), targets=("attention", "hidden"), **ALL_LAYERS)
    MoreauPruner(config).prune(model)
    assert (model.config.model_type, model.config.num_attention_heads, model.config.hidden_size) == ("mistral", 3, 29)


def test_one_layer_always_stays():
    model = tiny_model("llama")
    config = MoreauPrunerConfig("magnitude", unit_ratio=0.99, targets=("layers",), **ALL_LAYERS)
    assert MoreauPruner(config).prune(model).plan.kept_layers is not None
    assert model.config.num_hidden_layers == 1


def test_a_replan_from_scores_may_choose_other_targets():
    model = tiny_model("llama")
    shape = model_shape(model)
    config = MoreauPrunerConfig("taylor", 0.2, targets=("attention", "mlp", "layers"), **SMALL, **ALL_LAYERS)
    config = config.resolve(model.config)
    scores = score_units(model, shape, IDS, config)
    only = replace(config, targets=("layers",))
    plan = make_plan(scores, shape, only)
    assert plan.kept_layers is not None and set(plan.contributions) == {"layers"}
    units = UnitScores({where: value for where, value in scores.values.items() if "." in where.removeprefix("layers.")})
    assert make_plan(units, shape, only) == plan  # a layer is worth the sum of its units, whose scores are there
