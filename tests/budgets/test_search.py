"""A search measures what composed models do, meets sizes exactly, and leaves nothing behind."""

import math
import tempfile
from functools import partial

import numpy as np
import pytest
import torch

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.budgets.exact import cost_of, settled
from optimum_moreau.budgets.extent import Extent
from optimum_moreau.budgets.fisher import second_order
from optimum_moreau.budgets.goals import goals, legal_counts
from optimum_moreau.budgets.neighbourhood import first_steps
from optimum_moreau.budgets.objective import Objective
from optimum_moreau.budgets.probing import whole_logits
from optimum_moreau.budgets.search import Search
from optimum_moreau.budgets.supernet import Supernet
from optimum_moreau.envelope import scoring_mode
from optimum_moreau.errors import NonFiniteError
from optimum_moreau.models.loss import prefix_length
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan, removed_parameters
from optimum_moreau.scoring.profiles import probes, profile_name
from optimum_moreau.scoring.scores import UnitScores, score_units
from tests.tiny import assert_same_state, own_windows, snapshot, tiny_model

WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 40}


@pytest.fixture(scope="module")
def spoken():
    """A model and text of its own."""
    model = tiny_model(**WIDE)
    return model, own_windows(model, 12, 24)


def scored(model, tokens, budget="search", compensation="refit", **settings):
    size = {} if {"unit_ratio", "target_parameters"} & settings.keys() else {"pruning_ratio": 0.2}
    scope = {"attention_layers": (0, 3), "mlp_layers": (0, 3), "criterion": "wanda"}
    values = {**scope, **size, "budget": budget, "compensation": compensation, **settings}
    config = MoreauPrunerConfig(**values).resolve(model.config)
    shape = model_shape(model)
    return score_units(model, shape, tokens, config), shape, config


def divergence(model, other, tokens, first=1):
    """KL(p ‖ q) over the whole vocabulary, by its formula."""
    with torch.no_grad():
        log_p, log_q = (one(tokens).logits[:, first - 1 : -1].double().log_softmax(-1) for one in (model, other))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def with_matrices(model, matrices):
    """A copy of a model with other weights of o_proj and down_proj written in."""
    other = tiny_model(**WIDE)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for block, matrix in matrices.items():
            other.model.layers[block.layer].get_submodule(block.reader.module).weight.copy_(matrix)
    return other


def inputs_of(model, block, tokens):
    """What flows into o_proj or down_proj, `(tokens, in)`."""
    found = []
    module = model.model.layers[block.layer].get_submodule(block.reader.module)
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return found[0].double()


def adjusted(model, block, score, count, tokens, ridge):
    """argmin ‖X_S·Vᵀ − X·Wᵀ‖² + λ‖V − W_S‖², solved as one least-squares problem of stacked rows."""
    x = inputs_of(model, block, tokens)
    w = model.model.layers[block.layer].get_submodule(block.reader.module).weight.detach().double()
    stays = block.lines(block.reader, w.shape[1])[torch.argsort(score, stable=True)[count:]].flatten().sort().values
    lam = ridge * float((x[:, stays].square().sum(0)).mean())
    rows = torch.cat([x[:, stays], math.sqrt(lam) * torch.eye(len(stays), dtype=torch.float64)])
    right = torch.cat([x @ w.T, math.sqrt(lam) * w[:, stays].T])
    found = torch.zeros_like(w)
    found[:, stays] = torch.linalg.lstsq(rows, right).solution.T
    return found


def test_the_dense_model_departs_by_nothing_from_itself(spoken):
    model, tokens = spoken
    for kind in ("kl", "loss"):
        objective = Objective(kind, [tokens[:5], tokens[5:]])
        objective.remember(whole_logits(model, objective.batches))
        assert objective.of(whole_logits(model, objective.batches), "itself") == 0


