"""Budgets of units: every one meets the size, each is its formula, and what is measured serves again."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.budgets.cosine import Cosine
from optimum_moreau.budgets.losses import allocate, unit_losses
from optimum_moreau.budgets.owl import OWL
from optimum_moreau.budgets.search import Search
from optimum_moreau.budgets.zscore import ZScore
from optimum_moreau.criteria.block_influence import block_influence
from optimum_moreau.envelope import scoring_mode
from optimum_moreau.errors import ConfigError, DataError, PlanError
from optimum_moreau.estimate.forwards import forward_passes
from optimum_moreau.evaluation.perplexity import Segments, measure_segments
from optimum_moreau.evaluation.study import silenced
from optimum_moreau.models.stream import LayerStream
from optimum_moreau.models.units import decoder_layers, model_shape
from optimum_moreau.planning import make_plan, removed_parameters
from optimum_moreau.registry import BUDGETS as REGISTRY
from optimum_moreau.scoring.profiles import probes, profile_name
from optimum_moreau.scoring.scores import UnitScores, needs_text, score_units
from tests.models.test_stream import inputs_of
from tests.planning.test_plan import plan_for, random_scores, removed, shape_of
from tests.tiny import assert_same_state, snapshot, tiny_model

BUDGETS = tuple(REGISTRY)
MEASURED = tuple(name for name in REGISTRY if REGISTRY.get(name).measured)
SCOPE = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}


def scored(model, tokens, **settings):
    config = MoreauPrunerConfig(**{**SCOPE, "criterion": "magnitude", **settings}).resolve(model.config)
    shape = model_shape(model)
    return score_units(model, shape, tokens if needs_text(config) else None, config), shape, config


def spoken(model, tokens):
    """What a model says itself after the first tokens of some windows: whatever it loses costs loss."""
    ids = tokens[:, :1]
    with torch.no_grad():
        model.lm_head.weight.mul_(5)
        while ids.shape[1] < tokens.shape[1]:
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids


def of_kind(shape, kind):
    return [block for block in shape.blocks if block.kind == kind]


def standardised(score):
    return ZScore().rank(score, 1)


def profiled(shape, budget, values):
    scores = random_scores(shape)
    return UnitScores({**scores.values, profile_name(budget): torch.tensor(values, dtype=torch.float64)})


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("family", "criterion"), [("llama", "taylor"), ("qwen2", "magnitude"), ("phi3", "taylor")])
def test_every_budget_meets_the_size_as_uniform_does(family, criterion, budget, tokens):
    model = tiny_model(family)
    before = snapshot(model)
    scores, shape, config = scored(model, tokens, criterion=criterion, budget=budget, pruning_ratio=0.2)
    assert_same_state(model, before)
    channel = of_kind(shape, "mlp")[0].unit_parameters
    for ratio in (0.05, 0.2, 0.4):
        sized = MoreauPrunerConfig.from_dict({**config.to_dict(), "pruning_ratio": ratio})
        missed = abs(removed_parameters(make_plan(scores, shape, sized), shape) - ratio * shape.parameters)
        assert missed <= channel / 2 * shape.depth


@pytest.mark.parametrize("budget", BUDGETS)
def test_layers_average_to_a_unit_ratio_and_stay_legal(budget, tokens):
    scores, shape, config = scored(tiny_model(), tokens, budget=budget, unit_ratio=(0.0, 0.5), multiple_of=4)
    counts = removed(make_plan(scores, shape, config), "mlp")
    assert sum(counts) == pytest.approx(36, abs=6) and all((24 - count) % 4 == 0 < 24 - count for count in counts)
    assert removed(make_plan(scores, shape, config), "attention") == [0, 0, 0]


def test_cosine_is_its_formula(tokens):
    model = tiny_model()
    scores, shape, _ = scored(model, tokens, budget="cosine")
    with scoring_mode(model), torch.no_grad():
        c = 1 - block_influence(model, decoder_layers(model), [tokens])
    assert torch.equal(scores.values["budget.cosine"], c)
    c, p = c.numpy(), 0.1
    expected = p * 3 * np.exp(10 * c) / np.exp(10 * c).sum()
    assert expected.max() < 0.9
    found = Cosine().shares(of_kind(shape, "mlp"), p, scores.values, [23 / 24] * 3)
    assert list(found.values()) == pytest.approx(list(expected))


def test_what_a_layer_cannot_give_the_others_give_in_proportion():
    shape = shape_of()
    c, most, p = np.array([0.9, 0.7, 0.6, 0.5]), 23 / 24, 0.6
    weights = np.exp(10 * c) / np.exp(10 * c).sum()
    expected, full = p * 4 * weights, np.zeros(4, bool)
    while (expected > most + 1e-12).any():
        full |= expected > most
        expected = np.where(full, most, (p * 4 - full.sum() * most) * weights / weights[~full].sum())
    found = Cosine().shares(of_kind(shape, "mlp"), p, profiled(shape, "cosine", c).values, [most] * 4)
    assert list(found.values()) == pytest.approx(list(expected))
    assert full.sum() > 1


def test_owl_is_its_formula(tokens):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[::5, ::5] *= 20
    scores, shape, _ = scored(model, tokens, budget="owl")
    outliers = []
    with scoring_mode(model), torch.no_grad():
        for streamed in LayerStream(model, [tokens], len(tokens)):
            names = [name for name, module in streamed.layer.named_modules() if isinstance(module, torch.nn.Linear)]
            inputs = streamed.gather(names, ("squares",))
            flow = [streamed.layer.get_submodule(n).weight.abs() * inputs[n].squares.sqrt() for n in names]
            everything = np.concatenate([part.numpy().ravel() for part in flow]).astype(np.float64)
            outliers.append((everything > 5 * everything.mean()).mean())
    assert scores.values["budget.owl"].tolist() == pytest.approx(outliers)
    d = (np.array(outliers) - min(outliers)) / (max(outliers) - min(outliers))
    expected = 0.4 - 2 * 0.08 * d + (2 * 0.08 * d).mean()
    found = OWL().shares(of_kind(shape, "attention"), 0.4, scores.values, [0.5] * 3)
    assert list(found.values()) == pytest.approx(list(expected))
    few = list(OWL().shares(of_kind(shape, "mlp"), 0.02, scores.values, [0.9] * 3).values())
    assert min(few) == 0 and sum(few) == pytest.approx(0.06)


def test_zscore_is_one_ranking_of_standardised_scores():
    shape = shape_of(layers=3)
    scores = random_scores(shape)
    z = {}
    for block in of_kind(shape, "mlp"):
        s = scores.values[block.where].numpy()
        z[block.layer] = (s - s.mean()) / s.std()
    lowest = np.sort(np.concatenate(list(z.values())))[:20]
    found = removed(plan_for(shape, scores, unit_ratio=(0.0, 20 / 72), budget="zscore"), "mlp")
    assert found == [int((part <= lowest[-1]).sum()) for part in z.values()]


def test_rescaling_a_layer_changes_a_global_ranking_but_no_zscore():
    shape = shape_of(layers=3)
    scores = random_scores(shape)
    scaled = UnitScores({**scores.values, "layers.1.mlp": 100 * scores.values["layers.1.mlp"]})

    def counts(scores, budget):
        return removed(plan_for(shape, scores, unit_ratio=0.3, budget=budget), "mlp")

    assert counts(scores, "zscore") == counts(scaled, "zscore")
    assert counts(scores, "global") != counts(scaled, "global")


def test_units_removed_before_are_left_out_of_zscores_and_go_first():
    score = torch.tensor([0.5, -math.inf, 1.5, 2.5, -math.inf], dtype=torch.float64)
    z = standardised(score)
    assert z[[1, 4]].tolist() == [-math.inf] * 2
    assert torch.equal(z[[0, 2, 3]], standardised(score[[0, 2, 3]]))
    assert standardised(torch.ones(3)).tolist() == [0, 0, 0]
    scores = random_scores(shape_of(layers=2))
    scores.values["layers.1.mlp"][:6] = -math.inf
    plan = plan_for(shape_of(layers=2), scores, unit_ratio=(0.0, 6 / 48), budget="zscore")
    assert removed(plan, "mlp") == [0, 6]
    assert plan.layers[1]["mlp"].kept == tuple(range(6, 24))


def test_search_measures_what_silencing_costs(tokens):
    """… the same as the loss of a plan that is tried out in memory, block by block."""
    model = tiny_model()
    scores, shape, config = scored(
        model, tokens, budget={"name": "search", "objective": "loss", "rounds": 0, "by": "passes"}
    )
    whole = UnitScores({b.where: scores.values[b.where] for b in shape.blocks})
    block, n = of_kind(shape, "mlp")[1], probes(24)[1]
    alone = {"targets": ("mlp",), "mlp_layers": (1, 2), "criterion": "magnitude", "unit_ratio": n / 24}
    plan = make_plan(whole, shape, MoreauPrunerConfig(**alone).resolve(model.config))
    dense = math.log(measure_segments(model, Segments(tokens)).perplexity)
    with silenced(model, shape, plan):
        without = math.log(measure_segments(model, Segments(tokens)).perplexity)
    measured = scores.values[profile_name("search", block)]
    assert float(measured[1]) == pytest.approx(without - dense, abs=1e-6)
    # the dense one, the stream's, and 3 probes of the MLP and 1 of two KV groups from each of 3 layers on
    assert config.budget.extent(shape, config).passes == 2 + (3 + 1) * (3 + 2 + 1) / 3 == forward_passes(shape, config)


def test_levels_are_equal_parts_or_every_number_and_their_number_tells_them():
    assert probes(1) == () and probes(2) == (1,) and probes(3) == (1, 2) and probes(100) == (25, 50, 75)
    assert probes(8, 8) == (1, 2, 3, 4, 5, 6, 7) and probes(16, 8) == (2, 4, 6, 8, 10, 12, 14)
    for total in range(1, 40):
        for levels in range(2, 20):
            found = probes(total, levels)
            assert found == probes(total, len(found) + 1) and set(found) <= set(range(1, total))


def test_a_search_reads_its_first_windows(tokens):
    budget = {"name": "search", "windows": 3}
    model = tiny_model()
    found, first, others = (scored(model, ids, budget=budget)[0].values for ids in (tokens, tokens[:3], tokens.flip(0)))
    assert all(torch.equal(found[name], first[name]) for name in first)
    assert not all(torch.equal(found[name], others[name]) for name in first)


def test_a_layer_that_the_loss_does_not_feel_gives_more_under_search(tokens):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[1].mlp.up_proj.weight.mul_(10)  # its scores are high all the same
        model.model.layers[1].mlp.gate_proj.weight.mul_(10)
    ids, found = spoken(model, tokens), {}
    for budget in ("uniform", "global", "search", "sensitivity"):
        scores, shape, config = scored(model, ids, budget=budget, unit_ratio=(0.0, 0.25))
        found[budget] = removed(make_plan(scores, shape, config), "mlp")
    for budget in ("search", "sensitivity"):
        assert found[budget][1] == max(found[budget]) > found["uniform"][1] > found["global"][1]


@pytest.mark.parametrize("seed", range(5))
def test_search_never_plans_a_higher_predicted_loss_than_uniform(seed):
    shape = shape_of()
    generator = torch.Generator().manual_seed(seed)
    scores = random_scores(shape, seed)
    for block in shape.blocks:
        steps = torch.rand(len(probes(block.total)), generator=generator, dtype=torch.float64)
        scores.values[profile_name("search", block)] = steps.cumsum(0) - 0.2

    def predicted(**settings):
        plan = plan_for(shape, scores, **settings)
        return Search().predicted({block: plan.kept(block).removed for block in shape.blocks}, scores.values)

    for size in ({"pruning_ratio": 0.1}, {"pruning_ratio": 0.4}, {"unit_ratio": 0.3}, {"unit_ratio": (0.5, 0.2)}):
        assert predicted(budget="search", **size) <= predicted(**size) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_a_searchs_unit_losses_are_convex_and_near_what_was_measured(seed):
    generator = torch.Generator().manual_seed(seed)
    block = of_kind(shape_of(), "mlp")[0]
    rising = torch.rand(3, generator=generator, dtype=torch.float64).cumsum(0)
    measured = rising.cumsum(0)  # convex, so that each point is a corner
    losses = unit_losses(block.total, list(zip(probes(block.total), measured.tolist(), strict=True)))
    assert len(losses) == block.total - 1 and (np.diff(losses) >= 0).all()
    slopes = np.diff([0.0, *measured.tolist()]) / (block.total / 4)
    for quarter, slope in enumerate(slopes):  # at the middle of each segment a unit costs the segment's slope
        middle = block.total // 4 * quarter + block.total // 8
        assert losses[middle - 1] <= slope + 1e-12 and slope <= losses[middle] + 1e-12


def test_a_search_answers_a_small_change_of_what_is_measured_with_a_small_one():
    """Two blocks that cost the same share evenly; a hair more in one does not move whole segments."""
    shape = shape_of(layers=2)
    first, second = of_kind(shape, "mlp")
    size, counts = first.total * first.unit_parameters, probes(first.total)

    def curve(*losses):
        return unit_losses(first.total, list(zip(counts, losses, strict=True)))

    even = allocate([first, second], size / 2, [curve(1.0, 3.0, 7.0)] * 2)
    assert even[first] == pytest.approx(even[second], abs=1) and sum(even.values()) == pytest.approx(first.total / 2)
    moved = allocate([first, second], size / 2, [curve(1.001, 3.001, 7.001), curve(1.0, 3.0, 7.0)])
    assert abs(moved[first] - even[first]) <= 1


@pytest.mark.parametrize("budget", MEASURED)
def test_planning_from_scores_is_planning_anew(budget, tokens, tmp_path):
    model = tiny_model()
    budget = {"name": "search", "rounds": 0} if budget == "search" else budget  # rounds are of one size
    first, shape, config = scored(model, tokens, criterion="taylor", budget=budget, pruning_ratio=0.1)
    first.save(tmp_path / "scores.safetensors")
    again = UnitScores.load(tmp_path / "scores.safetensors")
    for changes in ({"pruning_ratio": 0.3}, {"pruning_ratio": 0.2, "protect": 0.1}):
        other = MoreauPrunerConfig.from_dict({**config.to_dict(), **changes})
        assert make_plan(again, shape, other) == make_plan(score_units(model, shape, tokens, other), shape, other)


@pytest.mark.parametrize("budget", MEASURED)
def test_what_was_not_measured_is_said(budget, tokens):
    scores, shape, config = scored(tiny_model(), tokens)
    other = MoreauPrunerConfig.from_dict({**config.to_dict(), "budget": budget})
    with pytest.raises(PlanError, match=f"what '{budget}' reads.* was not measured.* score the model again with"):
        make_plan(scores, shape, other)


def test_plan_and_card_record_the_budget_and_what_it_gave(llama, tokens, tmp_path, unverified):
    settings = {"budget": "cosine", "pruning_ratio": 0.1, "calibration_samples": 4, "sequence_length": 16}
    pruner = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", **settings, **SCOPE))
    result = pruner.prune(llama, tokens)
    pruner.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"^Criterion: \*\*magnitude\*\*: .*\nBudget over layers: \*\*cosine\*\*: ", card, re.M)
    assert result.plan.config["budget"]["name"] == "cosine" and result.plan.calibration["samples"]
    assert len(set(removed(result.plan, "mlp"))) > 1
    assert sum(result.plan.contributions.values()) == removed_parameters(result.plan, model_shape(tiny_model()))


@pytest.mark.parametrize("budget", MEASURED)
def test_an_offloaded_model_is_measured_as_a_loaded_one(budget, tokens):
    offloaded = cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    expected, found = (scored(model, tokens, budget=budget)[0] for model in (tiny_model(), offloaded))
    assert found.values.keys() == expected.values.keys()
    assert all(torch.equal(found.values[name], value) for name, value in expected.values.items())


@pytest.mark.parametrize("removing", [0.1, 0.5])
def test_protect_keeps_exactly_the_lowest(removing):
    shape = shape_of()
    scores = random_scores(shape)
    scores.values["layers.2.mlp"][:2] = -math.inf  # removed before: these go all the same
    plain = plan_for(shape, scores, unit_ratio=removing)
    plan = plan_for(shape, scores, unit_ratio=removing, protect=0.1)
    for layer in range(4):
        assert plan.layers[layer]["attention"] == plain.layers[layer]["attention"]
        marked = 2 if layer == 2 else 0
        order = torch.argsort(scores.values[f"layers.{layer}.mlp"]).tolist()
        n = plain.layers[layer]["mlp"].removed
        gone = order[:marked] + order[marked + 2 : n + 2]  # floor(0.1 · 24) = 2
        assert set(range(24)) - set(plan.layers[layer]["mlp"].kept) == set(gone)


@pytest.mark.parametrize("budget", ["global", "zscore"])
def test_a_ranking_does_not_count_what_is_protected(budget):
    """A block whose cheap channels are protected gives none of its dear ones while others have cheaper."""
    shape = shape_of()
    scores = random_scores(shape)
    for index, block in enumerate(of_kind(shape, "mlp")):
        dear = torch.cat([torch.zeros(6), torch.full((18,), 1e6)])
        scores.values[block.where] = dear.double() if index == 0 else torch.arange(1.0, 25.0).double()
    plan = plan_for(shape, scores, budget=budget, protect=0.25, unit_ratio=(0.0, 0.25))
    first, *rest = removed(plan, "mlp")
    assert first == 0 and sum(rest) == 24


def test_protect_that_does_not_fit_is_refused():
    with pytest.raises(PlanError, match=r"layers\.0\.mlp: protect 0\.5 keeps the lowest 12 of 24.* 18 must go"):
        plan_for(shape_of(), unit_ratio=0.75, protect=0.5)
    assert removed(plan_for(shape_of(), unit_ratio=0.5, protect=0.5), "mlp") == [12] * 4
    few = profiled(shape_of(), "cosine", [1.0, 0.0, 0.0, 0.0])  # where layers differ, the others give the rest
    settings = {"unit_ratio": (0.0, 0.5), "budget": "cosine"}
    assert removed(plan_for(shape_of(), few, **settings), "mlp") == [23, 8, 8, 8]
    assert removed(plan_for(shape_of(), few, **settings, protect=0.5), "mlp") == [12] * 4
    for share in (1.0, -0.1, "0.1"):
        with pytest.raises(ConfigError, match=r"protect: .* is not a share"):
            MoreauPrunerConfig(protect=share)


def with_an_outlier(tokens, layer=1, times=100.0):
    """A model that computes what it did, whose least important channel of one layer hands on so many times as much."""
    model = tiny_model("llama")
    scores, _, _ = scored(model, tokens, criterion="taylor", reduction="importance")
    channel = int(scores.values[f"layers.{layer}.mlp"].argmin())
    mlp = model.model.layers[layer].mlp
    with torch.no_grad():
        mlp.up_proj.weight[channel] *= times
        mlp.down_proj.weight[:, channel] /= times
    return model, channel


@pytest.mark.parametrize("budget", BUDGETS)
def test_an_outlier_stays_though_its_score_is_the_lowest_and_sizes_are_met(budget, tokens):
    model, channel = with_an_outlier(tokens)
    settings = {"criterion": "taylor", "reduction": "importance", "budget": budget}
    plain, shape, config = scored(model, tokens, **settings, pruning_ratio=0.2)
    scores, _, _ = scored(model, tokens, **settings, pruning_ratio=0.2, protect_outliers=5)
    assert int(scores.values["layers.1.mlp"].argmin()) == channel
    assert plain.values.keys() == {name for name in scores.values if not name.startswith("protect.")}
    unit = of_kind(shape, "mlp")[0].unit_parameters
    for ratio in (0.1, 0.2, 0.4):
        gone, plans = {}, {}
        for m in (None, 5.0):
            sized = MoreauPrunerConfig.from_dict({**config.to_dict(), "pruning_ratio": ratio, "protect_outliers": m})
            plan = plans[m] = make_plan(scores, shape, sized)
            gone[m] = channel not in plan.layers[1]["mlp"].kept
            assert abs(removed_parameters(plan, shape) - ratio * shape.parameters) <= unit / 2 * shape.depth
            if m is None:  # what is measured changes no plan by itself
                assert plan == make_plan(plain, shape, sized)
        assert not gone[5.0] and gone[None] == (removed(plans[None], "mlp")[1] > 0)


def test_what_units_hand_on_is_measured_as_in_plain_passes(tokens):
    model = tiny_model("llama")
    before = snapshot(model)
    scores, shape, config = scored(model, tokens, protect_outliers=3, batch_size=3)
    assert_same_state(model, before)
    for block, width in zip(shape.blocks, (16, 1) * 3, strict=True):
        x, _ = inputs_of(model, tokens, f"model.layers.{block.layer}.{block.reader.module}")
        expected = np.sqrt(np.square(x).reshape(len(x), block.total, width).mean(axis=(0, 2)))
        np.testing.assert_allclose(scores.values[f"protect.{block.where}"], expected, rtol=1e-4)
    assert forward_passes(shape, config) == 1
    assert not any(name.startswith("protect.") for name in scored(model, tokens)[0].values)
    offloaded = cpu_offload(tiny_model("llama"), execution_device=torch.device("cpu"))
    found = scored(offloaded, tokens, protect_outliers=3, batch_size=3)[0].values
    assert all(torch.equal(found[name], value) for name, value in scores.values.items())


def test_outliers_are_protected_from_saved_scores_beside_the_lowest(tmp_path):
    shape = shape_of()
    scores = random_scores(shape)
    for block in shape.blocks:
        scores.values[f"protect.{block.where}"] = torch.ones(block.total, dtype=torch.float64)
    order = torch.argsort(scores.values["layers.0.mlp"]).tolist()
    scores.values["protect.layers.0.mlp"][order[:3]] = 10.0
    scores.values["layers.0.mlp"][order[0]] = -math.inf  # removed before: it goes all the same
    scores = dataclasses.replace(scores, origin={"config": {"rounds": 2}})
    scores.save(tmp_path / "scores.safetensors")
    plan = plan_for(shape, UnitScores.load(tmp_path / "scores.safetensors"), unit_ratio=0.5, protect_outliers=3)
    assert set(order[1:3]) <= set(plan.layers[0]["mlp"].kept) and order[0] not in plan.layers[0]["mlp"].kept
    assert removed(plan, "mlp") == [12] * 4
    both = plan_for(shape, scores, unit_ratio=0.5, protect_outliers=3, protect=0.1)  # and the two lowest others
    assert set(order[1:5]) <= set(both.layers[0]["mlp"].kept) and order[5] not in both.layers[0]["mlp"].kept


def test_outliers_that_cannot_all_stay_are_refused_in_one_line_or_left_to_other_layers():
    shape = shape_of()
    scores = random_scores(shape)
    for block in shape.blocks:
        scores.values[f"protect.{block.where}"] = torch.ones(block.total, dtype=torch.float64)
    scores.values["protect.layers.2.mlp"][:5] = 100.0
    refusal = r"layers\.2\.mlp: protect_outliers 4 keeps 5 of 24 units, so that 19 can go at most, but 20 must go"
    with pytest.raises(PlanError, match=refusal):
        plan_for(shape, scores, unit_ratio=(0.0, 20 / 24), protect_outliers=4)
    plan = plan_for(shape, scores, unit_ratio=(0.0, 21 / 24), protect_outliers=4, budget="global")
    assert removed(plan, "mlp")[2] <= 19 and sum(removed(plan, "mlp")) == 4 * 21
    with pytest.raises(PlanError, match="cannot be reached in this scope"):
        plan_for(shape, scores, pruning_ratio=0.9, protect_outliers=4, budget="global")
    with pytest.raises(PlanError, match="hand on was not measured with these scores"):
        plan_for(shape, random_scores(shape), unit_ratio=0.5, protect_outliers=4)


def test_units_protected_in_a_round_are_those_of_the_model_it_scores(tokens):
    model, channel = with_an_outlier(tokens)
    settings = {"criterion": "taylor", "reduction": "importance", "pruning_ratio": 0.4, "rounds": 2, **SCOPE}
    for m in (None, 5):
        config = MoreauPrunerConfig(**settings, protect_outliers=m, calibration_samples=4, sequence_length=16)
        plan, _ = MoreauPruner(config).plan(model, tokens)
        assert (channel in plan.layers[1]["mlp"].kept) == (m is not None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": ("mlp", "hidden")}, "of heads and MLP channels, not of hidden ones"),
        ({"targets": ("layers",)}, "concerns heads and MLP channels, which are no targets"),
        ({"protect_outliers": 0.5}, "0.5 is not a number ≥ 1"),
    ],
)
def test_protecting_outliers_where_there_are_none_is_refused(settings, words):
    with pytest.raises(ConfigError, match=f"^protect_outliers: .*{words}"):
        MoreauPrunerConfig(**{"protect_outliers": 5.0, **settings})
    assert needs_text(MoreauPrunerConfig(criterion="magnitude", protect_outliers=5))
    with pytest.raises(DataError, match="protect_outliers reads calibration text"):
        model = tiny_model("llama")
        config = MoreauPrunerConfig(criterion="magnitude", protect_outliers=5).resolve(model.config)
        score_units(model, model_shape(model), None, config)


@pytest.mark.parametrize("budget", BUDGETS)
def test_text_is_read_where_units_are_measured(budget, llama):
    settings = {"criterion": "magnitude", "budget": budget}
    assert needs_text(MoreauPrunerConfig(**settings)) == (budget in MEASURED)
    assert not needs_text(MoreauPrunerConfig(targets=("hidden",), **settings))
    config = MoreauPrunerConfig(**settings).resolve(llama.config)
    if budget in MEASURED:
        with pytest.raises(DataError, match=f"budget '{budget}' reads calibration text"):
            score_units(llama, model_shape(llama), None, config)


@pytest.mark.parametrize("budget", BUDGETS[1:])
def test_one_shape_for_every_layer_refuses_other_budgets(budget):
    for settings in ({"uniform": True}, {"engine": "vllm"}):
        with pytest.raises(ConfigError, match=f"budget '{budget}' makes layers of different shape"):
            MoreauPrunerConfig(budget=budget, **settings)


def test_a_share_that_uniform_could_not_protect_is_left_to_other_layers(tokens):
    config = MoreauPrunerConfig(
        criterion="magnitude",
        budget="global",
        protect=0.5,
        pruning_ratio=0.2,
        attention_layers=(0, 3),
        mlp_layers=(0, 3),
    )
    plan, _ = MoreauPruner(config).plan(tiny_model("llama"))
    assert sum(plan.contributions.values()) > 0
