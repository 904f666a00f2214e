"""The surgeon's scores: against gradients and sums of products taken by hand."""

import numpy as np
import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.errors import ConfigError
from optimum_moreau.least_squares.surgeon import removal_costs
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.scoring.scores import score_units
from tests.tiny import own_windows, tiny_model

SCOPE = {"attention_layers": (0, 3), "mlp_layers": (0, 3), "unit_ratio": 0.25, "sequence_length": 12}


def scored(model, windows, **changes):
    config = MoreauPrunerConfig(criterion={"name": "surgeon", **changes}, **SCOPE).resolve(model.config)
    return score_units(model, model_shape(model), windows, config).values


@pytest.fixture
def windows():
    return own_windows(tiny_model("llama"), 24, 12)


def products_of(model, windows, module):
    """Σ x xᵀ over all tokens, by a hook."""
    seen = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(windows)
    handle.remove()
    return seen[0].T @ seen[0]


@pytest.mark.parametrize("family", ["llama", "phi3", "cohere"])
@pytest.mark.parametrize("weigh", ["loss", "outputs"])
def test_units_cost_what_the_step_costs_in_nats(family, weigh):
    model = tiny_model(family)
    windows = own_windows(model, 24, 12)
    found = scored(model, windows, weigh=weigh, gradient_windows=10)
    for name, kind, units in (("self_attn.o_proj", "attention", 2), ("mlp.down_proj", "mlp", 24)):
        module = f"model.layers.1.{name}"
        h = products_of(model, windows, module) / windows.numel()
        w = model.get_parameter(f"{module}.weight").detach()
        if weigh == "loss":
            w = w * output_squares(model, windows[:10], module).sqrt()[:, None]
        columns = torch.arange(w.shape[1]).view(units, -1)
        expected = removal_costs(h, w, columns, damping=0.1, group=16, where="") / 2
        torch.testing.assert_close(found[f"layers.1.{kind}"], expected, rtol=1e-3, atol=0)


def output_squares(model, windows, module):
    """E[g²] of an output: g the gradient of the loss summed over all targets, by autograd at a tensor that is added."""
    squares = []
    for window in windows:
        nothing = torch.zeros(1, window.numel(), model.config.hidden_size, requires_grad=True)
        handle = model.get_submodule(module).register_forward_hook(lambda _, args, y, added=nothing: y + added)
        logits = model(window[None]).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").backward()
        handle.remove()
        squares.append(nothing.grad[0].square())
    return torch.cat(squares).mean(0)


def test_windows_in_any_batches_weigh_alike(windows):
    model = tiny_model("llama")
    one, other = (
        score_units(
            model,
            model_shape(model),
            windows,
            MoreauPrunerConfig(criterion="surgeon", weigh="loss", batch_size=size, **SCOPE).resolve(model.config),
        ).values
        for size in (5, 24)
    )
    for name, costs in one.items():
        torch.testing.assert_close(other[name], costs, rtol=1e-3, atol=0)


def test_a_loss_that_grows_tenfold_costs_a_hundred_times_as_much(windows):
    """g grows with the loss: with tenfold logits of a sharp model costs are of another scale, not of another order."""
    model = tiny_model("llama")
    before = scored(model, windows, weigh="outputs")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 10.0
    after = scored(model, windows, weigh="outputs")
    np.testing.assert_allclose(after["layers.0.attention"], 100 * before["layers.0.attention"], rtol=1e-3)


def test_of_two_channels_that_say_the_same_one_goes_first(windows):
    model = tiny_model("llama")
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        for matrix in (mlp.gate_proj, mlp.up_proj):
            matrix.weight[5] = matrix.weight[9]
    costs = scored(model, windows, damping=1e-6, group=1, weigh="loss")["layers.1.mlp"]
    assert int(costs.argmin()) in (5, 9)
    assert float(costs[5] - costs[9]) != 0


def test_every_size_takes_from_one_order(windows):
    model = tiny_model("llama")
    config = MoreauPrunerConfig(criterion="surgeon", **SCOPE).resolve(model.config)
    scores = score_units(model, model_shape(model), windows, config)
    small, large = (make_plan(scores, model_shape(model), config.changed(unit_ratio=share)) for share in (0.25, 0.5))
    for layer in small.layers:
        for kind in ("attention", "mlp"):
            assert set(large.layers[layer][kind].kept) <= set(small.layers[layer][kind].kept)


def test_a_mask_cannot_be_made_of_it():
    with pytest.raises(ConfigError, match="'surgeon' scores units, no single weights; a mask takes sparsegpt"):
        MoreauPrunerConfig(criterion="surgeon", mask="2:4")


def test_it_prunes_as_any_other(windows):
    model = tiny_model("llama")
    result = MoreauPruner(MoreauPrunerConfig(criterion="surgeon", compensation="refit", **SCOPE)).prune(model, windows)
    assert result.summary.ratio_achieved > 0 and torch.isfinite(model(windows).logits).all()
