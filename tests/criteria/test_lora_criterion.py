"""The `lora` criterion (LoRAPrune), against the same training written out with explicit matrices."""

from itertools import cycle, islice, pairwise

import pytest
import torch
from torch.func import functional_call

from optimum_moreau.config import MoreauPrunerConfig
from optimum_moreau.criteria import lora_adapters as lora
from optimum_moreau.criteria.scoring_run import Scoring
from optimum_moreau.envelope import scoring_mode
from optimum_moreau.errors import NonFiniteError, UnsupportedModelError
from optimum_moreau.evaluation.study import silenced
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.scoring.scores import score_units
from tests.tiny import tiny_model

EVERYWHERE = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}


@pytest.fixture
def model():
    return tiny_model("llama")


def scoring(model, tokens, **changes):
    config = MoreauPrunerConfig(criterion="lora", **{**EVERYWHERE, **changes}).resolve(model.config)
    found = {}

    def emit(name, elements):
        found[name] = elements.clone()

    return Scoring(model, model_shape(model).scored(config), list(tokens.split(3)), len(tokens), config, emit), found


def elements_of(model, tokens, **changes):
    run, found = scoring(model, tokens, **changes)
    with scoring_mode(model), torch.no_grad():
        run.config.criterion.score(run)
    return found


def first_draw(model, tokens, **changes):
    """A and B as the criterion begins with."""
    run, _ = scoring(model, tokens, **changes)
    return {name: (one.a.detach(), one.b.detach()) for name, one in lora._adapters(run).items()}


def test_the_first_step_is_the_weights_gradient_seen_through_a(model, tokens):
    """B = 0 at first, so ∇A = 0 and ĝ = ∇B·A = s·g·AᵀA with g the gradient of W itself."""
    found = elements_of(model, tokens[:3], steps=1, decay=0.0)
    draws = first_draw(model, tokens[:3])
    model.zero_grad()
    model(tokens[:3], labels=tokens[:3]).loss.backward()
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.2.mlp.up_proj.weight"):
        w, a = model.get_parameter(name), draws[name][0].double()
        assert w.grad is not None
        elements = (2 * w.grad.double() @ a.T @ a * w.detach().double()).abs()
        units = elements.sum(0).view(2, -1).sum(1) if "o_proj" in name else elements.sum(1)  # KV groups; channels
        torch.testing.assert_close(found[name].double(), elements / units.norm(), rtol=1e-4, atol=1e-8)


def test_steps_are_those_of_explicit_matrices(model, tokens):
    """Three steps of AdamW on W + s·BA with ĝ = ∇B·A + B·∇A − ∇B·∇A; nothing is silenced yet."""
    found = elements_of(model, tokens, steps=3, learning_rate=0.05, decay=0.5)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    draws = {n: [t.clone().requires_grad_() for t in ab] for n, ab in first_draw(model, tokens).items()}
    optimizer = torch.optim.AdamW([t for ab in draws.values() for t in ab], lr=0.05, weight_decay=0.0)
    blocks = {n: (block, cut) for block in model_shape(model).blocks for cut, n in block.weight_names().items()}
    mean = {name: 0.0 for name in draws}
    for batch in islice(cycle(tokens.split(3)), 3):
        moved = weights | {n: weights[n] + 2 * b @ a for n, (a, b) in draws.items()}
        functional_call(model, moved, kwargs={"input_ids": batch, "labels": batch}).loss.backward()
        for name, (a, b) in draws.items():
            with torch.no_grad():
                guided = b.grad @ a + b @ a.grad - b.grad @ a.grad
                one = (guided * moved[name]).abs()
                block, cut = blocks[name]
                mean[name] = 0.5 * mean[name] + 0.5 * one / block.sum_per_unit(cut, one).norm()
        optimizer.step()
        optimizer.zero_grad()
    for name, expected in mean.items():
        torch.testing.assert_close(found[name].double(), expected.double(), rtol=2e-3, atol=1e-6)


