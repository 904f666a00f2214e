"""Masks: patterns hold, the surgeon is a brute-force solve, refinement never raises the error it tracks."""

import numpy as np
import pytest
import torch

from optimum_moreau.config import MoreauPrunerConfig
from optimum_moreau.criteria.sparsegpt import inverse_factor
from optimum_moreau.errors import ConfigError, PlanError
from optimum_moreau.masks import REFINEMENTS
from optimum_moreau.masks.obs import surgeon
from optimum_moreau.masks.patterns import Pattern, keep_mask
from optimum_moreau.masks.refine import CYCLES, THRESHOLD, refine
from optimum_moreau.models.stream import Inputs

GENERATOR = torch.Generator().manual_seed(0)
W = torch.randn(6, 16, generator=GENERATOR)
X = torch.randn(50, 16, generator=GENERATOR) @ torch.randn(16, 16, generator=GENERATOR) + 0.5
INPUTS = Inputs(5, 50, squares=X.square().sum(0) / 5, sums=X.sum(0) / 5, products=X.T @ X)  # 5 samples of 10 tokens
FREE, TWO_FOUR = Pattern(), Pattern(2, 4)


# Patterns


def test_patterns_are_read():
    assert Pattern.parse("unstructured") == FREE and Pattern.parse("2:4") == TWO_FOUR
    assert TWO_FOUR.sparsity == 0.5 and Pattern.parse("1:8").sparsity == 0.875


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:2", "two", "2:4:8", ""])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ConfigError, match="pattern"):
        MoreauPrunerConfig(pattern=text)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("group", ["row", "layer"])
def test_the_lowest_go_and_as_many_as_asked(sparsity, group):
    scores = W.abs()
    mask = keep_mask(scores, FREE, sparsity, group)
    groups = zip(scores, mask, strict=True) if group == "row" else [(scores.flatten(), mask.flatten())]
    for values, stays in groups:
        assert int((~stays).sum()) == round(sparsity * len(values))
        if sparsity:
            assert values[~stays].max() <= values[stays].min()


@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(4, 8), Pattern(1, 2), Pattern(1, 16)])
def test_n_of_every_m_stay(pattern):
    mask = keep_mask(W.abs(), pattern, 0.0)
    groups = mask.numpy().reshape(6, -1, pattern.of)
    assert (groups.sum(-1) == pattern.kept).all() and pattern.holds(mask)
    values = W.abs().numpy().reshape(6, -1, pattern.of)
    assert (np.where(groups, values, np.inf).min(-1) >= np.where(groups, 0, values).max(-1)).all()
    assert not pattern.holds(torch.ones_like(mask))


def test_inputs_that_m_does_not_divide_are_named():
    with pytest.raises(PlanError, match=r"layers\.0\.mlp\.down_proj: 18 inputs are no multiple of 4"):
        TWO_FOUR.check(18, "layers.0.mlp.down_proj")
    FREE.check(18, "anything")


# The surgeon


def brute_force(w, h, mask):
    """Column by column: of all changes that zero column j and leave the earlier ones, the one that costs least.

    With δ_j given and δ_i = 0 for i < j, δᵀHδ is least at δ = δ_j · H[j:, j:]⁻¹[:, 0] / H[j:, j:]⁻¹[0, 0].
    """
    w = w.copy()
    for j in range(w.shape[1]):
        inverse = np.linalg.inv(h[j:, j:])
        for row in range(len(w)):
            if not mask[row, j]:
                w[row, j:] -= w[row, j] * inverse[:, 0] / inverse[0, 0]
                w[row, j] = 0
    return w


def hessian():
    h = 2 / 5 * (X.T @ X).double().numpy()
    return h + 0.01 * np.diag(h).mean() * np.eye(len(h))


