"""Counting rules, reachable ranges, rankings; and a plan survives JSON."""

import itertools
import json

import pytest
import torch

from optimum_moreau.config import MoreauPrunerConfig
from optimum_moreau.errors import PlanError
from optimum_moreau.models.units import Block, ModelShape, model_shape
from optimum_moreau.planning import (
    Overlap,
    PruningPlan,
    fingerprint,
    make_plan,
    plan_overlap,
    removed_parameters,
    removed_unit_share,
)
from optimum_moreau.planning.budget import nearest_fewer
from optimum_moreau.scoring.scores import UnitScores
from tests.tiny import tiny_model


def shape_of(layers=4, groups=4, channels=24, rest=1000):
    """A model of `layers` equal layers: 96 parameters per KV group, 10 per channel, `rest` outside."""
    from optimum_moreau.models.families import FAMILIES

    family = FAMILIES["llama"]
    blocks = [
        block
        for i in range(layers)
        for block in (
            Block(i, "attention", family.attention, groups, 96),
            Block(i, "mlp", family.mlp, channels, 10),
        )
    ]
    parameters = rest + sum(block.total * block.unit_parameters for block in blocks)
    return ModelShape(family, tuple(blocks), parameters)


def random_scores(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return UnitScores({b.where: torch.rand(b.total, generator=generator, dtype=torch.float64) for b in shape.blocks})


def plan_for(shape, scores=None, **settings):
    scope = {"attention_layers": (0, shape.depth), "mlp_layers": (0, shape.depth)}
    config = MoreauPrunerConfig(criterion="magnitude", **{**scope, **settings})
    return make_plan(scores or random_scores(shape), shape, config)


def removed(plan, kind):
    return [plan.layers[i][kind].removed for i in sorted(plan.layers)]


@pytest.mark.parametrize(
    ("x", "n"), [(0.0, 0), (0.49, 0), (0.5, 0), (0.51, 1), (1.5, 1), (2.5, 2), (2.6, 3), (0.3 * 5, 1), (0.1 * 35, 3)]
)
def test_nearest_takes_fewer_on_a_tie(x, n):
    assert nearest_fewer(x) == n


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.625, 0.9, 0.99])
def test_unit_ratio_takes_the_nearest_count_and_never_all(ratio):
    plan = plan_for(shape_of(), unit_ratio=ratio)
    assert removed(plan, "attention") == [min(nearest_fewer(4 * ratio), 3)] * 4
    assert removed(plan, "mlp") == [min(nearest_fewer(24 * ratio), 23)] * 4


def test_unit_ratio_may_differ_for_attention_and_mlp():
    plan = plan_for(shape_of(), unit_ratio=(0.25, 0.5))
    assert removed(plan, "attention") == [1] * 4
    assert removed(plan, "mlp") == [12] * 4
    assert removed_unit_share(plan, shape_of().blocks) == {"attention": 0.25, "mlp": 0.5}


@pytest.mark.parametrize("budget", ["uniform", "global"])
@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.2, 0.33, 0.5, 0.59])
def test_pruning_ratio_is_met_within_one_channel_per_layer(ratio, budget):
    shape = shape_of()
    plan = plan_for(shape, pruning_ratio=ratio, budget=budget)
    missed = abs(removed_parameters(plan, shape) - ratio * shape.parameters)
    assert missed <= 10 * shape.depth
    if budget == "global":
        assert missed <= 10


def test_pruning_ratio_is_exact_over_layers_of_different_shape():
    shapes = shape_of()
    blocks = tuple(
        Block(b.layer, b.kind, b.cuts, b.total - 5 * b.layer if b.kind == "mlp" else b.total, b.unit_parameters)
        for b in shapes.blocks
    )
    shape = ModelShape(shapes.family, blocks, 3000)
    plan = plan_for(shape, pruning_ratio=0.2)
    assert abs(removed_parameters(plan, shape) - 600) <= 10 * 4


def test_attention_goes_up_where_the_channels_cannot_take_the_difference():
    """5 attention units at a share of 0.68 round to 3; the channels alone could not give the rest, so it is 4."""
    shape = shape_of(groups=5, channels=3, rest=0)
    target = 0.71
    plan = plan_for(shape, pruning_ratio=target)
    assert abs(removed_parameters(plan, shape) / shape.parameters - target) < 96 * 4 / 2 / shape.parameters