def test_the_objective_is_the_divergence_or_the_growth_of_the_loss(spoken, monkeypatch):
    model, tokens = spoken
    other = tiny_model(seed=1, **WIDE)
    found = {}
    for top in (64, 63, 8):  # of 64 tokens: all, all but one, few and a bucket
        monkeypatch.setattr("optimum_moreau.budgets.objective.TOP", top)
        objective = Objective("kl", [tokens])
        objective.remember(whole_logits(model, [tokens]))
        found[top] = objective.of(whole_logits(other, [tokens]), "another")
    whole = divergence(model, other, tokens)
    assert found[64] == pytest.approx(whole, rel=1e-5) and found[63] == pytest.approx(whole, rel=1e-3)
    assert 0 < found[8] < found[63]  # what is thrown together differs less
    objective = Objective("loss", [tokens])
    objective.remember(whole_logits(model, [tokens]))
    with torch.no_grad():
        dense, cut = (one(tokens, labels=tokens).loss for one in (model, other))
    assert objective.of(whole_logits(other, [tokens]), "another") == pytest.approx(float(cut - dense), rel=1e-4)


def test_what_all_windows_begin_with_is_no_target(spoken):
    model, tokens = spoken
    other, begun = tiny_model(seed=1, **WIDE), torch.cat([torch.tensor([[3, 5]]).repeat(len(tokens), 1), tokens], 1)
    assert prefix_length(tokens) == 0 and prefix_length(begun) == 2 and prefix_length(tokens[:1]) == 0
    assert prefix_length(torch.ones(4, 8).long()) == 0  # all alike: no prefix, no text
    for first, windows in ((1, tokens), (2, begun)):
        objective = Objective("kl", [windows], prefix_length(windows))
        objective.remember(whole_logits(model, [windows]))
        found = objective.of(whole_logits(other, [windows]), "another")
        assert found == pytest.approx(divergence(model, other, windows, first), rel=1e-4)


@pytest.mark.parametrize("compensation", ["none", "refit"])
def test_what_a_search_measures_is_what_a_model_with_these_matrices_does(spoken, compensation):
    model, tokens = spoken
    settings = {"name": "search", "rounds": 0, "by": "passes"}
    scores, shape, _ = scored(model, tokens, settings, compensation, ridge=0.3 if compensation == "refit" else None)
    for block in (shape.blocks[0], shape.blocks[3]):
        count = probes(block.total)[1]
        matrix = adjusted(model, block, scores.values[block.where], count, tokens, 0.3)
        if compensation == "none":
            w = model.model.layers[block.layer].get_submodule(block.reader.module).weight.detach()
            gone = torch.argsort(scores.values[block.where], stable=True)[:count]
            matrix = w.index_fill(1, block.lines(block.reader, w.shape[1])[gone].flatten(), 0)
        cut = with_matrices(model, {block: matrix})
        delta = float(scores.values[profile_name("search", block)][1])
        assert delta == pytest.approx(divergence(model, cut, tokens), rel=1e-4)