@pytest.mark.parametrize("block", [128, 8, 4])
@pytest.mark.parametrize("pattern", [FREE, TWO_FOUR])
def test_the_update_is_the_brute_force_solve(pattern, block, monkeypatch):
    monkeypatch.setattr("optimum_moreau.masks.obs.BLOCK", block)
    upper, _ = inverse_factor(INPUTS, 0.01, "here")
    mask = keep_mask(W.abs() * INPUTS.squares.sqrt(), pattern, 0.5)
    found, stays = surgeon(W, upper, pattern, 0.5, mask)
    assert torch.equal(stays, mask) and (found[~mask] == 0).all()
    np.testing.assert_allclose(found, brute_force(W.double().numpy(), hessian(), mask.numpy()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", [FREE, TWO_FOUR, Pattern(4, 8)])
def test_the_surgeon_chooses_as_many_and_does_better_than_a_mask_alone(pattern):
    upper, _ = inverse_factor(INPUTS, 0.01, "here")
    found, stays = surgeon(W, upper, pattern, 0.5)
    assert (found[~stays] == 0).all() and abs(float(stays.float().mean()) - 0.5) < 0.01 and pattern.holds(stays)

    def cost(w):
        return float(((W - w) @ X.T).square().sum())

    assert cost(found) < 0.9 * cost(torch.where(keep_mask(W.square(), pattern, 0.5), W, 0))
    assert cost(found) < cost(torch.where(stays, W, 0))


def test_nothing_to_prune_changes_nothing():
    upper, _ = inverse_factor(INPUTS, 0.01, "here")
    found, stays = surgeon(W, upper, FREE, 0.0)
    assert torch.equal(found, W) and stays.all()


# Refinement


def errors(mask):
    """|ε| of each row, by a loop."""
    return [abs(sum(float(W[r, j] * INPUTS.sums[j]) for j in range(16) if not mask[r, j])) for r in range(6)]


def test_the_config_knows_every_refinement():
    for how in REFINEMENTS:
        assert MoreauPrunerConfig(criterion="wanda", pattern="2:4", refine=how).mask.refine == how
    with pytest.raises(ConfigError, match="refine"):
        MoreauPrunerConfig(criterion="wanda", pattern="2:4", refine="none-such")


@pytest.mark.parametrize("how", REFINEMENTS)
@pytest.mark.parametrize("pattern", [FREE, TWO_FOUR, Pattern(4, 8)])
@pytest.mark.parametrize("start", ["wanda", "random"])
def test_no_rows_error_rises_and_the_pattern_holds(start, pattern, how):
    scores = W.abs() * INPUTS.squares.sqrt() if start == "wanda" else torch.rand(W.shape, generator=GENERATOR)
    mask = keep_mask(scores, pattern, 0.5)
    found = refine(W, mask, INPUTS, pattern, REFINEMENTS[how])
    before, after = errors(mask), errors(found.mask)
    assert all(b <= a + 1e-4 for a, b in zip(before, after, strict=True))
    assert found.before == pytest.approx(sum(before), rel=1e-4) and found.after == pytest.approx(sum(after), rel=1e-3)
    assert found.after < found.before and found.swaps > 0
    assert torch.equal(found.mask.sum(1), mask.sum(1)) and pattern.holds(found.mask)


def by_hand(mask, how, pattern):
    """The published rules, one row and one swap at a time."""
    w, s, a = W.double().numpy(), INPUTS.sums.double().numpy(), INPUTS.squares.double().numpy()
    variance = X.double().numpy().var(0)
    cost = np.abs(w) * np.sqrt(a)
    if how == "r2-dsnot":
        size = np.abs(w)
        cost = (size / size.sum(0, keepdims=True) + size / size.sum(1, keepdims=True)) * a**0.25
    mask = mask.numpy().copy()
    for r in range(len(w)):
        for _ in range(CYCLES):
            error = sum(w[r, j] * s[j] for j in range(16) if not mask[r, j])
            if abs(error) <= THRESHOLD:
                break
            gone = [j for j in range(16) if not mask[r, j]]
            grown = max(gone, key=lambda j: np.sign(error) * w[r, j] * s[j] / variance[j])
            group = range(16) if not pattern.structured else range(grown // pattern.of * pattern.of, 16)[: pattern.of]
            lowers = [j for j in group if mask[r, j] and np.sign(error) * w[r, j] * s[j] < 0]
            if not lowers:
                break
            pruned = min(lowers, key=lambda j: cost[r, j])
            if abs(error - w[r, grown] * s[grown] + w[r, pruned] * s[pruned]) > abs(error):
                break
            mask[r, grown], mask[r, pruned] = True, False
    return mask


@pytest.mark.parametrize("how", REFINEMENTS)
@pytest.mark.parametrize("pattern", [FREE, TWO_FOUR])
def test_refinement_follows_the_published_rules(pattern, how):
    mask = keep_mask(W.abs(), pattern, 0.5)
    found = refine(W, mask, INPUTS, pattern, REFINEMENTS[how]).mask
    np.testing.assert_array_equal(found, by_hand(mask, how, pattern))
    assert not torch.equal(found, mask)


def test_a_full_mask_stays():
    found = refine(W, torch.ones_like(W, dtype=torch.bool), INPUTS, FREE, REFINEMENTS["dsnot"])
    assert found.mask.all() and (found.before, found.after, found.swaps) == (0, 0, 0)
