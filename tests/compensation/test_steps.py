"""What each step fits, and which of its candidates is taken: against numpy, by brute force."""

import numpy as np
import pytest
import torch

from optimum_moreau.compensation.bias import Bias
from optimum_moreau.compensation.chosen import choose
from optimum_moreau.compensation.refit import RIDGES, Refit
from optimum_moreau.compensation.scale import Scale
from optimum_moreau.errors import NonFiniteError
from optimum_moreau.least_squares.moments import Moments


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_folds(x, t, folds):
    """The moments of consecutive parts of the tokens."""
    flows = zip(range(folds), x.chunk(folds), t.chunk(folds), [None] * folds, strict=True)
    every = torch.arange(x.shape[1]), torch.arange(t.shape[1])
    return Moments.gather(flows, *every, "here", folds=folds, dtype=torch.float64)


def moments_of(x, t):
    return in_folds(x, t, 1)[0]


@pytest.mark.parametrize("intercept", [False, True])
def test_refit_is_the_least_squares_of_the_stacked_problem(intercept):
    """min ‖X·Vᵀ − T‖² + λ‖V − W‖² is plain least squares with √λ·I under X and √λ·Wᵀ under T."""
    x, t, w = numbers(50, 6) + 1, numbers(50, 4, seed=1) - 2, numbers(4, 6, seed=2)
    v, b = Refit(ridge=0.3, intercept=intercept).fit(w, moments_of(x, t))
    expected, shift = refitted(w.numpy(), x.numpy(), t.numpy(), 0.3, intercept=intercept)
    np.testing.assert_allclose(v, expected, rtol=1e-9)
    if intercept:
        np.testing.assert_allclose(b, shift, rtol=1e-9)
    else:
        assert b is None


def refitted(w, x, t, ridge, *, intercept=False):
    """V and b, by numpy's own least squares."""
    a, c = (x - x.mean(0), t - t.mean(0)) if intercept else (x, t)
    strength = ridge * (a**2).sum(0).mean()
    rows = np.vstack([a, np.sqrt(strength) * np.eye(a.shape[1])])
    v = np.linalg.lstsq(rows, np.vstack([c, np.sqrt(strength) * w.T]), rcond=None)[0].T
    return v, t.mean(0) - v @ x.mean(0) if intercept else 0.0


def test_a_fit_leaves_the_moments_as_they_are():
    found = moments_of(numbers(50, 6), numbers(50, 4, seed=1))
    before = found.xx.clone()
    Refit(ridge=0.3).fit(numbers(4, 6, seed=2), found)
    assert torch.equal(found.xx, before)


def test_a_ridge_too_small_for_a_singular_gram_matrix_is_refused_by_name():
    x = torch.ones(8, 6, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match=r"here: XᵀX \+ λI is not positive definite; give a larger ridge"):
        Refit(ridge=1e-18).fit(numbers(3, 6), moments_of(x, numbers(8, 3)))


@pytest.mark.parametrize("step", [Refit(ridge=0.1), Scale()])
def test_nothing_flows_in_nothing_changes(step):
    w = numbers(3, 5)
    v, _ = step.fit(w, moments_of(torch.zeros(7, 5), numbers(7, 3)))
    assert torch.equal(v, w)


@pytest.mark.parametrize("step", [Refit(ridge=0.1), Scale()])
def test_a_matrix_that_gives_what_it_should_is_not_changed(step):
    x, w = numbers(90, 8), numbers(5, 8, seed=1)
    found, _ = step.fit(w, moments_of(x, x @ w.T))
    torch.testing.assert_close(found, w, rtol=0, atol=1e-9)


def test_scale_is_each_outputs_regression_on_what_is_left():
    x, t, w = numbers(40, 5), numbers(40, 3, seed=1), numbers(3, 5, seed=2)
    v, _ = Scale().fit(w, moments_of(x, t))
    left = (x @ w.T).numpy()
    for k in range(3):
        (factor,) = np.linalg.lstsq(left[:, k : k + 1], t.numpy()[:, k], rcond=None)[0]
        np.testing.assert_allclose(v[k], factor * w[k], rtol=1e-9)


def test_a_bias_is_the_mean_of_what_is_missing():
    x, t, w = numbers(40, 5), numbers(40, 3, seed=1), numbers(3, 5, seed=2)
    v, b = Bias().fit(w, moments_of(x, t))
    assert torch.equal(v, w)
    torch.testing.assert_close(b, (t - x @ w.T).mean(0))


