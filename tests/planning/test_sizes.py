"""Sizes in the user's own terms, and the shapes that engines read."""

import json
import time

import pytest
import torch
from safetensors import safe_open

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, apply_plan
from optimum_moreau.errors import PlanError
from optimum_moreau.estimate import estimate_scoring
from optimum_moreau.estimate.scoring import activation_bytes
from optimum_moreau.loading import load_skeleton
from optimum_moreau.models.units import Block, model_shape
from optimum_moreau.planning import Kept, expected_plan, removed_parameters
from optimum_moreau.planning.runtimes import LegalCounts
from tests.tiny import FAMILIES, cut_plan, tiny_model

ALL_LAYERS = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
WIDE = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8, "intermediate_size": 160}


def pruned(model, **settings):
    return MoreauPruner(MoreauPrunerConfig(criterion="magnitude", **settings)).prune(model)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# Sizes


@pytest.mark.parametrize(
    "targets", [("mlp",), ("attention", "mlp"), ("hidden",), ("layers", "mlp"), ("layers",)], ids=",".join
)
@pytest.mark.parametrize("budget", ["uniform", "global"])
@pytest.mark.parametrize("share", [0.95, 0.9, 0.85])
def test_at_most_the_target_parameters_are_left(targets, budget, share):
    model = tiny_model("llama", num_hidden_layers=6, **WIDE)
    before = parameters(model)
    target = int(share * before)
    scope = {"attention_layers": (0, 6), "mlp_layers": (0, 6), "whole_layers": (0, 6)}
    pruned(model, target_parameters=target, targets=targets, budget=budget, **scope)
    assert parameters(model) <= target
    coarsest = {("layers",): 0.17, ("hidden",): 0.13}.get(targets, 0.04)  # a layer, or eight of 64 hidden channels
    assert target - parameters(model) <= coarsest * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_most_the_target_bytes_are_saved(dtype, tmp_path):
    model = tiny_model("llama", dtype=dtype, **WIDE)
    target = int(0.8 * sum(p.numel() * p.element_size() for p in model.parameters()))
    pruned(model, target_bytes=target, attention_layers=(0, 3), mlp_layers=(0, 3))
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (a file, not a dictionary)
    saved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert 0.97 * target <= saved <= target


@pytest.mark.parametrize("targets", [("layers",), ("hidden",), ("layers", "hidden"), ("hidden", "mlp")], ids=",".join)
def test_an_unreachable_ratio_is_refused_with_the_range_and_the_range_is_true(targets):
    model = tiny_model("llama", num_hidden_layers=6)
    shape = model_shape(model)

    def plan(ratio):
        config = MoreauPrunerConfig("magnitude", ratio, targets=targets).resolve(model.config)
        return expected_plan(shape, config)

    with pytest.raises(PlanError, match="which reaches from 0 to") as refused:
        plan(0.99)
    most = float(str(refused.value).split("from 0 to ")[1].split(";")[0])
    assert removed_parameters(plan(most), shape) / shape.parameters == pytest.approx(most, abs=1e-4)


# Engines


def legal(kept, *, groups=8, n_rep=4, **rules):
    block = Block(0, "attention", (), groups, 1, n_rep=n_rep)
    return groups - kept in LegalCounts(**rules).removable(block)


def test_vllm_splits_query_heads_and_splits_or_copies_kv_heads():
    """32 heads in 8 KV groups over 4 devices: 16 heads in 4 groups, or 8 in 2 (copied), but not 24 in 6."""
    assert [kept for kept in range(1, 9) if legal(kept, runtime="vllm", devices=4)] == [1, 2, 4, 8]
    assert [kept for kept in range(1, 9) if legal(kept, runtime="transformers", devices=4)] == [4, 8]
    assert [kept for kept in range(1, 9) if legal(kept, runtime="vllm", devices=3)] == [3, 6]


def test_no_legal_number_of_heads_is_refused_with_the_device_counts_that_would_do():
    block = Block(5, "attention", (), 4, 1, n_rep=1)
    with pytest.raises(
        PlanError, match=r"layers\.5\.attention: .* tensor_parallel=5; tensor_parallel may be 1, 2, 3, 4$"
    ):
        LegalCounts(runtime="vllm", devices=5).removable(block)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "arcee"])
