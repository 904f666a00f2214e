"""The stream of layers: it is the model's own forward pass, and its statistics are those of plain numpy."""

import numpy as np
import pytest
import torch

from optimum_moreau.envelope import scoring_mode
from optimum_moreau.errors import NonFiniteError
from optimum_moreau.models.stream import WHAT, LayerStream
from optimum_moreau.models.units import decoder_layers
from tests.tiny import FAMILIES, tiny_model


def batches(tokens):
    return list(tokens.split(3))  # 3 and 1 windows: unequal batches


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_the_forward_pass(family, tokens):
    model = tiny_model(family)
    seen = []
    handles = [layer.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for layer in decoder_layers(model)]
    with torch.no_grad():
        whole = [model(batch, use_cache=False).logits for batch in batches(tokens)]
    for handle in handles:
        handle.remove()
    depth, computed = len(decoder_layers(model)), []
    for layer in decoder_layers(model):
        layer.mlp.register_forward_hook(lambda *args: computed.append(args[0]))
    with scoring_mode(model), torch.no_grad():
        stream = LayerStream(model, batches(tokens), len(tokens))
        for streamed in stream:
            for found, expected in zip(streamed.hidden, seen[streamed.index :: depth], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            computed.clear()
            for found, expected in zip(stream.logits(streamed), whole, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert len(computed) == 2 * (depth - streamed.index)  # the layers before it rest
            next(stream.logits(streamed))  # a consumer that stops early
            assert all("forward" not in layer.__dict__ for layer in decoder_layers(model))


def inputs_of(model, tokens, name):
    """What a plain forward pass feeds a linear layer and gets from it, `(tokens, in)` and `(tokens, out)`, float64."""
    caught = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, args, y: caught.append((args[0], y)))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    ((x, y),) = caught
    return x.double().flatten(0, 1).numpy(), y.double().flatten(0, 1).numpy()


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_statistics_are_those_of_numpy(family, name, tokens):
    model = tiny_model(family)
    with scoring_mode(model):
        found = [s.gather([name], WHAT)[name] for s in LayerStream(model, batches(tokens), len(tokens))]
    for index, inputs in enumerate(found):
        module = model.get_submodule(f"model.layers.{index}.{name}")
        x, y = inputs_of(model, tokens, f"model.layers.{index}.{name}")
        y = y if module.bias is None else y - module.bias.double().detach().numpy()
        close = {"rtol": 1e-4, "atol": 1e-5}
        assert (inputs.samples, inputs.tokens) == (4, 64) == (len(tokens), len(x))
        np.testing.assert_allclose(inputs.squares, (x**2).sum(0) / 4, **close)
        np.testing.assert_allclose(inputs.sums, x.sum(0) / 4, **close)
        np.testing.assert_allclose(inputs.outputs, (y**2).sum(0) / 4, **close)
        np.testing.assert_allclose(inputs.products, x.T @ x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(inputs.variance, x.var(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fed_forward", [True, False])
def test_what_is_pruned_is_fed_forward_only_when_asked(fed_forward, tokens):
    model, name = tiny_model("llama"), "mlp.down_proj"
    dense = inputs_of(model, tokens, f"model.layers.2.{name}")[0]
    with scoring_mode(model):
        for streamed in LayerStream(model, batches(tokens), len(tokens)):
            found = streamed.gather([name], ["squares"], pass_on=not fed_forward)[name]
            with torch.no_grad():
                streamed.layer.get_submodule(name).weight.zero_()
    now = inputs_of(model, tokens, f"model.layers.2.{name}")[0]  # of the model with its layers 0 and 1 changed
    expected = now if fed_forward else dense
    assert not np.allclose(now, dense)
    np.testing.assert_allclose(found.squares, (expected**2).sum(0) / 4, rtol=1e-4, atol=1e-5)


def test_inputs_that_are_not_finite_are_refused_by_name(tokens):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = torch.nan
    with scoring_mode(model), pytest.raises(NonFiniteError, match=r"layers\.1\.self_attn\.q_proj"):
        for streamed in LayerStream(model, batches(tokens), len(tokens)):
            streamed.gather(["self_attn.q_proj"], ["squares"])