def test_an_unreachable_ratio_is_refused_with_the_reachable_range():
    with pytest.raises(
        PlanError, match=r"pruning_ratio 0\.9 cannot be reached in this scope, which reaches from 0 to 0\.5926"
    ):
        plan_for(shape_of(), pruning_ratio=0.9)
    most = (3 * 96 + 23 * 10) * 4 / shape_of().parameters
    assert removed(plan_for(shape_of(), pruning_ratio=most), "mlp") == [23] * 4


def test_attention_alone_takes_the_nearest_legal_count():
    shape = shape_of()
    plan = plan_for(shape, pruning_ratio=0.1, targets=("attention",))
    assert removed(plan, "mlp") == [0] * 4
    assert removed(plan, "attention") == [nearest_fewer(0.1 * shape.parameters / 96 / 4)] * 4


@pytest.mark.parametrize(("ratio", "multiple"), itertools.product([0.1, 0.3, 0.5], [4, 8]))
def test_channels_are_kept_as_a_multiple(ratio, multiple):
    for settings in ({"pruning_ratio": ratio}, {"unit_ratio": ratio}):
        plan = plan_for(shape_of(), multiple_of=multiple, **settings)
        assert all(len(plan.layers[i]["mlp"].kept) % multiple == 0 for i in range(4))


@pytest.mark.parametrize(
    ("ratio", "multiple", "removed_channels"),
    [
        (0.15, 8, 0),  # 3.6 of 24: 0 is nearer than 8
        (4 / 24, 8, 0),  # a tie: fewer
        (0.2, 8, 8),
        (0.02, 9, 6),  # 24 is no multiple of 9: the nearest that leaves one is 6
        (0.99, 7, 17),  # one multiple always stays
    ],
)
def test_the_legal_count_nearest_to_the_request_is_taken(ratio, multiple, removed_channels):
    assert removed(plan_for(shape_of(), unit_ratio=(0.0, ratio), multiple_of=multiple), "mlp") == [removed_channels] * 4


@pytest.mark.parametrize("budget", ["uniform", "global"])
def test_a_multiple_larger_than_the_layer_is_refused(budget):
    with pytest.raises(PlanError, match=r"layers\.0\.mlp: no multiple of 256 can be kept of its 24 channels"):
        plan_for(shape_of(), unit_ratio=0.5, multiple_of=256, budget=budget)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.4])
def test_global_budget_with_a_multiple_misses_by_half_a_step_at_most(ratio):
    shape = shape_of(layers=8, channels=64)
    plan = plan_for(shape, pruning_ratio=ratio, budget="global", multiple_of=16)
    assert abs(removed_parameters(plan, shape) - ratio * shape.parameters) <= 16 * 10 / 2
    assert all(len(plan.layers[i]["mlp"].kept) % 16 == 0 for i in range(8))


@pytest.mark.parametrize("ratio", [0.06, 0.1, 0.12])
def test_attention_goes_down_where_the_channels_cannot_give_back(ratio):
    """8 layers of attention in scope, but one of channels: rounding attention up would overshoot."""
    shape = shape_of(layers=8, groups=2)
    plan = plan_for(shape, pruning_ratio=ratio, mlp_layers=(3, 4))
    counts = range(2)
    reachable = [8 * 96 * a + 10 * c for a in counts for c in range(24)]
    nearest = min(abs(ratio * shape.parameters - total) for total in reachable)
    assert abs(removed_parameters(plan, shape) - ratio * shape.parameters) <= nearest + 10


def test_layers_outside_the_scope_keep_all():
    plan = plan_for(shape_of(), unit_ratio=0.5, attention_layers=(1, 2), mlp_layers=(2, 4))
    assert removed(plan, "attention") == [0, 2, 0, 0]
    assert removed(plan, "mlp") == [0, 0, 12, 12]


def test_the_least_important_units_go():
    shape = shape_of(layers=1)
    scores = UnitScores(
        {"layers.0.attention": torch.tensor([3.0, 1.0, 2.0, 0.5]), "layers.0.mlp": torch.arange(24.0).flip(0)}
    )
    plan = plan_for(shape, scores, unit_ratio=0.5)
    assert plan.layers[0]["attention"].kept == (0, 2)
    assert plan.layers[0]["mlp"].kept == tuple(range(12))