def test_vllm_gets_uniform_stock_shapes_that_split(family, devices):
    model = tiny_model(family, **WIDE)
    result = pruned(model, pruning_ratio=0.15, engine="vllm", tensor_parallel=devices)
    config = model.config
    assert not config.model_type.startswith("moreau_") and "per_layer_config" not in config.to_dict()
    assert config.num_attention_heads % devices == config.num_key_value_heads % devices == 0
    assert config.intermediate_size % devices == 0
    assert any("vllm" in line for line in result.plan.adjustments)
    assert result.plan.config["export"] == "stock"


def test_llama_cpp_gets_rows_that_it_can_quantise():
    model = tiny_model("llama", **WIDE)
    result = pruned(model, pruning_ratio=0.2, engine="llama.cpp", targets=("attention", "mlp", "hidden"))
    assert model.config.intermediate_size % 32 == model.config.hidden_size % 32 == 0
    assert any("llama.cpp quantises rows of 32" in line for line in result.plan.adjustments)


def test_heads_that_must_divide_the_hidden_size_do_where_no_other_class_holds_them():
    model = tiny_model("arcee", **WIDE)
    result = pruned(model, unit_ratio=0.4, export="stock", attention_layers=(0, 3), mlp_layers=(0, 3))
    assert model.config.num_attention_heads == 4  # 5 would be nearest, 64 % 5 > 0
    assert result.plan.adjustments == ("4 of 8 KV groups stay: the heads must divide the hidden size 64",)


def test_uniform_gives_layers_of_different_shape_one_shape():
    model = tiny_model("llama", num_key_value_heads=4)
    apply_plan(model, cut_plan(model, (0, 1, 2), (0, 4, 9)))
    assert model.config.model_type == "moreau_llama"
    pruned(model, pruning_ratio=0.3, uniform=True, attention_layers=(0, 3), mlp_layers=(0, 3))
    assert model.config.model_type in ("llama", "mistral")


def test_rules_hold_for_what_is_not_cut_and_under_a_global_budget():
    three = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "hidden_size": 48}
    with pytest.raises(PlanError, match=r"layers\.0\.attention: 6 heads in 3 KV groups cannot be split over"):
        pruned(tiny_model("llama", **three), pruning_ratio=0.1, targets=("mlp",), engine="vllm", tensor_parallel=4)
    model = tiny_model("mistral", **three)
    scope = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
    pruned(model, pruning_ratio=0.2, budget="global", tensor_parallel=2, **scope)
    assert all(layer.num_key_value_heads == 2 for layer in model.config.per_layer_config)
    assert all(layer.intermediate_size % 2 == 0 for layer in model.config.per_layer_config)


def test_vllm_gets_no_other_head_count_where_it_derives_the_head_width_from_it():
    with pytest.raises(PlanError, match="vllm takes the head width of 'starcoder2'"):
        pruned(tiny_model("starcoder2"), unit_ratio=0.5, engine="vllm")
    pruned(model := tiny_model("starcoder2"), unit_ratio=0.5, engine="vllm", targets=("mlp",))
    assert model.config.model_type == "starcoder2"


def test_a_target_just_below_a_coarse_step_is_found_at_once():
    model = tiny_model("llama", num_hidden_layers=6)
    shape = model_shape(model)
    layer = shape.wholes[0].unit_parameters
    config = MoreauPrunerConfig("magnitude", targets=("layers",), target_parameters=shape.parameters - layer - 1)
    start = time.perf_counter()
    plan = expected_plan(shape, config.resolve(model.config))
    assert removed_parameters(plan, shape) == 2 * layer and time.perf_counter() - start < 1


def test_what_could_not_be_met_is_said():
    model = tiny_model("llama", num_hidden_layers=6)
    plan = pruned(model, pruning_ratio=0.03, targets=("layers",)).plan
    assert plan.adjustments[0] == "no layers go: the fewest that can are more than their part"
    plan = pruned(tiny_model("llama", num_hidden_layers=6), pruning_ratio=0.2, targets=("layers",)).plan
    assert "of the parameters go instead of 20.0%: the nearest that can be" in plan.adjustments[-1]
    plan = pruned(tiny_model("llama", num_key_value_heads=4), unit_ratio=0.25, **ALL_LAYERS).plan
    assert plan.adjustments[-1] == "exported as mistral, the same network: 3 heads do not divide the hidden size 32"


