"""Permuted channels: an order that leaves the function as it is, and for which an n:m mask keeps no less score."""

import importlib
import itertools

import pytest
import torch
from accelerate import cpu_offload

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.errors import ConfigError, NonFiniteError
from optimum_moreau.masks import permute
from optimum_moreau.masks.patterns import Pattern, keep_mask
from optimum_moreau.masks.permute import order_channels
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.masks.summary import SparsitySummary
from optimum_moreau.models.units import model_shape
from tests.tiny import FAMILIES, assert_same_state, snapshot, tiny_model

sparsify_module = importlib.import_module("optimum_moreau.masks.sparsify")
TWO_FOUR = Pattern(2, 4)


def random_scores(rows, columns, seed=0):
    """Of columns that differ in size, as a criterion's do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator) * torch.rand(columns, generator=generator).exp().square()


def kept(scores, pattern):
    return float(scores[keep_mask(scores, pattern, 0.0)].double().sum() / scores.double().sum())


def masked(model, tokens, criterion="wanda", pattern="2:4", **changes):
    config = MoreauPrunerConfig(criterion=criterion, pattern=pattern, permute=True, **changes)
    return sparsify(model, model_shape(model), tokens, config.resolve(model.config))


# The order


@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(4, 8), Pattern(1, 2), Pattern(3, 4), Pattern(1, 8)])
@pytest.mark.parametrize(("heads", "readers"), [(1, 1), (2, 1), (2, 3)])
def test_an_order_is_a_bijection_inside_heads_and_keeps_no_less(heads, readers, pattern):
    width = 16
    scores = random_scores(6, heads * readers * width)
    found = order_channels(scores, pattern, heads, readers)
    assert found.columns.sort().values.tolist() == list(range(heads * readers * width))
    assert found.rows.sort().values.tolist() == list(range(heads * width))
    places = torch.arange(width)
    for head, order in enumerate(found.rows.view(heads, width) - width * torch.arange(heads)[:, None]):
        assert order.sort().values.equal(places)  # none leaves its head
        for reader in range(readers):  # all query heads of a KV head have its order
            start = width * (head * readers + reader)
            assert torch.equal(found.columns[start : start + width], start + order)
    assert found.before == pytest.approx(kept(scores, pattern))
    assert found.after == pytest.approx(kept(scores[:, found.columns], pattern))
    assert found.after > found.before


@pytest.mark.parametrize(
    ("width", "pattern"), [(4, Pattern(1, 2)), (6, Pattern(1, 2)), (8, TWO_FOUR), (6, Pattern(2, 3))]
)
def test_an_order_is_between_dealt_and_best(width, pattern):
    """Against all orders there are."""
    found_best = 0
    for seed in range(5):
        scores = random_scores(5, width, seed)
        found = order_channels(scores, pattern).after
        dealt = kept(scores[:, permute._dealt(scores, pattern.of).flatten()], pattern)
        highest = max(kept(scores[:, groups], pattern) for groups in partitions(tuple(range(width)), pattern.of))
        assert found <= highest + 1e-6 and found >= max(dealt, kept(scores, pattern)) - 1e-6
        found_best += found >= highest - 1e-6
    assert found_best >= 3


def partitions(places, of):
    """All ways to put places into groups, each as one order."""
    if not places:
        yield []
        return
    for others in itertools.combinations(places[1:], of - 1):
        group = [places[0], *others]
        for rest in partitions(tuple(place for place in places if place not in group), of):
            yield group + rest


def test_an_assignment_is_the_best_of_all():
    """Every column at one place in every group, tried."""
    scores = random_scores(5, 8)
    groups = permute._dealt(scores, 2)
    found = permute._assigned(scores, groups, Pattern(1, 2))
    first = [[groups[o, 0], *groups[i, 1:]] for order in itertools.permutations(range(4)) for i, o in enumerate(order)]
    orders = torch.tensor(first).view(-1, 8)
    best = max(kept(scores[:, order], Pattern(1, 2)) for order in orders)
    assert kept(scores[:, found.flatten()], Pattern(1, 2)) >= best - 1e-6


def test_an_order_that_is_best_stays():
    scores = torch.tensor([[1.0, 1, 0, 0, 1, 1, 0, 0]] * 3)
    found = order_channels(scores, TWO_FOUR)
    assert found.columns.tolist() == list(range(8)) and found.before == found.after == 1
    assert order_channels(torch.zeros(3, 8), TWO_FOUR).after == 0


def test_heads_that_groups_do_not_fit_into_stay():
    scores = random_scores(5, 12)
    found = order_channels(scores, TWO_FOUR, heads=2)
    assert found.columns.tolist() == found.rows.tolist() == list(range(12)) and found.before == found.after


def test_blocks_of_groups_are_assigned_as_well(monkeypatch):
    scores = random_scores(16, 96)
    whole = order_channels(scores, TWO_FOUR)
    monkeypatch.setattr(permute, "GROUPS", 7)
    blocks = order_channels(scores, TWO_FOUR)
    assert not torch.equal(whole.columns, blocks.columns)
    dealt = kept(scores[:, permute._dealt(scores, 4).flatten()], TWO_FOUR)
    assert whole.before < dealt < blocks.after <= whole.after + 0.01


# In a model


def without_zeros(monkeypatch):
    monkeypatch.setattr(sparsify_module, "keep_mask", lambda scores, *_: torch.ones_like(scores, dtype=torch.bool))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_of_every_family_is_the_same_in_every_order(family, tokens, monkeypatch):
    without_zeros(monkeypatch)
    biases = {"attention_bias": True, "mlp_bias": True}
    model, dense = tiny_model(family, **biases), tiny_model(family, **biases)
    found = masked(model, tokens)
    for block in model_shape(model).blocks:
        path = f"layers.{block.layer}.{block.reader.module}"
        new, old = (one.get_submodule(f"model.{path}").weight for one in (model, dense))
        assert not torch.equal(new, old) and torch.equal(new.sort(dim=1).values, old.sort(dim=1).values)
    assert {one.name.rpartition(".")[2] for one in found.matrices if one.retained_after} == {
        block.reader.module.rpartition(".")[2] for block in model_shape(model).blocks
    }
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_query_heads_that_share_a_kv_head_share_its_order(heads, tokens, monkeypatch):
    without_zeros(monkeypatch)
    model, dense = (tiny_model("llama", num_key_value_heads=heads) for _ in range(2))
    masked(model, tokens, "magnitude")
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("criterion", "changes"),
    [
        ("sparsegpt", {}),
        ("sparsegpt", {"refine": "dsnot"}),
        ("sparsegpt", {"feed_forward": False, "pattern": "4:8"}),
        ("wanda", {}),
        ("wanda", {"pattern": "1:2"}),
        ("wanda", {"update": True}),
        ("wanda", {"refine": "dsnot"}),
        ("ria", {"refine": "r2-dsnot", "update": True, "feed_forward": False}),
        ("symwanda", {"feed_forward": False}),
        ("gblm", {}),
        ("magnitude", {"mlp_layers": (1, 2)}),
    ],
    ids=str,
)
def test_every_way_to_a_mask_permutes_and_holds_its_pattern(criterion, changes, tokens):
    model = tiny_model("llama")
    found = masked(model, tokens, criterion, **changes)
    pattern = Pattern.parse(found.pattern)
    assert found.holds and found.achieved == pytest.approx(pattern.sparsity)
    moved = 0
    for one in found.matrices:
        assert pattern.holds(model.get_submodule(f"model.{one.name}").weight != 0)
        assert (one.retained_after is not None) == one.name.endswith(("o_proj", "down_proj"))
        if one.retained_after is not None:
            assert 0 < one.retained_before <= one.retained_after <= 1
            moved += one.retained_after > one.retained_before
    assert moved >= 3
    assert torch.isfinite(model(tokens).logits).all()


@pytest.mark.parametrize(("criterion", "changes"), [("wanda", {"refine": "dsnot", "update": True}), ("sparsegpt", {})])
def test_a_matrix_is_masked_as_if_its_inputs_had_come_in_that_order(criterion, changes, tokens, monkeypatch):
    """Permuting by hand before is the same as permuting on the way: weights, statistics and Hessian move along."""
    orders = []

    def note(*arguments):
        orders.append(order_channels(*arguments))
        return orders[-1]

    monkeypatch.setattr(sparsify_module, "order_channels", note)
    model, by_hand = tiny_model("llama"), tiny_model("llama")
    found = masked(model, tokens, criterion, **changes)
    for block, order in zip(model_shape(by_hand).blocks, orders, strict=True):
        layer = by_hand.model.layers[block.layer]
        with torch.no_grad():
            reader = layer.get_submodule(block.reader.module)
            reader.weight.copy_(reader.weight[:, order.columns])
            sparsify_module._reorder_writers(layer, block, order.rows)
    config = MoreauPrunerConfig(criterion=criterion, pattern="2:4", **changes).resolve(model.config)
    expected = sparsify(by_hand, model_shape(by_hand), tokens, config)
    for (name, one), other in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one == 0, other == 0), name
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)
    assert [one.swaps for one in found.matrices] == [one.swaps for one in expected.matrices]


def test_an_offloaded_model_is_permuted_as_a_loaded_one(tokens):
    loaded, offloaded = tiny_model("qwen2"), cpu_offload(tiny_model("qwen2"))
    masked(loaded, tokens)
    masked(offloaded, tokens)
    with torch.no_grad():
        torch.testing.assert_close(offloaded(tokens).logits, loaded(tokens).logits)


def test_a_model_of_inference_mode_is_permuted(tokens):
    with torch.inference_mode():
        model = tiny_model("qwen2")
    expected = tiny_model("qwen2")
    masked(model, tokens, "magnitude")
    masked(expected, tokens, "magnitude")
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("family", ["phi3", "starcoder2", "qwen2"])
def test_an_error_in_a_later_layer_puts_rows_and_biases_back(family, tokens):
    model = tiny_model(family)
    name = f"model.layers.2.{model_shape(model).blocks[-1].reader.module}.weight"
    weight = model.get_parameter(name)
    weight.data[0, 0] = torch.nan
    before = snapshot(model)
    with pytest.raises(NonFiniteError, match=r"layers\.2"):
        masked(model, tokens, "magnitude", targets=("mlp",))
    weight.data[0, 0] = before[-1][name][1][0, 0] = 0  # nan is not equal to itself
    assert_same_state(model, before)


def test_an_interruption_between_a_matrix_and_its_writers_leaves_all_as_it_was(tokens, monkeypatch):
    model = tiny_model("qwen2")
    before = snapshot(model)
    reorder, calls = sparsify_module._reorder_writers, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        reorder(*arguments)

    monkeypatch.setattr(sparsify_module, "_reorder_writers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        masked(model, tokens)
    assert_same_state(model, before)


# Settings and records


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "permute: concerns masks; give a pattern as well"),
        ({"pattern": "unstructured"}, "permute: concerns n:m masks, not 'unstructured'"),
        ({"pattern": "2:4", "permute": "yes"}, "permute: 'yes' is not true or false"),
    ],
)
def test_what_has_no_groups_cannot_be_permuted(fields, message):
    with pytest.raises(ConfigError, match=message):
        MoreauPrunerConfig(**{"permute": True, **fields})


def test_the_shares_are_on_record(tokens, tmp_path):
    config = MoreauPrunerConfig(criterion="wanda", pattern="2:4", permute=True, sequence_length=tokens.shape[1])
    found = MoreauPruner(config).prune(tiny_model("llama"), tokens).sparsity
    found.save(tmp_path / "sparsity_summary.json")
    assert SparsitySummary.load(tmp_path / "sparsity_summary.json") == found
    assert found.holds
    shares = [one.retained_after for one in found.matrices if one.retained_after]
    assert len(shares) == 6 and all(0.5 < share < 1 for share in shares)


def test_the_verb_permutes(tiny_folder, tmp_path, command, unverified):
    flags = ("--criterion", "magnitude", "--pattern", "2:4", "--permute", "-o", tmp_path / "out")
    code, _, err = command("prune", tiny_folder, *flags)
    assert code == 0, err
    assert MoreauPrunerConfig.from_pretrained(tmp_path / "out").mask.permute
    assert SparsitySummary.load(tmp_path / "out" / "sparsity_summary.json").matrices[3].retained_after is not None
