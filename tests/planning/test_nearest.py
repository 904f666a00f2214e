"""`the nearest that can be` is: against all there is, on models small enough to try it."""

import itertools
import math

import pytest
import torch

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.errors import PlanError
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan, removed_parameters
from optimum_moreau.planning.budget import _Budget
from optimum_moreau.planning.explain import NEAR
from optimum_moreau.scoring.scores import UnitScores
from tests.tiny import tiny_model

RATIOS = (0.001, 0.005, 0.02, 0.05, 0.08, 0.12, 0.17, 0.23, 0.3, 0.4, 0.5, 0.65, 0.8)
MULTIPLES = (1, 7, 8, 16, 24)
TARGETS = (("attention", "mlp"), ("mlp",), ("attention",), ("layers",), ("hidden",), ("layers", "mlp"))
TARGETS += (("hidden", "mlp"), ("layers", "attention", "mlp"), ("layers", "hidden"), ("layers", "attention"))


def counts(total, multiple):
    """Units of a block that may go: what stays is a multiple, or everything."""
    return [n for n in range(total) if n == 0 or (total - n) % multiple == 0]


def sizes(shape, config):
    """The parameters that go with each legal plan that takes the same of every layer."""
    depth, found = shape.depth, set()
    layers = range(depth) if "layers" in config.targets else (0,)
    channels = counts(shape.hidden.total, config.multiple_of) if "hidden" in config.targets else (0,)
    for gone, hidden in itertools.product(layers, channels):
        rest = shape.without_layers(range(gone)).narrowed(hidden)
        heads, mlp = rest.blocks[:2]
        options = itertools.product(
            range(heads.total) if "attention" in config.targets else (0,),
            counts(mlp.total, config.multiple_of) if "mlp" in config.targets else (0,),
        )
        for a, m in options:
            units = (depth - gone) * (a * heads.unit_parameters + m * mlp.unit_parameters)
            found.add(shape.parameters - rest.parameters + units)
    return sorted(found)


def plan_of(shape, config):
    generator = torch.Generator().manual_seed(0)
    blocks = (*shape.blocks, *shape.wholes, shape.hidden)
    return make_plan(UnitScores({b.where: torch.rand(b.total, generator=generator) for b in blocks}), shape, config)


def claims(plan):
    return any("the nearest that can be" in line for line in plan.adjustments)


@pytest.fixture(scope="module")
def models():
    """Coarse in heads, and coarse in channels."""
    wide = tiny_model("mistral", num_hidden_layers=4, num_key_value_heads=4)
    long = tiny_model("mistral", num_hidden_layers=3, num_key_value_heads=2, intermediate_size=25, hidden_size=16)
    return [(model, model_shape(model)) for model in (wide, long)]


def requests(models, targets):
    for (model, shape), ratio, multiple, uniform in itertools.product(models, RATIOS, MULTIPLES, (False, True)):
        settings = {"targets": targets, "multiple_of": multiple, "uniform": uniform}
        scope = {"attention_layers": (0, shape.depth), "mlp_layers": (0, shape.depth)}
        scope = {name: value for name, value in scope.items() if name.split("_")[0] in targets}
        config = MoreauPrunerConfig("magnitude", ratio, **settings, **scope).resolve(model.config)
        yield shape, ratio, config


@pytest.mark.parametrize("targets", TARGETS, ids=",".join)
def test_no_legal_plan_is_nearer_than_one_that_says_so(models, targets):
    claimed = 0
    for shape, ratio, config in requests(models, targets):
        goal = ratio * shape.parameters
        try:
            plan = plan_of(shape, config)
        except PlanError as error:  # more than there is
            assert "cannot be reached" in str(error) or "can be kept" in str(error)
            assert "can be kept" in str(error) or goal > max(sizes(shape, config))
            continue
        removed = removed_parameters(plan, shape)
        missed = abs(removed - goal)
        assert claims(plan) == (missed > NEAR * shape.parameters)
        if claims(plan):
            claimed += 1
            assert missed == pytest.approx(min(abs(size - goal) for size in sizes(shape, config))), (config, removed)
            assert f"{removed / shape.parameters:.1%} of the parameters go instead of {ratio:.1%}" in " ".join(
                plan.adjustments
            )
        for line in (line for line in plan.adjustments if line.startswith("no ")):
            kind = "layers" if "layers" in line else "hidden"
            alone = shape.wholes[0].unit_parameters
            if kind == "hidden":
                alone = counts(shape.hidden.total, config.multiple_of)[1:2]
                rest = shape.without_layers(plan.removed_layers)
                alone = alone[0] * rest.hidden.unit_parameters if alone else math.inf
            more = alone > goal / len({"units" if kind in ("attention", "mlp") else kind for kind in targets})
            assert ("more than their part" in line) == more and ("more nearly without" in line) != more
        if not removed:
            assert claims(plan) or any(line.startswith("nothing goes instead of") for line in plan.adjustments)
    assert claimed or targets == ("hidden", "mlp")


@pytest.mark.parametrize("targets", TARGETS, ids=",".join)
def test_a_request_that_was_met_is_planned_as_before(models, targets, monkeypatch):
    found = list(requests(models, targets))[::3]
    for shape, ratio, config in found:
        with monkeypatch.context() as patch:
            patch.setattr(_Budget, "_nearest", lambda self, choice, goal: choice)
            try:
                before = plan_of(shape, config)
            except PlanError:
                continue
        if abs(removed_parameters(before, shape) / shape.parameters - ratio) <= NEAR:
            assert plan_of(shape, config) == before


def test_one_kv_group_of_each_layer_is_nearer_than_a_third_of_the_channels():
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 4}
    model = tiny_model("llama", **sizes, num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    config = MoreauPrunerConfig("magnitude", 0.05, multiple_of=64, attention_layers=(0, 4), mlp_layers=(0, 4))
    plan = plan_of(model_shape(model), config.resolve(model.config))
    assert plan.contributions.keys() == {"attention"} and claims(plan)
    assert plan.adjustments == ("6.4% of the parameters go instead of 5.0%: the nearest that can be",)


@pytest.mark.parametrize("budget", ["global", "zscore"])
def test_where_not_all_was_tried_nothing_is_claimed(budget):
    model = tiny_model("mistral")
    scope = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
    for ratio in RATIOS[:8]:
        config = MoreauPrunerConfig("magnitude", ratio, budget=budget, multiple_of=16, **scope).resolve(model.config)
        assert not claims(plan_of(model_shape(model), config))
