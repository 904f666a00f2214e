"""Blocks that are trained after their refit: what is above their error, what moves, and what does not."""

from dataclasses import replace

import pytest
import torch

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.compensation import compensate as compensating
from optimum_moreau.compensation.biases import check_compensation
from optimum_moreau.compensation.blocks import BlockTrainer, Lesson, giving_zeros
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.compensation.refit import Refit
from optimum_moreau.compensation.train import Train
from optimum_moreau.data.parts import Parts, parted
from optimum_moreau.distributed import generator
from optimum_moreau.errors import ConfigError
from optimum_moreau.models.units import model_shape
from optimum_moreau.surgery.apply import apply_plan
from tests.tiny import FAMILIES, assert_same_state, cut_plan, own_windows, snapshot, tiny_model

TRAIN = {"steps": 60, "learning_rate": 1e-3, "batch_tokens": 64, "held_out": 4, "windows": 32}


@pytest.fixture(scope="module")
def tokens():
    return own_windows(tiny_model(), 36, 12)


def trained(model, tokens, *, step=None, attention=(1, 1, 0), mlp=(8, 8, 8), **changes):
    """In place: compensates for random units; returns what was done, logits within the block, and of the cut model."""
    step = step or Train(**TRAIN)
    config = MoreauPrunerConfig(compensation=step, unit_ratio=0.5, **changes).resolve(model.config)
    plan = cut_plan(model, attention, mlp)
    with compensated(model, model_shape(model), plan, parted(tokens, 4), config) as done:
        within = model(tokens[:2]).logits.detach()
        apply_plan(model, plan)
    return done, within, model(tokens[:2]).logits.detach()