def test_a_composed_model_is_one_with_all_matrices_written_in(spoken, tmp_path):
    model, tokens = spoken
    before, shape = snapshot(model), model_shape(model)
    score = {block.where: torch.rand(block.total, generator=torch.Generator().manual_seed(1)) for block in shape.blocks}
    counts = {block: block.total // 2 for block in shape.blocks}
    with scoring_mode(model), torch.no_grad():
        net = Supernet(model, score, 0.1, tmp_path)
        for block in shape.blocks:
            x = inputs_of(model, block, tokens)
            net.learn(block, (x.T @ x).float(), keep=True)
        objective = Objective("kl", [tokens])
        objective.remember(whole_logits(model, [tokens]))
        with net.composed(counts, keep=True):
            found = objective.of(whole_logits(model, [tokens]), "composed")
            with net.instead(shape.blocks[0], 0):  # one block whole again, the others as they are
                less = objective.of(whole_logits(model, [tokens]), "composed")
        matrices = {b: adjusted(model, b, score[b.where], n, tokens, 0.1) for b, n in counts.items()}
        assert found == pytest.approx(divergence(model, with_matrices(model, matrices), tokens), rel=1e-4)
        del matrices[shape.blocks[0]]
        assert less == pytest.approx(divergence(model, with_matrices(model, matrices), tokens), rel=1e-4)
        files = {path.name for path in tmp_path.iterdir()}
        assert f"{shape.blocks[0].where}.products" in files and len(files) == 2 * len(shape.blocks)
        net.keep_only({shape.blocks[0]: counts[shape.blocks[0]]})
        assert len(list(tmp_path.iterdir())) == len(shape.blocks) + 1
    assert_same_state(model, before)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("objective", ["kl", "loss"])
@pytest.mark.parametrize("by", ["gradients", "passes"])
@pytest.mark.parametrize("compensation", ["none", "refit"])
def test_more_rounds_are_never_worse_and_the_plan_is_what_was_measured(spoken, compensation, by, objective):
    model, tokens = spoken
    before = snapshot(model)
    scores, shape, config = scored(
        model,
        tokens,
        {"name": "search", "rounds": 3, "windows": 12, "objective": objective, "by": by, "heads": 1.0},
        compensation,
        ridge=0.1 if compensation == "refit" else None,
    )
    assert_same_state(model, before)
    path = scores.values["budget.search.path"].tolist()
    assert len(path) == 4 and path == sorted(path, reverse=True)
    plan = make_plan(scores, shape, config)
    matrices = {}
    for block in shape.blocks:
        count = plan.kept(block).removed
        assert count == scores.values[f"budget.search.found.{block.where}"].item()
        if count and compensation == "refit":
            matrices[block] = adjusted(model, block, scores.values[block.where], count, tokens, 0.1)
        elif count:
            w = model.model.layers[block.layer].get_submodule(block.reader.module).weight.detach()
            gone = torch.argsort(scores.values[block.where], stable=True)[:count]
            matrices[block] = w.index_fill(1, block.lines(block.reader, w.shape[1])[gone].flatten(), 0)
    if objective == "kl":
        assert path[-1] == pytest.approx(divergence(model, with_matrices(model, matrices), tokens), rel=1e-4)


@pytest.mark.parametrize(
    "budget", [{"name": "search", "rounds": 2}, {"name": "sensitivity"}], ids=lambda one: one["name"]
)
def test_the_dearer_heads_are_the_fewer_go(spoken, budget):
    model, tokens = spoken
    gone = []
    for heads in (1.0, 3.0, 1e6):
        scores, shape, config = scored(model, tokens, {**budget, "windows": 12, "heads": heads})
        plan = make_plan(scores, shape, config)
        gone.append(sum(plan.kept(block).removed for block in shape.of("attention")))
    assert gone == sorted(gone, reverse=True) and gone[-1] <= gone[0]


def test_every_number_of_rounds_goes_on_from_the_one_before(spoken):
    model, tokens = spoken
    paths = [
        scored(model, tokens, {"name": "search", "rounds": rounds})[0].values["budget.search.path"].tolist()
        for rounds in (1, 2)
    ]
    assert paths[1][:2] == paths[0]


@pytest.mark.parametrize(
    "size",
    [{"pruning_ratio": 0.1}, {"pruning_ratio": 0.35}, {"target_parameters": 20_000}, {"unit_ratio": (0.25, 0.5)}],
)
def test_a_plan_has_the_goals_parameters_to_half_a_channel(spoken, size):
    model, tokens = spoken
    scores, shape, config = scored(model, tokens, **size)
    plan = make_plan(scores, shape, config)
    channel = next(block.unit_parameters for block in shape.blocks if block.kind == "mlp")
    if "unit_ratio" not in size:
        asked = goals(shape.blocks, shape, config)[0].parameters
        missed = removed_parameters(plan, shape) - asked
        assert abs(missed) <= channel / 2 or ("target_parameters" in size and 0 <= missed < channel)
        return
    gone = {kind: sum(plan.kept(b).removed for b in shape.blocks if b.kind == kind) for kind in ("attention", "mlp")}
    assert gone == {"attention": 3, "mlp": 60}


def test_another_size_goes_by_the_first_measure_alone(spoken):
    model, tokens = spoken
    scores, shape, config = scored(model, tokens)
    alone = UnitScores({k: v for k, v in scores.values.items() if "found" not in k and "goal" not in k}, scores.origin)
    other = MoreauPrunerConfig.from_dict({**config.to_dict(), "pruning_ratio": 0.4})
    assert make_plan(scores, shape, other) == make_plan(alone, shape, other)
    assert not Search().found(alone.values, {"units": 0.2 * shape.parameters})


def test_other_multiples_and_protection_keep_the_found_plan_legal(spoken):
    model, tokens = spoken
    scores, shape, config = scored(model, tokens)
    for changes in ({"multiple_of": 8}, {"protect": 0.5}):
        other = MoreauPrunerConfig.from_dict({**config.to_dict(), "pruning_ratio": 0.2})
        other = other.changed(**changes)
        plan = make_plan(scores, shape, other)
        counts = [plan.kept(block) for block in shape.blocks if block.kind == "mlp"]
        assert all(len(kept.kept) % 8 == 0 for kept in counts) or "protect" in changes
        assert all(kept.removed <= 20 for kept in counts) or "multiple_of" in changes


def test_seeds_and_runs_equal_plans(spoken):
    model, tokens = spoken
    first, again = (scored(model, tokens)[0].values for _ in range(2))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("size", [{"pruning_ratio": 0.2}, {"unit_ratio": 0.3}])
def test_a_search_without_time_still_gives_a_legal_plan(spoken, size):
    model, tokens = spoken
    scores, shape, config = scored(model, tokens, {"name": "search", "minutes": 1e-9}, **size)
    plan = make_plan(scores, shape, config)
    assert all(plan.kept(block).removed < block.total for block in shape.blocks)
    assert removed_parameters(plan, shape) > 0


def test_a_search_that_is_broken_off_leaves_nothing_behind(spoken, monkeypatch, tmp_path):
    model, tokens = spoken
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, seen = snapshot(model), []

    def broken(*args):
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("optimum_moreau.budgets.neighbourhood.Neighbourhood.round", broken)
    with pytest.raises(KeyboardInterrupt):
        scored(model, tokens)
    assert seen and not list(tmp_path.iterdir())
    assert_same_state(model, before)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())


