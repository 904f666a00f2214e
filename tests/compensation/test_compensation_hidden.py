"""What stays after hidden channels go is adjusted: against numpy, from plain forward passes of a model that is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, perplexity
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.data.sources import read_documents
from optimum_moreau.errors import NonFiniteError
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.models.families import FAMILIES as TABLE
from optimum_moreau.models.units import decoder_layers, model_shape
from optimum_moreau.planning import Kept, make_plan, whole_plan
from optimum_moreau.scoring.scores import score_units
from optimum_moreau.surgery.apply import apply_plan
from tests.compensation.test_aims import relative, streams, weighted_mean
from tests.models.test_stream import inputs_of
from tests.tiny import FAMILIES, assert_same_state, in_parts, snapshot, tiny_model

CUTTABLE = [family for family in FAMILIES if not TABLE[family].hidden_refusal]
FOLDED = [
    (family, folded) for family in CUTTABLE for folded in (False, True) if not (folded and TABLE[family].qk_norms)
]
EVERYWHERE = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
ALL = {"targets": ("attention", "mlp", "hidden"), "unit_ratio": (0.5, 0.5, 0.25), **EVERYWHERE}
LAYERS = {"targets": ("mlp", "hidden", "layers"), "unit_ratio": (0.5, 0.25, 0.4), "whole_layers": (0, 3), **EVERYWHERE}
SCOPES = {"hidden": {}, "all": ALL, "layers": LAYERS}
OUT, DOWN = "self_attn.o_proj", "mlp.down_proj"
pytestmark = pytest.mark.usefixtures("unguarded")  # what guards has tests of its own: test_guard.py


@pytest.fixture
def windows():
    return torch.randint(64, (48, 16), generator=torch.Generator().manual_seed(1))


def tiny(family="llama", **changes):
    """Embeddings so small that the norms' ε matters."""
    model = tiny_model(family, rms_norm_eps=0.05, **changes)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5)
    return model


def planned(model, **changes):
    """A resolved config, and a plan by magnitude that takes a quarter of the hidden channels."""
    settings = {"criterion": "magnitude", "unit_ratio": 0.25, "targets": ("hidden",), "compensation": "refit"}
    config = MoreauPrunerConfig(**{**settings, **changes}).resolve(model.config)
    shape = model_shape(model)
    return make_plan(score_units(model, shape, None, config), shape, config), config


def adjusted(model, windows, **changes):
    """In place: compensates and cuts; returns what was done, the plan, and the logits of two windows before the cut."""
    plan, config = planned(model, **changes)
    with torch.no_grad(), compensated(model, model_shape(model), plan, in_parts(windows), config) as found:
        for index in plan.removed_layers:  # the block's promise leaves them out
            decoder_layers(model)[index].forward = lambda hidden_states, *args, **kwargs: hidden_states
        logits = model(windows[:2]).logits
        apply_plan(model, replace(plan, fingerprint=None))
    return found.matrices, plan, logits


def matrices(model):
    """The matrices that write to the residual stream, in order: name → module."""
    blocks = sorted(model_shape(model).blocks, key=lambda block: (block.layer, block.kind))
    names = [f"model.layers.{block.layer}.{block.reader.module}" for block in blocks]
    return {name: model.get_submodule(name) for name in names}


@pytest.mark.parametrize("compensation", ["none", "refit"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("family", "folded"), FOLDED)
def test_within_the_block_the_whole_model_computes_what_the_cut_one_will(family, folded, scope, compensation, windows):
    model = tiny(family)
    _, plan, expected = adjusted(model, windows, fold_norms=folded, compensation=compensation, **SCOPES[scope])
    assert plan.hidden.removed == 8 and model.config.hidden_size == 24
    assert len(plan.removed_layers) == (scope == "layers")
    with torch.no_grad():
        torch.testing.assert_close(model(windows[:2]).logits, expected, rtol=1e-4, atol=1e-4)


def by_hand(family, plan, windows, ridge, fitted):
    """The refit of every layer, from whole passes of the dense model and of one that is cut already, in numpy.

    Of matrices that are not among the fitted ones, since it does not pay, all stays.
    """
    dense, pruned = tiny(family), tiny(family)
    apply_plan(pruned, replace(plan, fingerprint=None))
    behind = dict(
        zip(matrices(pruned), (n for n in matrices(dense) if _layer(n) not in plan.removed_layers), strict=True)
    )
    kept = list(plan.hidden.kept)
    for name, module in matrices(pruned).items():
        if behind[name] not in fitted:
            continue
        bias = 0.0 if module.bias is None else module.bias.detach().double().numpy()
        x, w = inputs_of(pruned, windows, name)[0], module.weight.detach().double().numpy()
        if TABLE[family].adds:
            aim = streams(dense, windows, behind[name])[1]
            t = aim[:, kept] - streams(pruned, windows, name)[0] - bias
        else:
            aim = inputs_of(dense, windows, behind[name])[1]
            t = aim[:, kept] - bias
        x, t = relative(aim, x, t)  # of all hidden channels, those that go too
        gram = x.T @ x
        strength = ridge * np.mean(np.diag(gram))
        v = (t.T @ x + strength * w) @ np.linalg.inv(gram + strength * np.eye(len(gram)))
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(v))
    return pruned


def _layer(name):
    return int(name.split(".")[2])


