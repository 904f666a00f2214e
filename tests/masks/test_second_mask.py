"""A model that is masked already: weights that are zero stay zero, and go before all others."""

import logging

import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.masks.patterns import Pattern
from optimum_moreau.registry import COMPENSATIONS, CRITERIA
from tests.masks.test_masks import masked, weights
from tests.tiny import tiny_model

WAYS = {"plain": {}, "update": {"update": True}, "dsnot": {"refine": "dsnot"}, "r2-dsnot": {"refine": "r2-dsnot"}}
BOTH = {"update": True, "refine": "dsnot"}


def half_empty(share=0.5):
    """A model of which so many weights of every row are zero, in runs that no n:m pattern holds; and which they are."""
    model = tiny_model("llama")
    with torch.no_grad():
        for w in weights(model).values():
            w[:, : round(share * w.shape[1])] = 0
            w[::2] = w[::2].flip(1)  # of every other row the last ones
    return model, {name: w == 0 for name, w in weights(model).items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("criterion", [name for name in CRITERIA if CRITERIA.get(name).masks])
def test_zeros_stay_and_go_first(criterion, way, tokens):
    for pattern, settings in (("unstructured", {"sparsity": 0.75}), ("2:4", {})):
        model, zeros = half_empty()
        found = masked(model, tokens, criterion, pattern=pattern, **settings, **WAYS[way])
        for name, w in weights(model).items():
            assert not (zeros[name] & (w != 0)).any(), name
            assert Pattern.parse(pattern).holds(w != 0)
        assert found.achieved == 0.75 if settings else found.achieved <= 0.75, pattern  # and no more than need be


@pytest.mark.parametrize("way", [*WAYS.values(), BOTH], ids=str)
@pytest.mark.parametrize("criterion", ["sparsegpt", "wanda", "random"])
def test_zeros_in_excess_of_the_size_stay(criterion, way, tokens):
    model, zeros = half_empty(0.75)
    masked(model, tokens, criterion, sparsity=0.25, **way)
    for name, w in weights(model).items():
        assert torch.equal(zeros[name], w == 0), name


@pytest.mark.parametrize("criterion", ["random", "lora", "taylor", "magnitude"])
def test_zeros_go_first_in_one_ranking_of_all(criterion, tokens):
    model, zeros = half_empty()
    found = masked(model, tokens, criterion, sparsity=0.6, budget="global")
    assert found.achieved == pytest.approx(0.6, abs=1e-3)
    assert not any((zeros[name] & (w != 0)).any() for name, w in weights(model).items())


@pytest.mark.parametrize("way", [{}, {"update": True}, {"refine": "dsnot"}], ids=str)
def test_zeros_move_with_their_channels(way, tokens):
    model, zeros = half_empty(0.6)
    masked(model, tokens, "ria", pattern="2:4", permute=True, **way)
    for name, w in weights(model).items():
        dim = int(not name.endswith(("o_proj", "down_proj", "v_proj", "up_proj", "gate_proj")))
        before, after = (one.sum(1) if dim == 0 else one.sum(0) for one in (zeros[name], w == 0))
        assert (after.sort().values >= before.sort().values).all(), name


def test_an_update_of_a_masked_model_is_that_of_its_mask(tokens):
    """Nothing is left to prune, so nothing is to be made up for."""
    model, _ = half_empty(0.5)
    before = {name: w.clone() for name, w in weights(model).items()}
    for criterion in ("sparsegpt", "wanda"):
        masked(model, tokens, criterion, sparsity=0.5, update=True)
        for name, w in weights(model).items():
            assert torch.equal(w, before[name]), name


@pytest.mark.parametrize("compensation", list(COMPENSATIONS))
def test_what_a_cut_does_to_zeros_is_said(compensation, unguarded, caplog):
    model = tiny_model("llama")
    pruner = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", pattern="2:4"))
    pruner.prune(model)
    pruner.config = MoreauPrunerConfig(
        criterion="magnitude",
        unit_ratio=0.25,
        compensation=compensation,
        compensation_samples=60,
        sequence_length=16,
        attention_layers=(0, 3),
        mlp_layers=(0, 3),
    )
    with caplog.at_level(logging.WARNING):
        pruner.prune(model, torch.randint(64, (90, 16), generator=torch.Generator().manual_seed(0)))
    kept = all(int((w == 0).sum()) >= 0.4 * w.numel() for w in weights(model).values())
    assert (
        ("its zeros stay in the weights that remain" in caplog.text)
        == kept
        == COMPENSATIONS.get(compensation).keeps_zeros
    )
    assert (f"'{compensation}' fills those of o_proj and down_proj" in caplog.text) != kept
