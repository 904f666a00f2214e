"""Scores that were made before serve again, and only where they would have been made the same."""

import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, plan_again
from optimum_moreau.budgets.owl import OWL
from optimum_moreau.errors import ConfigError, PlanError
from tests.tiny import assert_same_state, snapshot, tiny_model

PLAIN = {"criterion": "taylor", "sequence_length": 16, "calibration_samples": 4}
EVERYWHERE = {"attention_layers": (0, 2), "mlp_layers": (0, 2)}


@pytest.fixture
def windows():
    return torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(3))


def pruner(**settings):
    return MoreauPruner(MoreauPrunerConfig(**{**PLAIN, **settings}))


@pytest.mark.parametrize(
    "other",
    [
        {"unit_ratio": 0.5},
        {"pruning_ratio": 0.3, "budget": "global"},
        {"unit_ratio": 0.25, "compensation": "refit", "compensation_samples": 6},
        {"unit_ratio": 0.25, "aggregation": "sum"},
    ],
)
def test_another_size_budget_or_compensation_from_the_same_scores_gives_what_scoring_again_gives(
    windows, monkeypatch, other
):
    scores = pruner(unit_ratio=0.25, **EVERYWHERE).plan(tiny_model("llama"), windows)[1]
    expected = tiny_model("llama")
    result = pruner(**other, **EVERYWHERE).prune(expected, windows)
    monkeypatch.setattr("optimum_moreau.run.scoring.score_units", lambda *_, **__: pytest.fail("scored"))
    model = tiny_model("llama")
    assert pruner(**other, **EVERYWHERE).plan(model, scores=scores)[0] == result.plan
    assert pruner(**other, **EVERYWHERE).prune(model, windows, scores=scores).plan == result.plan
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


@pytest.mark.parametrize(
    "mask", [{"pattern": "2:4"}, {"pattern": "unstructured", "sparsity": 0.6}, {"pattern": "2:4", "permute": True}]
)
def test_another_mask_from_the_same_scores_is_what_scoring_again_gives(windows, monkeypatch, mask):
    elements = pruner(pattern="unstructured", sparsity=0.5).element_scores(tiny_model("llama"), windows)
    expected, model = tiny_model("llama"), tiny_model("llama")
    pruner(**mask).prune(expected, windows)
    monkeypatch.setattr("optimum_moreau.criteria.taylor.Taylor.score", lambda *_: pytest.fail("scored"))
    pruner(**mask).prune(model, windows, scores=elements)
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


def test_scores_that_would_have_been_made_otherwise_are_refused(windows):
    model = tiny_model("llama")
    before = snapshot(model)
    scores = pruner(unit_ratio=0.25, **EVERYWHERE).plan(model, windows)[1]
    masks = pruner(pattern="2:4").element_scores(model, windows)
    by_layer = pruner(criterion="wanda", pattern="2:4").element_scores(model, windows)
    wrong = [
        ({"criterion": "magnitude", "unit_ratio": 0.5}, scores, "criterion decided them"),
        ({"seed": 1, "unit_ratio": 0.5}, scores, "seed decided them"),
        ({"rounds": 2, "unit_ratio": 0.5}, scores, "rounds decided them"),
        ({"unit_ratio": 0.5}, masks, r"give what plan\(…\) for units returned"),
        ({"pattern": "2:4"}, scores, r"give what element_scores\(…\) for a mask returned"),
        ({"criterion": "wanda", "pattern": "2:4"}, by_layer, "leave scores out"),
    ]
    for settings, given, message in wrong:
        with pytest.raises(ConfigError, match=message):
            pruner(**settings).prune(model, windows, scores=given)
    other = tiny_model("llama", seed=1)
    with pytest.raises(PlanError, match="weights"):
        pruner(unit_ratio=0.5, **EVERYWHERE).prune(other, windows, scores=scores)
    elements = pruner(pattern="2:4", **EVERYWHERE).element_scores(model, windows)
    with pytest.raises(PlanError, match="another model"):
        pruner(pattern="2:4", **EVERYWHERE).prune(other, windows, scores=elements)
    with pytest.raises(PlanError, match="no scores; score this model with this scope"):
        pruner(pattern="2:4", attention_layers=(0, 3)).prune(model, windows, scores=elements)
    with pytest.raises(ConfigError, match="no mask"):
        pruner(unit_ratio=0.5).element_scores(model, windows)
    assert_same_state(model, before)


def test_a_budgets_setting_that_decided_what_was_measured_is_checked_and_another_is_not(windows):
    model = tiny_model("llama")
    settings = {"unit_ratio": 0.5, **EVERYWHERE}
    scores = pruner(budget=OWL(outlier=5.0), **settings).plan(model, windows)[1]
    with pytest.raises(ConfigError, match="budget owl decided"):
        pruner(budget=OWL(outlier=3.0), **settings).plan(model, scores=scores)
    with pytest.raises(ConfigError, match="budget owl decided"):
        plan_again(model, scores, budget=OWL(outlier=3.0))
    for other in (OWL(outlier=5.0, strength=0.01), "uniform"):
        assert pruner(budget=other, **settings).plan(model, scores=scores)[0].layers
        assert plan_again(model, scores, budget=other).layers
