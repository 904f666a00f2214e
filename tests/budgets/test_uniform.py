"""The same share of every layer, and how much of a size heads give."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_moreau.budgets import Uniform
from optimum_moreau.budgets.uniform import MOST
from optimum_moreau.planning.pruning_plan import removed_parameters
from tests.planning.test_plan import plan_for, removed, shape_of

SIZES = st.floats(1.0, 1e9)
SHARES = st.floats(0.0, 1.0)


@given(SIZES, SIZES, SHARES, SHARES)
def test_heads_give_h_times_what_channels_give_until_these_give_two_thirds(attention, mlp, h, part):
    goal = part * (attention + mlp)
    share = Uniform(heads=h).attention_share(goal, attention, mlp)
    channels = (goal - share * attention) / mlp
    assert 0 <= share <= goal / (attention + mlp) + 1e-12
    if goal / (mlp + h * attention) <= MOST:
        assert share == pytest.approx(h * channels, rel=1e-6, abs=1e-6)
    else:
        assert channels <= max(MOST, part) + 1e-6  # heads give the rest, as far as they would with the same share


@given(SIZES, SIZES, SHARES, st.floats(0.0, 0.9), st.floats(0.0, 0.1))
def test_more_of_a_size_is_never_less_of_the_heads(attention, mlp, h, part, more):
    size, budget = attention + mlp, Uniform(heads=h)
    assert budget.attention_share((part + more) * size, attention, mlp) >= (
        budget.attention_share(part * size, attention, mlp) - 1e-12
    )


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.3, 0.45, 0.55])
@pytest.mark.parametrize("heads", [0.0, 0.5, 1.0])
def test_a_size_is_met_whatever_heads_give(ratio, heads):
    shape = shape_of()
    plan = plan_for(shape, pruning_ratio=ratio, budget=Uniform(heads=heads))
    assert abs(removed_parameters(plan, shape) - ratio * shape.parameters) <= 10 * shape.depth


@pytest.mark.parametrize(("ratio", "groups"), [(0.1, 0), (0.18, 0), (0.3, 4)])
def test_channels_alone_go_while_they_can(ratio, groups):
    """Two thirds of the channels are 640 of 3,496 parameters: 18.3 %."""
    shape = shape_of()
    assert sum(removed(plan_for(shape, pruning_ratio=ratio, budget=Uniform(heads=0.0)), "attention")) == groups


def test_units_are_asked_for_by_kind_so_that_heads_give_their_own():
    plan = plan_for(shape_of(), unit_ratio=0.5, budget=Uniform(heads=0.0))
    assert removed(plan, "attention") == [2] * 4 and removed(plan, "mlp") == [12] * 4