def test_an_intercept_of_inputs_far_from_zero_is_exact():
    x, t, w = numbers(400, 6) + 1000, numbers(400, 4, seed=1) - 500, numbers(4, 6, seed=2)
    v, b = Refit(ridge=1e-9, intercept=True).fit(w, moments_of(x, t))
    design = np.hstack([x.numpy(), np.ones((400, 1))])
    expected = np.linalg.lstsq(design, t.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(np.hstack([v, b[:, None]]), expected, rtol=1e-4, atol=1e-4)


def crossed(w, x, t, ridge, intercept):
    """e: what each half's fit leaves of the other, summed; λ is of both, twice as large."""
    (xa, xb), (ta, tb) = x.numpy().reshape(2, -1, x.shape[1]), t.numpy().reshape(2, -1, t.shape[1])
    error = 0.0
    for own, other in (((xa, ta), (xb, tb)), ((xb, tb), (xa, ta))):
        v, b = refitted(w.numpy(), *own, 2 * ridge, intercept=intercept)
        error += ((other[0] @ v.T + b - other[1]) ** 2).sum()
    return error


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_the_candidate_is_taken_that_is_softer_than_the_best_from_either_half_to_the_other(noise, intercept):
    x, w = numbers(60, 8), numbers(4, 8, seed=1)
    t = x @ (w + numbers(4, 8, seed=2)).T + noise * numbers(60, 4, seed=3) + 0.5
    found = choose(Refit(intercept=intercept), w, in_folds(x, t, 2))
    size, before = float(t.square().sum()), float((x @ w.T - t).square().sum())
    errors = {ridge: crossed(w, x, t, ridge, intercept) for ridge in RIDGES}
    softer = RIDGES[max(RIDGES.index(min(errors, key=errors.get)) - 1, 0)]
    assert errors[softer] < before and found.ridge == softer
    assert (found.before, found.after) == pytest.approx((before / size, errors[softer] / size), rel=1e-9)
    v, b = refitted(w.numpy(), x.numpy(), t.numpy(), softer, intercept=intercept)  # of both halves together
    np.testing.assert_allclose(found.w, v, rtol=1e-8)
    assert found.b is None if not intercept else np.allclose(found.b, b)


@pytest.mark.parametrize("step", [Refit(), Refit(intercept=True), Refit(ridge=0.01), Bias()])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_adjusted_to_noise(step, seed):
    """T is W·x already but for noise, and there are few tokens: whatever is fitted is worse on the other half."""
    x, w = numbers(24, 8, seed=10 * seed), numbers(4, 8, seed=10 * seed + 1)
    half = numbers(12, 4, seed=10 * seed + 2)
    noise = torch.cat([half, -half])  # so that no mean is left, and each half's fit is the other's opposite
    found = choose(step, w, in_folds(torch.cat([x[:12], x[:12]]), torch.cat([x[:12], x[:12]]) @ w.T + noise, 2))
    assert found.w is w and found.b is None and found.ridge is None and found.before == found.after


def test_few_tokens_ask_for_a_stronger_ridge():
    w = numbers(4, 16, seed=1)

    def taken(tokens):
        x = numbers(tokens, 16)
        t = x @ (w + 0.5 * numbers(4, 16, seed=2)).T + numbers(tokens, 4, seed=3)
        return choose(Refit(), w, in_folds(x, t, 2)).ridge or np.inf

    assert taken(24) > taken(20_000) == min(RIDGES)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_taken_has_a_lower_error_on_text_apart_than_what_was_there(seed):
    """Where the softer candidate has not, the best one is taken; where none has, nothing is adjusted."""
    x, w = numbers(80, 32, seed=10 * seed), numbers(4, 32, seed=10 * seed + 1)
    t = x @ (w + 0.05 * numbers(4, 32, seed=10 * seed + 2)).T + numbers(80, 4, seed=10 * seed + 3)
    found = choose(Refit(), w, in_folds(x, t, 2))
    if found.ridge is None:
        assert found.w is w and found.after == found.before
    else:
        error = crossed(w, x, t, found.ridge, False) / float(t.square().sum())
        assert found.after == pytest.approx(error) and found.after < found.before


def test_a_step_of_one_candidate_is_measured_too():
    """An error on record is one of tokens that were not fitted."""
    x, w, t = numbers(60, 8), numbers(4, 8, seed=1), numbers(60, 4, seed=2)
    found = choose(Refit(ridge=0.1), w, in_folds(x, t, 2))
    assert found.ridge == 0.1 and found.after == pytest.approx(crossed(w, x, t, 0.1, False) / float(t.square().sum()))
    own = refitted(w.numpy(), x.numpy(), t.numpy(), 0.1)[0]
    assert found.after > float(((x @ torch.from_numpy(own).T) - t).square().sum() / t.square().sum())