def test_a_loss_that_is_not_finite_is_said(spoken):
    model, tokens = tiny_model(**WIDE), spoken[1]
    objective = Objective("kl", [tokens])
    objective.remember(whole_logits(model, [tokens]))
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="the loss of a plan is nan; check the model's weights"):
        objective.of(whole_logits(model, [tokens]), "a plan")


@pytest.mark.parametrize("seed", range(6))
def test_counts_settle_to_the_goal_within_half_a_step(seed):
    draw = np.random.default_rng(seed)
    shape = model_shape(tiny_model(**WIDE))
    step = int(draw.choice([1, 4]))
    legal = {b: legal_counts(b, MoreauPrunerConfig(multiple_of=step)) for b in shape.blocks}
    finest = min(b.unit_parameters for b in shape.blocks) * step
    most = sum(legal[b][-1] * b.unit_parameters for b in shape.blocks if b.kind == "mlp")
    counts = {b: int(draw.choice(legal[b])) if b.kind == "attention" else 0 for b in shape.blocks}
    goal = cost_of(counts) + draw.uniform(0, most)
    found = settled(counts, goal, legal)
    assert abs(cost_of(found) - goal) <= finest / 2 and all(found[b] in legal[b] for b in found)
    assert all(found[b] == n for b, n in counts.items() if b.kind == "attention")
    assert settled(found, goal, legal) == found


