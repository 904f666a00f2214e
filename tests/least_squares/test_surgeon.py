"""What a column costs when the others make up for it: against a least-squares solution of each choice."""

from itertools import combinations

import numpy as np
import pytest
import torch

from optimum_moreau.errors import NonFiniteError
from optimum_moreau.least_squares.surgeon import removal_costs


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(width, out=3, seed=0):
    x = numbers(40, width, seed=seed) @ numbers(width, width, seed=seed + 1)
    return x.T @ x, numbers(out, width, seed=seed + 2)


def left_over(products, w, gone, damping):
    """The least of tr((V − W)·H·(V − W)ᵀ) with some columns of V at zero, by the normal equations of the others."""
    h = products.numpy() + damping * np.diag(products.numpy()).mean() * np.eye(len(products))
    stay = [j for j in range(len(h)) if j not in gone]
    d = np.zeros(w.shape)
    d[:, gone] = -w.numpy()[:, gone]
    d[:, stay] = w.numpy()[:, gone] @ h[np.ix_(gone, stay)] @ np.linalg.inv(h[np.ix_(stay, stay)])
    return float(np.trace(d @ h @ d.T))


def columns_of(units, order):
    return [int(column) for unit in order for column in units[unit]]


@pytest.mark.parametrize(("width", "size"), [(1, 9), (2, 5), (3, 4)])
def test_each_unit_goes_that_raises_the_error_least(width, size):
    """Greedy, by brute force: of all units that are left the cheapest, when the others adjust again."""
    units = torch.arange(width * size).view(size, width)
    products, w = problem(width * size)
    costs = removal_costs(products, w, units, damping=0.05, group=1, where="here")
    gone, before = [], 0.0
    for _ in range(size - 1):
        rest = [unit for unit in range(size) if unit not in gone]
        errors = {unit: left_over(products, w, columns_of(units, [*gone, unit]), 0.05) for unit in rest}
        best = min(errors, key=errors.get)
        assert best == [int(unit) for unit in torch.argsort(costs, stable=True)][len(gone)]
        if errors[best] - before >= max((float(costs[unit]) for unit in gone), default=0.0):
            assert float(costs[best]) == pytest.approx(errors[best] - before, rel=1e-6)
        gone.append(best)
        before = errors[best]


def test_for_a_pair_the_best_of_all_pairs_is_near():
    """Greedy is not exact, but no worse than a fifth over the best pair of twelve columns."""
    units = torch.arange(12)[:, None]
    for seed in range(5):
        products, w = problem(12, seed=10 * seed)
        order = torch.argsort(removal_costs(products, w, units, damping=0.05, group=1, where="here")).tolist()
        best = min(left_over(products, w, list(pair), 0.05) for pair in combinations(range(12), 2))
        assert left_over(products, w, order[:2], 0.05) <= 1.2 * best


def test_a_column_that_others_make_up_for_goes_before_a_smaller_one_that_none_does():
    x = numbers(50, 4)
    x[:, 3] = x[:, 2]  # either can go for nothing
    x[:, 0] *= 0.3
    costs = removal_costs(x.T @ x, torch.ones(2, 4, dtype=torch.float64), torch.arange(4)[:, None],
                          damping=1e-6, group=1, where="here")  # fmt: skip
    assert int(costs.argmin()) in (2, 3)


@pytest.mark.parametrize("group", [1, 4, 100])
def test_every_unit_has_a_cost_of_its_own(group):
    products, w = problem(32)
    costs = removal_costs(products, w, torch.arange(32)[:, None], damping=0.1, group=group, where="here")
    assert len(costs.unique()) == 32 and (costs > 0).all()


def test_units_lie_in_any_columns():
    """A fused or permuted matrix: the costs follow the columns."""
    products, w = problem(8)
    plain = removal_costs(products, w, torch.arange(8).view(4, 2), damping=0.1, group=1, where="here")
    order = torch.tensor([6, 7, 2, 3, 0, 1, 4, 5])
    moved = removal_costs(
        products[order][:, order], w[:, order], torch.argsort(order).view(4, 2), damping=0.1, group=1, where="here"
    )
    torch.testing.assert_close(moved, plain)


def test_where_nothing_flows_in_all_cost_nothing():
    costs = removal_costs(
        torch.zeros(4, 4), numbers(2, 4), torch.arange(4)[:, None], damping=0.1, group=1, where="here"
    )
    assert torch.isfinite(costs).all()


def test_a_matrix_that_is_no_sum_of_squares_is_named():
    with pytest.raises(NonFiniteError, match="here: XᵀX"):
        removal_costs(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), numbers(2, 2), torch.arange(2)[:, None],
                      damping=1e-3, group=1, where="here")  # fmt: skip
