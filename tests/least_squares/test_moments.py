"""Sums over tokens say what sums over the tokens themselves say: against numpy."""

import numpy as np
import pytest
import torch

from optimum_moreau.errors import NonFiniteError
from optimum_moreau.least_squares.moments import Moments

KEPT, ROWS = torch.tensor([4, 0, 3]), torch.tensor([1, 3])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def x():
    return numbers(2, 10, 5) + 1


@pytest.fixture
def t():
    return numbers(2, 10, 4, seed=1) - 2


def gathered(x, t, folds=(0, 1), dtype=torch.float64, weights=None):
    """Each window is a batch, of its fold."""
    s = [None] * len(x) if weights is None else weights.split(1)
    flows = zip(folds, x.split(1), t.split(1), s, strict=True)
    return Moments.gather(flows, KEPT, ROWS, "here", folds=max(folds) + 1, dtype=dtype)


def seen(x, t):
    return x.flatten(0, -2)[:, KEPT].numpy(), t.flatten(0, -2)[:, ROWS].numpy()


def assert_are(found, a, c):
    """The sums are those of X and T."""
    assert found.tokens == len(a)
    for name, expected in {"xx": a.T @ a, "tx": c.T @ a, "x": a.sum(0), "t": c.sum(0), "tt": (c**2).sum(0)}.items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, atol=1e-9, err_msg=name)


def test_each_fold_has_the_sums_of_its_own_tokens(x, t):
    for fold, found in enumerate(gathered(x, t)):
        assert_are(found, *seen(x[fold], t[fold]))


def test_a_fold_does_not_hear_of_the_other(x, t):
    first = gathered(x, t)[0]
    changed = gathered(torch.cat([x[:1], 7 * x[1:]]), torch.cat([t[:1], t[1:] - 9]))[0]
    assert all(torch.equal(getattr(first, name), getattr(changed, name)) for name in ("xx", "tx", "x", "t", "tt"))


def test_one_takes_in_the_other_and_leaves_it_as_it_was(x, t):
    a, b = gathered(x, t)
    assert_are(a.absorb(b), *seen(x, t))
    assert_are(b, *seen(x[1], t[1]))


def test_centred_sums_are_those_of_what_differs_from_the_mean(x, t):
    found = gathered(x, t, folds=(0, 0))[0].centred()
    a, c = seen(x, t)
    assert_are(found, a - a.mean(0), c - c.mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_is_that_of_the_residual(dtype, x, t):
    (found,) = gathered(x, t, folds=(0, 0), dtype=dtype)
    w, b = numbers(2, 3, seed=2), numbers(2, seed=3)
    a, c = seen(x, t)
    assert found.squares(w) == pytest.approx(((a @ w.numpy().T - c) ** 2).sum(), rel=1e-5)
    assert found.squares(w, b) == pytest.approx(((a @ w.numpy().T + b.numpy() - c) ** 2).sum(), rel=1e-5)
    assert found.size == pytest.approx((c**2).sum(), rel=1e-5)
    np.testing.assert_allclose(found.intercept(w), c.mean(0) - w.numpy() @ a.mean(0), rtol=1e-5)


@pytest.mark.parametrize("which", ["x", "t"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(which, value, x, t):
    {"x": x, "t": t}[which][1, 2, 3] = value
    with pytest.raises(NonFiniteError, match="here: what flows through it is not finite"):
        gathered(x, t)


def test_a_column_that_goes_may_hold_anything(x, t):
    x[0, 0, 1] = torch.nan
    assert_are(gathered(x, t)[0], *seen(x[0], t[0]))


def test_a_token_that_weighs_twice_counts_as_two(x, t):
    s = torch.ones(2, 10, dtype=torch.float64)
    s[0, 3] = 2.0
    (weighed,) = gathered(x, t, folds=(0, 0), weights=s)
    again = [torch.cat([one[0], one[0][3:4], one[1]])[None] for one in (x, t)]
    (twice,) = gathered(*again, folds=(0,))
    w, b = numbers(len(ROWS), len(KEPT), seed=5), numbers(len(ROWS), seed=6)
    assert weighed.squares(w, b) == pytest.approx(twice.squares(w, b))
    torch.testing.assert_close(weighed.intercept(w), twice.intercept(w))
    torch.testing.assert_close(weighed.centred().xx, twice.centred().xx)
    assert (weighed.tokens, weighed.weight) == (20, 21.0)


def test_the_parts_of_folds_add_up_and_so_do_their_ridges(x, t):
    from optimum_moreau.least_squares.ridge import ridge_fit

    a, b = gathered(x, t)
    (whole,) = gathered(x, t, folds=(0, 0))
    assert (a.part, b.part) == (0.5, 0.5) and a.absorb(b).part == 1.0
    w = numbers(len(ROWS), len(KEPT), seed=5)
    fold = gathered(torch.cat([x[:1]] * 2), torch.cat([t[:1]] * 2))[0]  # half of a text of two windows alike
    both = gathered(torch.cat([x[:1]] * 2), torch.cat([t[:1]] * 2), folds=(0, 0))[0]
    strength = 0.3 * both.xx.diagonal().mean()
    expected = (fold.tx + strength * w) @ torch.linalg.inv(fold.xx + strength * torch.eye(len(KEPT)).double())
    torch.testing.assert_close(ridge_fit(w, fold, 0.3), expected)
    torch.testing.assert_close(whole.part, 1.0)