def test_a_step_of_heads_and_one_of_channels_remove_as_much():
    shape = model_shape(tiny_model(**{**WIDE, "intermediate_size": 400}))
    steps = first_steps(shape.blocks, 4)
    head, channel = (next(b for b in shape.blocks if b.kind == kind) for kind in ("attention", "mlp"))
    removed = {b.kind: steps[b] * b.unit_parameters for b in (head, channel)}
    assert removed["attention"] == pytest.approx(removed["mlp"], abs=channel.unit_parameters / 2)
    assert removed["mlp"] == pytest.approx(400 / 8 * channel.unit_parameters, rel=0.5)


def test_every_pass_is_counted(spoken, monkeypatch):
    """What runs through the last layer, in windows, is no more than foretold; without rounds it is just that."""
    model, tokens = spoken
    shape = model_shape(model)
    counted = []
    for rounds in (0, 2):
        ran = []
        note = partial(lambda kept, _, args: kept.append(len(args[0])), ran)
        handle = model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(note)
        _, _, config = scored(model, tokens, {"name": "search", "rounds": rounds, "by": "passes"}, "none")
        handle.remove()
        extent = Extent.of({b: probes(b.total) for b in shape.blocks}, 3, rounds, "passes")
        assert extent == config.budget.extent(shape, config)
        counted.append((sum(ran) - len(tokens) * (extent.heads + 1 + rounds), extent.passes))
    # beside: the timing of a pass, one window of each stream for the layers' arguments, and the scoring's own pass
    assert 0 <= counted[0][0] <= 2 * len(tokens) and counted[1][0] <= 2 * len(tokens)
    assert counted[1][1] > counted[0][1] > 2


@pytest.mark.parametrize("kind", ["kl", "loss"])
@pytest.mark.parametrize("composed", [False, True])
def test_to_second_order_is_what_a_small_step_costs(spoken, composed, kind):
    """Of one target each gradient is of one token, so that nothing is left out but what is drawn."""
    model, tokens = spoken
    shape, small = model_shape(model), 1e-2
    now = {block: block.total // 2 for block in shape.blocks} if composed else {}
    steps = {block: (block.total // 4, 1) for block in shape.blocks}
    score = {block.where: torch.arange(block.total).double() for block in shape.blocks}

    class Slightly(Supernet):
        def matrix(self, block, count, *, keep=False):
            whole = super().matrix(block, now.get(block, 0))
            return whole + small * (super().matrix(block, count) - whole)

    with scoring_mode(model), torch.no_grad():
        net = Slightly(model, score, None, None)
        objective = Objective(kind, [tokens[:, :2]])
        objective.remember(whole_logits(model, objective.batches))
        with net.composed(now):
            before = objective.of(whole_logits(model, objective.batches), "before")
            draws = [second_order(model, net, steps, objective, now=now, seed=seed, name="x") for seed in range(40)]
            for block in shape.blocks:
                found = np.mean([draw[block] for draw in draws], axis=0)
                for place, count in enumerate(steps[block]):
                    with net.instead(block, count):
                        after = objective.of(whole_logits(model, objective.batches), "after")
                    assert found[place] == pytest.approx(after - before, rel=0.4, abs=2e-6)


def test_sensitivity_leaves_the_model_and_its_gradients_alone(spoken):
    model, tokens = spoken
    before = snapshot(model)
    scores, shape, config = scored(model, tokens, "sensitivity")
    assert_same_state(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    again, _, _ = scored(model, tokens, "sensitivity")
    assert all(torch.equal(scores.values[name], again.values[name]) for name in again.values)
    plan = make_plan(scores, shape, config)
    asked = goals(shape.blocks, shape, config)[0].parameters
    assert removed_parameters(plan, shape) == pytest.approx(asked, rel=0.02)