# What is known from config.json alone


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [("attention", "mlp"), ("layers",), ("attention", "mlp", "layers")], ids=",".join)
def test_a_dry_run_foretells_what_pruning_does(family, targets, command, tmp_path):
    model = tiny_model(family, num_hidden_layers=4)
    model.config.save_pretrained(tmp_path)
    flags = ("--criterion", "magnitude", "--ratio", 0.2, "--targets", ",".join(targets), "--json")
    code, out, err = command("plan", tmp_path, "--dry-run", *flags)
    assert code == 0, err
    foretold = json.loads(out)
    before = parameters(model)
    summary = pruned(model, pruning_ratio=0.2, targets=targets).summary
    assert foretold["parameters_before"] == before
    gone = [layer is None for layer in summary.layers_after]
    if targets != ("layers",):  # layers in and outside of the scope differ, and which go follows the scores
        assert foretold["export"] == summary.export
    assert foretold["parameters_after"] == parameters(model) == summary.parameters_after
    assert sum(layer is None for layer in foretold["layers_after"]) == sum(gone)
    itemsize = model.dtype.itemsize
    kept = [layer for layer in model.config.per_layer_config]
    cache = sum(2 * layer.num_key_value_heads * model.config.head_dim * itemsize for layer in kept)
    assert foretold["kv_bytes_per_token_after"] == cache
    assert foretold["bytes_after"] == itemsize * summary.parameters_after
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_a_dry_run_of_70b_allocates_nothing_and_answers_in_seconds(command, tmp_path):
    from optimum_moreau.models.memory import resident_bytes

    shape = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16", **shape, **heads}))
    before, start = resident_bytes(), time.process_time()  # wall time depends on what else the machine does
    code, out, _ = command("plan", tmp_path, "--dry-run", "--target-bytes", "100GB", "--json")
    assert code == 0 and time.process_time() - start < 5
    assert resident_bytes() - before < 2**28
    found = json.loads(out)
    assert found["parameters_before"] == 70_553_706_496
    assert 0.999 * 100e9 < found["bytes_after"] <= 100e9
    assert found["scoring"]["model_bytes"] == 2 * 70_553_706_496
    assert found["kv_bytes_per_token_before"] == 80 * 2 * 8 * 128 * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_autograd_saves_and_grow_with_the_tokens(family, tmp_path):
    tiny_model(family, num_hidden_layers=4).config.save_pretrained(tmp_path)
    skeleton = load_skeleton(str(tmp_path))
    shape = model_shape(skeleton)

    def count(windows, length, layers):
        config = MoreauPrunerConfig(attention_layers=layers, mlp_layers=layers).resolve(skeleton.config)
        return activation_bytes(skeleton, shape.scored(config), windows, length)

    assert count(2, 31, (0, 4)) < count(4, 31, (0, 4)) < 2.1 * count(2, 31, (0, 4))
    assert count(2, 62, (0, 4)) == pytest.approx(2 * count(2, 31, (0, 4)), abs=1)
    assert count(2, 31, (3, 4)) < count(2, 31, (0, 4))  # nothing is saved below the first layer in scope


def test_activations_of_a_llama_are_those_counted_on_real_tensors():
    """All of one layer's saved tensors by hand, on a model with weights."""
    model = tiny_model("llama", num_hidden_layers=4)
    ids = torch.randint(0, 64, (3, 31))
    shape = model_shape(model)
    config = MoreauPrunerConfig(attention_layers=(1, 3), mlp_layers=(1, 3)).resolve(model.config)
    names = {name for block in shape.in_scope(config) for name in block.weight_names().values()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.requires_grad
    real = sum(size for size, _ in storages.values()) + 2 * 4 * ids.numel() * 64
    foretold = activation_bytes(model.to("meta"), shape.in_scope(config), 3, 31)
    assert foretold == pytest.approx(real, rel=0.1)


def test_the_estimate_grows_with_what_the_criterion_holds():
    skeleton = tiny_model("llama").to("meta")
    shape = model_shape(skeleton)

    def peak(**settings):
        config = MoreauPrunerConfig(**settings).resolve(skeleton.config)
        return estimate_scoring(skeleton, shape, config, "cpu")

    assert peak(criterion="magnitude").passes == 0
    assert peak(criterion="taylor").passes == 1
    assert peak(criterion="moreau", noise_samples=3).passes == 30
    assert peak(criterion="taylor").state_bytes < peak(criterion="moreau").state_bytes
    assert peak(criterion="taylor", batch_size=1).pass_bytes < peak(criterion="taylor").pass_bytes
    assert peak(criterion="moreau").model_bytes == 4 * shape.parameters


def test_a_plan_by_hand_that_keeps_all_removes_nothing():
    model = tiny_model("llama")
    plan = cut_plan(model, (0, 0, 0), (0, 0, 0))
    assert removed_parameters(plan, model_shape(model)) == 0
    assert plan.kept(model_shape(model).hidden) == Kept(tuple(range(32)), 32)