def test_global_budget_is_one_ranking_by_importance_per_parameter():
    shape = shape_of(layers=2, groups=2, channels=4)
    scores = UnitScores(
        {
            "layers.0.attention": torch.tensor([9.0, 9.0]),
            "layers.1.attention": torch.tensor([1.0, 2.0]),
            "layers.0.mlp": torch.tensor([1.0, 1.1, 1.2, 9.0]),
            "layers.1.mlp": torch.tensor([5.0, 5.0, 5.0, 5.0]),
        }
    )
    plan = plan_for(shape, scores, unit_ratio=(0.25, 0.375), budget="global")
    assert removed(plan, "attention") == [0, 1]
    assert removed(plan, "mlp") == [3, 0]
    # a layer whose units all rank lowest still keeps one
    assert removed(plan_for(shape, scores, unit_ratio=(0.0, 0.6), budget="global"), "mlp") == [3, 2]


@pytest.mark.parametrize("budget", ["uniform", "global"])
def test_ratio_zero_keeps_everything(budget):
    for settings in ({"pruning_ratio": 0.0}, {"unit_ratio": 0.0}):
        plan = plan_for(shape_of(), budget=budget, multiple_of=7, **settings)
        assert removed(plan, "attention") == removed(plan, "mlp") == [0] * 4


def test_missing_scores_are_refused():
    shape = shape_of()
    scores = UnitScores({k: v for k, v in random_scores(shape).values.items() if k != "layers.2.mlp"})
    with pytest.raises(PlanError, match=r"layers\.2\.mlp: no scores for 24 units"):
        plan_for(shape, scores, unit_ratio=0.5)


def test_a_plan_survives_json_and_its_file(tmp_path):
    plan = plan_for(shape_of(), unit_ratio=0.5)
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert PruningPlan.load(plan.save(tmp_path / "pruning_plan.json")) == plan
    assert PruningPlan.load(tmp_path) == plan  # the folder that holds it
    written = json.loads((tmp_path / "pruning_plan.json").read_text())
    assert list(written["layers"]) == ["0", "1", "2", "3"]
    assert written["layers"]["0"]["attention"] == {"kept": list(plan.layers[0]["attention"].kept), "total": 4}


def test_scores_survive_their_file(tmp_path):
    scores = random_scores(shape_of())
    scores.save(tmp_path / "scores.safetensors")
    loaded = UnitScores.load(tmp_path / "scores.safetensors")
    assert all(torch.equal(loaded.values[where], value) for where, value in scores.values.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fingerprint_is_that_of_the_weights_in_any_dtype(dtype):
    assert fingerprint(tiny_model("llama")) == fingerprint(tiny_model("llama").to(dtype))


def test_fingerprint_tells_other_weights_apart():
    assert fingerprint(tiny_model("llama")) != fingerprint(tiny_model("llama", seed=1))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_unit_parameters_add_up_to_the_matrices_and_biases(model_type, tied):
    model = tiny_model(model_type, tie_word_embeddings=tied)
    shape = model_shape(model)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    whole = sum(block.total * block.unit_parameters for block in shape.blocks)
    parts = {name: p.numel() for name, p in model.named_parameters() if "_proj" in name}
    kept_whatever_is_cut = sum(n for name, n in parts.items() if name.endswith(("o_proj.bias", "down_proj.bias")))
    assert whole == sum(parts.values()) - kept_whatever_is_cut


def test_overlap_is_the_jaccard_index():
    shape = shape_of(layers=2, groups=2, channels=4)

    def plan(first, second):
        scores = {b.where: torch.ones(b.total, dtype=torch.float64) for b in shape.blocks}
        for layer, removed_channels in enumerate((first, second)):
            scores[f"layers.{layer}.mlp"][removed_channels] = 0
        return plan_for(shape, UnitScores(scores), unit_ratio=(0.0, 0.5))

    found = plan_overlap(plan([0, 1], [0, 1]), plan([0, 1], [1, 2]))
    assert found["layers.0.mlp"] == Overlap(kept=1.0, removed=1.0)
    assert found["layers.1.mlp"] == Overlap(kept=1 / 3, removed=1 / 3)
    assert found["all"] == Overlap(kept=3 / 5, removed=3 / 5)
    assert "layers.0.attention" not in found  # cut by neither
    with pytest.raises(PlanError, match=r"layers\.0\.mlp: 4 units in one plan, 24 units in the other"):
        plan_overlap(plan([0, 1], [0, 1]), plan_for(shape_of(layers=2, groups=2), unit_ratio=0.5))