@pytest.mark.parametrize("family", ["llama", "exaone4", "glm4", "arcee"])
@pytest.mark.parametrize("scope", SCOPES)
def test_every_writer_is_refitted_on_what_the_ones_before_it_leave(scope, family, windows):
    """The rows that stay: X as the cut model has it, T what brings the dense one's stream back."""
    model = tiny(family)
    found, plan, _ = adjusted(model, windows, ridge=0.05, batch_size=7, **SCOPES[scope])
    fitted = {f"model.{one.name}" for one in found if one.ridge is not None}
    expected = matrices(by_hand(family, plan, torch.cat(in_parts(windows).folds), 0.05, fitted))
    assert len(found) == len(expected) == 2 * len(model.model.layers)
    for name, module in matrices(model).items():
        torch.testing.assert_close(module.weight, expected[name].weight, rtol=2e-3, atol=2e-4, msg=name)
    assert all((one.error_after < one.error_before) == (one.ridge == 0.05) for one in found)
    assert 2 * len(fitted) >= len(found)


def test_biases_of_the_writers_stay_as_they_are_without_an_intercept(windows):
    model, dense = (tiny("arcee", attention_bias=True, mlp_bias=True) for _ in range(2))
    _, plan, expected = adjusted(model, windows)
    kept = list(plan.hidden.kept)
    for name, module in matrices(model).items():
        assert torch.equal(module.bias, dense.get_submodule(name).bias[kept])
    with torch.no_grad():
        torch.testing.assert_close(model(windows[:2]).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"compensation": "bias"}, {"intercept": True}, {"compensation": "scale", "intercept": True}], ids=str
)
@pytest.mark.parametrize("scope", SCOPES)
def test_with_an_intercept_the_mean_of_the_kept_stream_is_the_dense_models(scope, settings):
    windows = torch.randint(64, (240, 16), generator=torch.Generator().manual_seed(1))
    model, dense, fitted = tiny(), tiny(), torch.cat(in_parts(windows).folds)
    found, plan, expected = adjusted(model, windows, **settings, **SCOPES[scope])
    assert all(one.error_after < one.error_before for one in found)
    names = [name for name in matrices(dense) if _layer(name) not in plan.removed_layers]
    for name, whole in zip(matrices(model), names, strict=True):
        given, aim = (streams(one, fitted, at)[1] for one, at in ((model, name), (dense, whole)))
        mean, goal = (weighted_mean(aim, values) for values in (given, aim[:, list(plan.hidden.kept)]))
        np.testing.assert_allclose(mean, goal, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(windows[:2]).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compensation", ["none", "refit", "scale"])
def test_a_plan_that_removes_nothing_changes_nothing(compensation, windows):
    model = tiny()
    before = {name: w.clone() for name, w in model.named_parameters()}
    _, config = planned(model, compensation=compensation)
    plan = replace(whole_plan(model_shape(model)), hidden=Kept(tuple(range(32)), 32))
    with compensated(model, model_shape(model), plan, in_parts(windows), config):
        pass
    for name, w in model.named_parameters():
        assert torch.equal(w, before[name])


@pytest.mark.parametrize("settings", [{}, {"compensation": "none"}, {"compensation": "bias"}, ALL], ids=str)
@pytest.mark.parametrize("ending", [KeyboardInterrupt, None])
def test_an_error_or_the_wish_leaves_the_model_as_it_was(ending, settings, windows):
    model = tiny()
    before, expected = snapshot(model), model(windows[:2]).logits
    plan, config = planned(model, **settings)
    try:
        with compensated(model, model_shape(model), plan, in_parts(windows), config, undone=ending is None):
            assert not torch.equal(model(windows[:2]).logits, expected)
            if ending:
                raise ending
    except KeyboardInterrupt:
        pass
    assert_same_state(model, before)
    assert torch.equal(model(windows[:2]).logits, expected)  # no hook is left
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_not_finite_names_the_layer_and_leaves_the_model_as_it_was(windows):
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(torch.inf)
    before = snapshot(model)
    plan, config = planned(tiny())
    with (
        pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.down_proj: what flows through it is not finite"),
        compensated(model, model_shape(model), plan, in_parts(windows), config),
    ):
        pass
    assert_same_state(model, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_keep_their_dtype_and_come_near_float32(dtype, windows):
    model, reference = tiny(dtype=dtype), tiny()
    adjusted(model, windows)
    _, _, exact = adjusted(reference, windows)
    assert model.dtype == dtype
    with torch.no_grad():
        assert (model(windows[:2]).logits.float() - exact).norm() / exact.norm() < 0.1


def test_offloaded_models_are_adjusted_as_loaded_ones(windows):
    from accelerate import cpu_offload

    loaded, offloaded = tiny(), tiny()
    adjusted(loaded, windows)
    cpu_offload(offloaded, "cpu")
    adjusted(offloaded, windows)
    with torch.no_grad():
        torch.testing.assert_close(offloaded(windows[:2]).logits, loaded(windows[:2]).logits, rtol=1e-4, atol=1e-4)


def test_the_pruner_compensates_and_an_applied_plan_gives_the_same_model(windows):
    config = MoreauPrunerConfig(
        criterion="magnitude", unit_ratio=0.25, targets=("hidden",), compensation="refit", compensation_samples=30,
        sequence_length=16,
    )  # fmt: skip
    model, again = tiny(), tiny()
    found = MoreauPruner(config).prune(model, windows)
    assert len(found.summary.compensation["matrices"]) == 6 and found.summary.hidden_after == 24
    MoreauPruner().apply(again, found.plan, windows)
    for one, other in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_real_model_is_better_for_it(shared):
    folder = str(shared / "models" / "stories260K")
    text = read_documents(shared / "data" / "tinystories_1k.jsonl")
    tokenizer, found = load_tokenizer(folder), {}
    for compensation in ("none", "refit"):
        model = load_model(folder, device="cpu")
        config = MoreauPrunerConfig("taylor", 0.15, targets=("hidden",), compensation=compensation)
        MoreauPruner(config, tokenizer=tokenizer).prune(model, text[:500])
        found[compensation] = perplexity(model, tokenizer, text[500:], max_segments=50).perplexity
    assert found["refit"] < found["none"]
