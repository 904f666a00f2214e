"""Criteria of what flows through a layer, against their formulas in numpy, from a plain forward and backward pass."""

import numpy as np
import pytest
import torch

from optimum_moreau.config import MoreauPrunerConfig
from optimum_moreau.criteria.scoring_run import Scoring
from optimum_moreau.criteria.sparsegpt import inverse_factor
from optimum_moreau.envelope import scoring_mode
from optimum_moreau.errors import ConfigError, NonFiniteError
from optimum_moreau.models.stream import Inputs
from optimum_moreau.models.units import model_shape
from optimum_moreau.scoring.scores import score_units
from tests.models.test_stream import inputs_of
from tests.tiny import tiny_model

EVERYWHERE = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
PLACES = [(f"model.layers.{i}", m) for i in (0, 2) for m in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")]


def config_of(criterion, model, **changes):
    return MoreauPrunerConfig(criterion=criterion, **EVERYWHERE, **changes).resolve(model.config)


def elements_of(model, tokens, criterion, **changes):
    """Element scores as the criterion emits them, summed: weight's name → numpy."""
    found = {}

    def emit(name, elements):
        found[name] = found.get(name, 0) + elements.double().numpy()

    with scoring_mode(model), torch.no_grad():
        config = config_of(criterion, model, **changes)
        batches = list(tokens.split(3))
        config.criterion.score(Scoring(model, model_shape(model).blocks, batches, len(tokens), config, emit))
    return found


@pytest.fixture
def model():
    return tiny_model("llama")


def weight(model, layer, module):
    return model.get_parameter(f"{layer}.{module}.weight").detach().double().numpy()


def flows(model, tokens, layer, module):
    """‖X_j‖ and ‖Y_k‖, squares averaged over samples, and X, `(tokens, in)`."""
    x, y = inputs_of(model, tokens, f"{layer}.{module}")
    return np.sqrt((x**2).sum(0) / len(tokens)), np.sqrt((y**2).sum(0) / len(tokens)), x


def sample_gradients(model, tokens, name):
    """The gradient of each sample's mean loss, `(samples, out, in)`."""
    found = []
    for sample in tokens:
        model.zero_grad()
        model(sample[None], labels=sample[None]).loss.backward()
        found.append(model.get_parameter(name).grad.double().numpy().copy())
    model.zero_grad()
    return np.stack(found)


@pytest.mark.parametrize(("layer", "module"), PLACES)
def test_scores_are_their_formulas(model, tokens, layer, module):
    w = np.abs(weight(model, layer, module))
    x_norm, y_norm, x = flows(model, tokens, layer, module)
    name = f"{layer}.{module}.weight"
    g = sample_gradients(model, tokens, name)
    rows, columns = w.sum(1, keepdims=True), w.sum(0, keepdims=True)
    l2, l1 = np.sqrt((g**2).mean(0)), np.abs(g).mean(0)
    h = 2 / len(tokens) * x.T @ x
    h += 0.01 * np.mean(np.diag(h)) * np.eye(len(h))
    u = np.linalg.cholesky(np.linalg.inv(h)).T  # H⁻¹ = LLᵀ = UᵀU
    p3 = ((w**3).sum(0, keepdims=True) ** (1 / 3), (w**3).sum(1, keepdims=True) ** (1 / 3))
    expected = {
        ("wanda",): w * x_norm,
        ("symwanda",): w * (x_norm[None] + y_norm[:, None]),
        ("symwanda", "input_weight", 0.5, "output_weight", 2.0): w * (0.5 * x_norm[None] + 2 * y_norm[:, None]),
        ("symwanda-relative", "norm_order", 3.0, "exponent", 1.0): (w / p3[0] + w / p3[1]) * x_norm,
        ("ria",): (w / columns + w / rows) * np.sqrt(x_norm),
        ("ria", "exponent", 0.0): w / columns + w / rows,
        ("sparsegpt",): w**2 / np.diag(u) ** 2,
        ("gblm",): w * x_norm + 100 * np.sqrt(128) * w * l2,
        ("gblm", "alpha", 0.0): w * x_norm,
        ("gblm-l1",): w * x_norm + 100 * 128 * w * l1,
        ("gblm-gradient",): w * l2,
        ("gblm-gradient-l1",): w * l1,
    }
    for (criterion, *changes), scores in expected.items():
        found = elements_of(model, tokens, criterion, **dict(zip(changes[::2], changes[1::2], strict=True)))[name]
        np.testing.assert_allclose(found, scores, rtol=2e-3, atol=1e-5 * scores.max(), err_msg=f"{criterion} {changes}")


def test_with_p_of_one_symwanda_relative_is_ria(model, tokens):
    one = elements_of(model, tokens, "symwanda-relative", norm_order=1.0)
    two = elements_of(model, tokens, "ria")
    for name, scores in two.items():
        np.testing.assert_allclose(one[name], scores, rtol=1e-5)


def test_stochastic_ria_with_all_entries_is_ria_and_else_near_it(model, tokens):
    """With every entry of the shorter side drawn, sums over that side are exact; a seed gives one draw."""
    name = "model.layers.1.self_attn.o_proj.weight"  # square: τ can be the whole of both sides
    ria = elements_of(model, tokens, "ria")[name]
    np.testing.assert_allclose(elements_of(model, tokens, "stochria", sample_share=1.0)[name], ria, rtol=1e-5)
    first, again, other = (elements_of(model, tokens, "stochria", seed=seed)[name] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    # sums over τ = 3 of 32 entries: about 32/3 times the score
    assert 5 < np.median(first / ria) < 20


def test_a_dead_input_is_worth_nothing_and_breaks_nothing(model, tokens):
    model.model.layers[0].input_layernorm.weight.data[3] = 0  # channel 3 never reaches q, k, v
    found = elements_of(model, tokens, "sparsegpt")["model.layers.0.self_attn.q_proj.weight"]
    assert (found[:, 3] == 0).all() and np.isfinite(found).all() and (np.delete(found, 3, 1) > 0).any()


def test_a_hessian_that_is_not_positive_definite_says_what_to_do():
    x = torch.ones(2, 5)
    with pytest.raises(
        NonFiniteError, match=r"here: the Hessian of 2 tokens is not positive definite over 5 inputs;.*damp"
    ):
        inverse_factor(Inputs(1, 2, products=-(x.T @ x)), 0.01, "here")


def test_units_by_wanda_are_the_columns_that_read_them(model, tokens):
    units = score_units(model, model_shape(model), tokens, config_of("wanda", model)).values
    for i in range(3):
        layer = f"model.layers.{i}"
        down = np.abs(weight(model, layer, "mlp.down_proj")) * flows(model, tokens, layer, "mlp.down_proj")[0]
        np.testing.assert_allclose(units[f"layers.{i}.mlp"], down.sum(0), rtol=1e-4)
        out = np.abs(weight(model, layer, "self_attn.o_proj")) * flows(model, tokens, layer, "self_attn.o_proj")[0]
        groups = out.sum(0).reshape(2, 2 * 8).sum(1)  # 2 KV groups of 2 heads of width 8
        np.testing.assert_allclose(units[f"layers.{i}.attention"], groups, rtol=1e-4)


@pytest.mark.parametrize("criterion", ["wanda", "gblm", "sparsegpt"])
def test_hidden_channels_are_refused(criterion, model):
    with pytest.raises(ConfigError, match="not hidden channels"):
        config_of(criterion, model, targets=("hidden",))


@pytest.mark.parametrize(
    ("criterion", "field", "value"),
    [
        ("gblm", "alpha", -1),
        ("ria", "exponent", "x"),
        ("symwanda-relative", "norm_order", 0),
        ("stochria", "sample_share", 0),
        ("stochria", "sample_share", 2),
        ("sparsegpt", "damping", 0),
    ],
)
def test_settings_out_of_range_are_refused(criterion, field, value):
    with pytest.raises(ConfigError, match=field):
        MoreauPrunerConfig(criterion=criterion, **{field: value})