@pytest.fixture
def never_taken_back(monkeypatch):
    """The guard of the whole compensation lets all pass."""
    monkeypatch.setattr(compensating._Guarded, "_loss", lambda self, what: 0.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("never_taken_back")
def test_units_that_go_stay_silent_and_no_block_is_worse_on_what_is_watched(family, tokens):
    done, within, cut = trained(tiny_model(family), tokens)
    torch.testing.assert_close(within, cut, rtol=1e-4, atol=1e-4)
    assert all(one.error_after <= one.error_before for one in done.trained)
    if family == "llama":  # the refit has seen these windows, and may be hard to better
        assert any(one.error_after < one.error_before and one.steps > 0 for one in done.trained)


@pytest.mark.usefixtures("never_taken_back")
def test_each_block_is_trained_once_in_order_and_parallel_ones_together(tokens):
    names = [one.name for one in trained(tiny_model(), tokens, attention=(0, 1, 0))[0].trained]
    assert names == ["layers.0.mlp", *(f"layers.{i}.{kind}" for i in (1, 2) for kind in ("attention", "mlp"))]
    names = [one.name for one in trained(tiny_model("cohere"), tokens)[0].trained]
    assert names == [f"layers.{i}" for i in range(3)]


@pytest.mark.usefixtures("never_taken_back")
def test_without_steps_it_is_the_refit(tokens):
    refitted, still = tiny_model(), tiny_model()
    trained(refitted, tokens, step=Refit(windows=32, held_out=4))
    trained(still, tokens, step=Train(**TRAIN | {"steps": 0}))
    for name, w in refitted.state_dict().items():
        torch.testing.assert_close(still.state_dict()[name], w, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("never_taken_back")
def test_the_same_seed_gives_the_same_model_whatever_the_batch_size(tokens):
    one, other, third = tiny_model(), tiny_model(), tiny_model()
    trained(one, tokens, batch_size=5)
    trained(other, tokens, batch_size=16)
    trained(third, tokens, batch_size=5, seed=7)
    same, seeded = other.state_dict(), third.state_dict()
    for name, w in one.state_dict().items():
        torch.testing.assert_close(same[name], w, rtol=1e-3, atol=1e-3)
    assert any(not torch.allclose(seeded[name], w, rtol=0, atol=1e-5) for name, w in one.state_dict().items())


def lesson_of(layer, inputs, arguments, aims):
    return Lesson(list(inputs), list(aims), range(12), range(12, 16), arguments)


def layer_and_arguments(model, tokens):
    """The first layer, what flows into it, and what else it is given."""
    found = {}

    def note(layer, args, kwargs):
        found["args"] = args[0], (args[1:], {k: v for k, v in kwargs.items() if k != "past_key_values"})

    layer = model.model.layers[0]
    handle = layer.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(tokens, use_cache=False)
    handle.remove()
    return layer, *found["args"]


@pytest.mark.parametrize(
    ("family", "silent", "moves"),
    [
        ("llama", "mlp", {"self_attn", "input_layernorm"}),
        ("llama", "self_attn", {"mlp", "post_attention_layernorm"}),
        ("gemma3_text", "mlp", {"self_attn", "input_layernorm", "post_attention_layernorm"}),
        ("gemma3_text", "self_attn", {"mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm"}),
        ("exaone4", "mlp", {"self_attn", "post_attention_layernorm"}),
        ("glm4", "self_attn", {"mlp", "post_attention_layernorm", "post_mlp_layernorm"}),
        ("cohere", None, {"self_attn", "mlp", "input_layernorm"}),
    ],
)
def test_everything_that_a_block_has_moves_and_nothing_else(family, silent, moves, tokens):
    """Norms before and behind, and those of queries and keys."""
    layer, inputs, arguments = layer_and_arguments(tiny_model(family).requires_grad_(False), tokens[:16])
    before = {name: w.clone() for name, w in layer.named_parameters()}
    aims = inputs + torch.randn(inputs.shape, generator=torch.Generator().manual_seed(3))
    trainer = BlockTrainer(layer, silent, {})
    found = trainer.train(
        "here", lesson_of(layer, inputs, arguments, aims), Train(steps=20, batch_tokens=64), generator(0, "here")
    )
    assert found.error_after < found.error_before
    for name, w in layer.named_parameters():
        assert torch.equal(w, before[name]) == (name.split(".")[0] not in moves), name


def test_the_error_is_relative_to_each_tokens_stream(tokens):
    """With both halves silent a block gives its input."""
    layer, inputs, arguments = layer_and_arguments(tiny_model().requires_grad_(False), tokens[:16])
    aims = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(3))
    with giving_zeros(layer, "mlp"):
        lesson = lesson_of(layer, inputs, arguments, aims)
        found = BlockTrainer(layer, "self_attn", {}).train("here", lesson, Train(steps=0), generator(0, "here"))
    expected = ((inputs - aims)[12:].norm(dim=-1) / aims[12:].norm(dim=-1)).square().mean()
    assert found.error_before == found.error_after == pytest.approx(float(expected), rel=1e-5)


def test_it_finds_a_block_whose_output_is_known(tokens):
    """A damaged block comes near the whole one, which gave the aims."""
    layer, inputs, arguments = layer_and_arguments(tiny_model().requires_grad_(False), tokens[:16])
    with torch.no_grad(), giving_zeros(layer, "self_attn"):
        args, kwargs = arguments
        aims = layer(inputs, *args, **kwargs)
        layer.post_attention_layernorm.weight.mul_(1.3)
    settings = Train(steps=200, learning_rate=1e-2, batch_tokens=192, patience=200)
    found = BlockTrainer(layer, "self_attn", {}).train(
        "here", lesson_of(layer, inputs, arguments, aims), settings, generator(0, "here")
    )
    assert found.error_after < 0.1 * found.error_before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("never_taken_back")
def test_16_bit_models_keep_their_dtype(dtype, tokens):
    model = tiny_model(dtype=dtype)
    done, *_ = trained(model, tokens)
    assert {w.dtype for w in model.parameters()} == {dtype}
    assert all(one.error_after <= one.error_before for one in done.trained)


@pytest.mark.parametrize("family", ["llama", "apertus", "starcoder2", "exaone4"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_an_error_in_the_middle_and_the_guard_leave_the_model_bit_for_bit(family, error, tokens, monkeypatch):
    model = tiny_model(family)
    before, done = snapshot(model), []
    original = BlockTrainer.train

    def interrupted(self, *args):
        done.append(original(self, *args))
        if error and len(done) == 3:
            raise error
        return done[-1]

    losses = iter((0.0, 1.0, 1.5, 2.0))  # dense, cut, refit, trained
    monkeypatch.setattr(compensating._Guarded, "_loss", lambda self, what: next(losses))
    monkeypatch.setattr(BlockTrainer, "train", interrupted)
    config = MoreauPrunerConfig(compensation=Train(**TRAIN), unit_ratio=0.5).resolve(model.config)
    given = (model, model_shape(model), cut_plan(model, (1, 1, 0), (8, 8, 8)), parted(tokens, 4), config)
    if error:
        with pytest.raises(error), compensated(*given):
            pass
    else:
        with pytest.raises(ZeroDivisionError), compensated(*given) as found:
            assert found.held_out.taken_back
            raise ZeroDivisionError
    assert any(one.steps for one in done)
    assert_same_state(model, before)


@pytest.mark.usefixtures("never_taken_back")
def test_an_offloaded_model_is_trained_like_one_in_memory(tokens):
    from accelerate import cpu_offload

    whole, offloaded = tiny_model(), tiny_model()
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    _, expected, _ = trained(whole, tokens)
    _, found, _ = trained(offloaded, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("optimum_moreau.compensation.biases.is_distributed", lambda: True)
    model = tiny_model()
    config = MoreauPrunerConfig(compensation="train", unit_ratio=0.5).resolve(model.config)
    with pytest.raises(ConfigError, match="'train': runs in one process"):
        check_compensation(model, model_shape(model), config)


def test_what_is_watched_shares_no_text_with_what_is_trained_on():
    folds, places = (torch.zeros(6, 8), torch.zeros(6, 8)), [(0, 3 * i) for i in range(12)]
    trained_on, watched = Parts(folds, folds[0], tuple(places)).watched(0.25)
    assert watched == [9, 10, 11] and trained_on == list(range(7))  # window 6 ends at 26, window 9 begins at 27
    assert Parts(folds, folds[0]).watched(0.25) == (list(range(9)), watched)
    close = replace(Parts(folds, folds[0]), places=tuple((0, i // 6 * 8 + i % 6) for i in range(12)))
    assert close.watched(0.5) == (list(range(1)), list(range(6, 12)))
    nested = replace(close, places=tuple((0, i) for i in range(12)))
    assert nested.watched(0.25) == ([0, 1], [9, 10, 11])
    assert replace(close, places=((0, 5),) * 12).watched(0.25) == (list(range(6)), list(range(6, 12)))


def test_where_the_refit_alone_is_better_on_what_is_held_out_it_is_taken(tokens, monkeypatch, caplog):
    losses = iter((0.0, 3.0, 1.0, 2.0))  # dense, cut, refit, trained
    monkeypatch.setattr(compensating._Guarded, "_loss", lambda self, what: next(losses))
    taught, refitted = tiny_model(), tiny_model()
    done, _, _ = trained(taught, tokens)
    monkeypatch.setattr(compensating._Guarded, "_loss", lambda self, what: 0.0)
    trained(refitted, tokens, step=Train(**TRAIN).simpler)
    assert all(torch.equal(w, refitted.state_dict()[name]) for name, w in taught.state_dict().items())
    assert (done.held_out.taken_back, done.held_out.instead, done.held_out.simpler) == (True, "refit", 1.0)
    assert (
        "'refit' is better on text that was held out, 1.0000, and is taken instead" in caplog.text and not done.trained
    )