def test_the_guided_gradient_is_what_a_step_of_gradient_descent_takes_from_ba():
    generator = torch.Generator().manual_seed(0)
    a, ga = (torch.randn(2, 5, generator=generator) for _ in range(2))
    b, gb = (torch.randn(4, 2, generator=generator) for _ in range(2))
    adapter = lora._Adapter(None, a, b, [], torch.zeros(4, 5))
    change = b @ a - (b - gb) @ (a - ga)  # with step size 1
    w = torch.randn(4, 5, generator=generator)
    expected = (change * (w + 2 * b @ a)).abs()
    torch.testing.assert_close(adapter.importance(w, ga, gb).double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_units_fall_silent_on_a_cubic_ramp_and_stay_last(model, tokens, monkeypatch):
    shares = []
    silence = lora._silence

    def watched(run, adapters, speaking, part):
        silence(run, adapters, speaking, part)
        shares.append((part, {where: own.clone() for where, own in speaking.items()}))

    monkeypatch.setattr(lora, "_silence", watched)
    config = MoreauPrunerConfig(criterion="lora", unit_ratio=0.5, steps=35, **EVERYWHERE).resolve(model.config)
    shape = model_shape(model)
    scores = score_units(model, shape, tokens, config)
    assert [share for share, _ in shares] == pytest.approx([1 - (1 - t / 35) ** 3 for t in (10, 20, 30, 35)])
    for (_, before), (_, after) in pairwise(shares):
        assert all((after[where] <= before[where]).all() for where in before)
    kept = make_plan(scores, shape, config)
    for block in shape.blocks:
        silent = ~shares[-1][1][block.where]
        assert int(silent.sum()) == block.total // 2
        assert not set(silent.nonzero().flatten().tolist()) & set(kept.kept(block).kept)


def test_silenced_units_are_not_heard(model, tokens):
    """With B = 0 the model computes what it does with these units silenced in its weights."""
    run, _ = scoring(model, tokens)
    shape = model_shape(model)
    speaking = {block.where: torch.arange(block.total) % 2 == 0 for block in shape.blocks}
    config = MoreauPrunerConfig(criterion="random", unit_ratio=0.5, **EVERYWHERE).resolve(model.config)
    plan = make_plan(score_units(model, shape, None, config), shape, config)
    for block in shape.blocks:
        speaking[block.where] = torch.tensor([unit in plan.kept(block).kept for unit in range(block.total)])
    with torch.no_grad(), silenced(model, shape, plan):
        expected = model(tokens).logits
    with torch.no_grad(), lora._attached(run, lora._adapters(run), speaking):
        torch.testing.assert_close(model(tokens).logits, expected)


@pytest.mark.parametrize(
    ("size", "shares"),
    [
        ({"unit_ratio": 0.3}, (0.3, 0.3)),
        ({"unit_ratio": (0.2, 0.4)}, (0.2, 0.4)),
        ({"pruning_ratio": 0.1}, None),
        ({"target_parameters": 0.9}, None),
        ({"target_bytes": 0.9}, None),
    ],
)
def test_the_share_of_units_follows_any_target_size(size, shares, model, tokens):
    shape = model_shape(model)
    whole = shape.parameters * (4 if "target_bytes" in size else 1)
    size = {name: int(value * whole) if name.startswith("target") else value for name, value in size.items()}
    run, _ = scoring(model, tokens, **size)
    scope = sum(block.total * block.unit_parameters for block in shape.blocks)
    expected = shares or (0.1 * shape.parameters / scope,) * 2
    assert [lora._share(run, kind) for kind in ("attention", "mlp")] == pytest.approx(expected, rel=1e-3)


def test_a_seed_gives_one_score_and_the_model_and_its_hooks_stay(model, tokens):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again, other = (elements_of(model, tokens, steps=2, seed=seed) for seed in (0, 0, 1))
    for name, value in first.items():
        assert torch.equal(value, again[name]) and not torch.equal(value, other[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_no_hook(model, tokens):
    model.model.embed_tokens.weight.data[:] = float("inf")
    with pytest.raises(NonFiniteError, match=r"lora, step 1: the loss is nan; give a smaller learning_rate"):
        elements_of(model, tokens, steps=2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_float16_and_bfloat16_score_as_float32_does(model, tokens):
    expected = elements_of(model, tokens, steps=1)
    for dtype, limit in ((torch.bfloat16, 0.98), (torch.float16, 0.995)):
        found = elements_of(tiny_model("llama").to(dtype), tokens, steps=1)
        for name, value in expected.items():
            both = torch.stack([value.flatten(), found[name].flatten()])
            assert torch.corrcoef(both)[0, 1] > limit, (dtype, name)


def test_an_offloaded_model_is_refused(model, tokens, tmp_path):
    from accelerate import cpu_offload

    cpu_offload(model, "cpu")
    with pytest.raises(UnsupportedModelError, match="lora trains on the whole model; load it without offload"):
        elements_of(model, tokens, steps=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": "global"},
        {"targets": ("mlp", "hidden")},
        {"targets": ("layers", "mlp"), "whole_layers": (0, 3)},
        {"targets": ("layers",), "whole_layers": (0, 3)},
    ],
)
def test_where_it_is_not_known_how_many_units_go_none_falls_silent(changes, model, tokens, monkeypatch):
    monkeypatch.setattr(lora, "_silence", lambda *arguments: pytest.fail("silenced"))
    config = MoreauPrunerConfig(criterion="lora", pruning_ratio=0.2, steps=10, **{**EVERYWHERE, **changes})
    score_units(model, model_shape(model), tokens, config.resolve(model.config))


def test_a_ratio_of_no_units_silences_none(model, tokens):
    config = MoreauPrunerConfig(criterion="lora", unit_ratio=0, steps=10, **EVERYWHERE).resolve(model.config)
    score_units(model, model_shape(model), tokens, config)


def test_gradients_that_overflow_in_float16_lower_the_loss_scale(tokens):
    """The head's gradients overflow at 2¹²; the score is that of bfloat16 all the same, over several steps."""

    def loud(dtype):
        model = tiny_model("llama")
        with torch.no_grad():
            model.lm_head.weight.mul_(300)
        return model.to(dtype)

    found, expected = (elements_of(loud(dtype), tokens, steps=3) for dtype in (torch.float16, torch.bfloat16))
    for name, value in expected.items():
        both = torch.stack([value.flatten(), found[name].flatten()])
        assert torch.isfinite(found[name]).all() and torch.corrcoef(both)[0, 1] > 0.9, name


def test_a_forward_that_detaches_is_refused(model, tokens):
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0].detach(),))
    with pytest.raises(UnsupportedModelError, match="lora, step 1: no gradient of the loss reaches"):
        elements_of(model, tokens, steps=1)
