"""What a refit aims at: by hand in numpy, layer by layer, from whole passes of a dense model and of a silenced one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.compensation.aims import Aims
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.models.families import FAMILIES as TABLE
from optimum_moreau.models.units import decoder_layers, model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.scoring.scores import score_units
from optimum_moreau.surgery.apply import apply_plan
from tests.models.test_stream import inputs_of
from tests.tiny import FAMILIES, in_parts, tiny_model

OUT = "self_attn.o_proj"
SCALED = {"granite": {"residual_multiplier": 0.4}}  # what is given is added so often; 1 elsewhere
KINDS = ("llama", "granite", "cohere", "starcoder2", "exaone4", "gemma2", "glm4")
pytestmark = pytest.mark.usefixtures("unguarded")


def tiny(family):
    return tiny_model(family, **SCALED.get(family, {}))


def times(model):
    return getattr(model.config, "residual_multiplier", 1.0)


@pytest.fixture
def windows():
    return torch.randint(64, (48, 16), generator=torch.Generator().manual_seed(1))


def layer_of(name):
    return name.rpartition(".self_attn")[0] or name.rpartition(".mlp")[0]


def streams(model, windows, name):
    """The residual stream before and behind what o_proj or down_proj adds, `(tokens, hidden)`; of families that add."""
    caught, layer = [], model.get_submodule(layer_of(name))
    handle = layer.register_forward_pre_hook(lambda m, args, kwargs: caught.append(args[0]), with_kwargs=True)
    before = None
    if not name.endswith(OUT):
        before = times(model) * inputs_of(model, windows, f"{layer_of(name)}.{OUT}")[1]
    given = times(model) * inputs_of(model, windows, name)[1]
    handle.remove()
    stream = caught[0].double().flatten(0, 1).numpy()
    stream = stream if before is None else stream + before
    return stream, stream + given


def relative(aim, *sides):
    """Each token's row over the size of what should be there; zeros where that is nothing."""
    return tuple(side * np.sqrt(weights_of(aim))[:, None] for side in sides)


def weighted_mean(aim, values):
    """Over tokens."""
    return np.average(values, axis=0, weights=weights_of(aim))


def weights_of(aim):
    """1/‖aim‖² of each token; zero where there is nothing: a padding token's embedding is zero."""
    squares = (aim**2).sum(1)
    return np.divide(1, squares, out=np.zeros_like(squares), where=squares > 0)


def test_a_token_with_nothing_to_give_weighs_nothing():
    aim = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.1, 0.0]])
    torch.testing.assert_close(Aims.weight(aim), torch.tensor([0.0, 0.04, 100.0]))


def readers(model):
    """The blocks in the order in which they are fitted: name of the matrix → block."""
    blocks = sorted(model_shape(model).blocks, key=lambda block: (block.layer, block.kind))
    return {f"model.layers.{block.layer}.{block.reader.module}": block for block in blocks}


def by_hand(family, plan, text, ridge, target):
    """Name of a matrix → its refitted columns, in numpy."""
    dense, pruned, found = tiny(family), tiny(family), {}
    for name, block in readers(dense).items():
        module = pruned.get_submodule(name)
        columns = block.lines(block.reader, module.weight.shape[1])[list(plan.kept(block).kept)].flatten()
        bias = 0.0 if module.bias is None else module.bias.detach().double().numpy()
        x, w = inputs_of(pruned, text, name)[0][:, columns], module.weight.detach().double().numpy()[:, columns]
        if target == "stream" and TABLE[family].adds:
            aim = streams(dense, text, name)[1]
            t = (aim - streams(pruned, text, name)[0]) / times(dense) - bias
        else:
            aim = inputs_of(dense, text, name)[1]
            t = aim - bias
        x, t = relative(aim, x, t)
        gram = x.T @ x
        strength = ridge * np.mean(np.diag(gram))
        found[name] = (t.T @ x + strength * w) @ np.linalg.inv(gram + strength * np.eye(len(gram)))
        with torch.no_grad():
            module.weight.zero_()
            module.weight[:, columns] = torch.from_numpy(found[name]).float()
    return found


def adjusted(model, windows, **changes):
    """In place: compensates and cuts half the units of every layer; returns what was done and the plan."""
    settings = {"criterion": "magnitude", "unit_ratio": 0.5, "compensation": "refit", "ridge": 0.05}
    scope = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
    config = MoreauPrunerConfig(**{**settings, **scope, **changes}).resolve(model.config)
    shape = model_shape(model)
    plan = make_plan(score_units(model, shape, None, config), shape, config)
    with compensated(model, shape, plan, in_parts(windows), config) as found:
        apply_plan(model, replace(plan, fingerprint=None))
    return found.matrices, plan


@pytest.mark.parametrize("target", ["stream", "matrix"])
@pytest.mark.parametrize("family", KINDS)
def test_every_matrix_is_refitted_on_what_the_ones_before_it_leave(family, target, windows):
    """X from the pruned stream; T what brings the dense one back, or what the dense matrix gives.

    A token's error counts as a share of what should be there.
    """
    model = tiny(family)
    found, plan = adjusted(model, windows, target=target, batch_size=7)
    expected = by_hand(family, plan, torch.cat(in_parts(windows).folds), 0.05, target)
    assert [f"model.{one.name}" for one in found] == list(expected)
    assert all(one.ridge == 0.05 and one.error_after < one.error_before for one in found)
    assert {one.tokens for one in found} == {40 * 16}
    for name, v in expected.items():
        weight = model.get_parameter(f"{name}.weight").detach().double().numpy()
        np.testing.assert_allclose(weight, v, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_whether_a_layer_adds_what_its_matrices_give(family, windows):
    """h + m·o_proj + m·down_proj is what the layer hands on, or is not."""
    model = tiny(family)
    layer = decoder_layers(model)[1]
    down = next(block.reader.module for block in model_shape(model).blocks if block.kind == "mlp")
    caught = []
    handle = layer.register_forward_hook(lambda m, args, out: caught.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(windows[:4])
    handle.remove()
    given = caught[0].double().flatten(0, 1).numpy()
    added = streams(model, windows[:4], f"model.layers.1.{down}")[1]
    assert np.allclose(given, added, rtol=1e-4, atol=1e-4) == TABLE[family].adds
