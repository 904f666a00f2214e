"""Surgery: what is cut computes what the masked dense model computes, and nothing else about the model changes."""

import copy
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan, apply_plan
from optimum_moreau.errors import ExportError, PlanError, UnsupportedModelError
from optimum_moreau.models.families import CUSTOM_PREFIX
from optimum_moreau.surgery.apply import BASE_PARAMETERS
from tests.tiny import FAMILIES, assert_same_state, cut_plan, snapshot, tiny_model

IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))

VARIANTS = {
    **{family: (family, {}) for family in FAMILIES},
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-wide-heads": ("llama", {"head_dim": 12}),
    "mistral-window": ("mistral", {"sliding_window": 4}),
    "qwen2-tied-window": (
        "qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3-bias-mha": ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
}
# Units removed per layer: (attention, mlp).
UNIFORM = ((1, 1, 1), (8, 8, 8))
UNEVEN = ((0, 1, 0), (3, 0, 9))
NOTHING = ((0, 0, 0), (0, 0, 0))

all_variants = pytest.mark.parametrize("variant", VARIANTS)
both_shapes = pytest.mark.parametrize("cut", [UNIFORM, UNEVEN], ids=["uniform", "uneven"])
all_families = pytest.mark.parametrize("family", FAMILIES)


def down_proj(layer):
    """The matrix that leads an MLP back to the residual stream."""
    return getattr(layer.mlp, "down_proj", None) or layer.mlp.c_proj


def build(variant, dtype=torch.float32):
    family, changes = VARIANTS[variant]
    return tiny_model(family, dtype=dtype, **changes)


def pruned(model, cut, export="auto"):
    apply_plan(model, cut_plan(model, *cut), export)
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@torch.no_grad()
def masked(model, plan):
    """A dense copy in which no removed unit reaches the residual stream."""
    model = copy.deepcopy(model)
    for index, blocks in plan.layers.items():
        layer = model.model.layers[index]
        for kind, matrix in (("attention", layer.self_attn.o_proj), ("mlp", down_proj(layer))):
            columns = matrix.weight.unflatten(1, (blocks[kind].total, -1))  # (out, units, width)
            columns[:, sorted(set(range(blocks[kind].total)) - set(blocks[kind].kept))] = 0
    return model


@all_variants
@both_shapes
@pytest.mark.parametrize("export", ["auto", "custom"])
def test_removed_equals_masked(variant, cut, export):
    model = build(variant, torch.float64)
    plan = cut_plan(model, *cut)
    expected = logits(masked(model, plan))
    assert (logits(model) - expected).abs().max() > 1e-3  # the units removed do matter
    apply_plan(model, plan, export)
    assert (logits(model) - expected).abs().max() <= 1e-9


@all_variants
def test_removing_nothing_is_the_identity(variant):
    model = build(variant)
    weights, expected, kind = model.state_dict(), logits(model), type(model)
    pruned(model, NOTHING)
    assert type(model) is kind
    assert torch.equal(logits(model), expected)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("ratio", [{"pruning_ratio": 0.0}, {"unit_ratio": 0.0}], ids=str)
def test_ratio_zero_is_the_identity(llama, tokens, ratio):
    kind, parameters, expected = type(llama), llama.num_parameters(), logits(llama)
    config = MoreauPrunerConfig(criterion="taylor", calibration_samples=2, sequence_length=16, **ratio)
    summary = MoreauPruner(config).prune(llama, tokens).summary
    assert type(llama) is kind and torch.equal(logits(llama), expected)
    assert (summary.parameters_before, summary.parameters_after) == (parameters, parameters)


@all_variants
@both_shapes
def test_every_size_follows_the_weights(variant, cut):
    model = pruned(build(variant), cut)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
            assert module.bias is None or module.bias.shape == (module.out_features,)
    for index, layer in enumerate(model.model.layers):
        attention, sizes = layer.self_attn, model.config.per_layer_config[index]
        assert attention.head_dim == model.config.head_dim
        assert attention.o_proj.in_features == sizes.num_attention_heads * attention.head_dim
        assert attention.num_key_value_groups * sizes.num_key_value_heads == sizes.num_attention_heads
        assert attention.config.num_attention_heads == sizes.num_attention_heads
        assert down_proj(layer).in_features == sizes.intermediate_size


@all_variants
@both_shapes
@pytest.mark.parametrize("export", ["auto", "custom"])
def test_a_pruned_model_is_what_its_config_builds(variant, cut, export):
    """Class by class, plain attribute by plain attribute."""
    model = pruned(build(variant), cut, export)
    rebuilt = type(model)(copy.deepcopy(model.config)).eval()
    rebuilt.load_state_dict(model.state_dict())
    rebuilt.set_attn_implementation(model.config._attn_implementation)
    assert torch.equal(logits(rebuilt), logits(model))
    plain = (bool, int, float, str, type(None))
    for (name, module), (other_name, other) in zip(model.named_modules(), rebuilt.named_modules(), strict=True):
        assert (name, type(module)) == (other_name, type(other))
        own = [{k: v for k, v in vars(m).items() if k != BASE_PARAMETERS} for m in (module, other)]
        values = [{k: v for k, v in attributes.items() if isinstance(v, plain)} for attributes in own]
        assert values[0] == values[1], name


@all_families
@both_shapes
def test_lora_trains_on_a_pruned_model_and_merges(family, cut):
    model = pruned(tiny_model(family, dtype=torch.float64), cut)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
    lora(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for name, p in lora.named_parameters() if "lora_" in name)
    expected = logits(lora.eval())
    assert torch.allclose(logits(lora.merge_and_unload()), expected, atol=1e-9)


@pytest.mark.parametrize("export", ["auto", "custom"])
@pytest.mark.parametrize("variant", ["llama", "llama-mha"])
def test_what_the_user_set_survives(variant, export):
    llama = build(variant)
    seen = []
    llama.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append("module"))
    llama.register_forward_pre_hook(lambda *_: seen.append("model"))
    llama.generation_config.max_new_tokens = 7
    llama.config.my_note = "kept"
    llama.model.embed_tokens.weight.requires_grad_(False)
    llama.model.layers[0].self_attn.o_proj.weight.requires_grad_(False)  # cut
    llama.activation_checkpointing_enable()
    llama.set_attn_implementation("eager")
    llama.train()
    llama.model.layers[2].eval()
    pruned(llama, UNIFORM, export)
    logits(llama)
    assert seen == ["model", "module"]
    assert llama.generation_config.max_new_tokens == 7 and llama.config.my_note == "kept"
    frozen = {name for name, parameter in llama.named_parameters() if not parameter.requires_grad}
    assert frozen == {"model.embed_tokens.weight", "model.layers.0.self_attn.o_proj.weight"}
    assert llama.is_activation_checkpointing and llama.config._attn_implementation == "eager"
    assert llama.training and not llama.model.layers[2].training


@all_families
@both_shapes
def test_gradient_checkpointing_changes_no_gradient_of_a_pruned_model(family, cut):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(family).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        pruned(model, cut)(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


@all_families
@both_shapes
def test_tied_embeddings_stay_one_tensor(family, cut):
    model = pruned(tiny_model(family, tie_word_embeddings=True), cut)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings


@all_families
@both_shapes
def test_a_plan_from_disk_applied_to_a_fresh_copy_gives_the_same_model(family, cut, tmp_path):
    first, second = tiny_model(family), tiny_model(family)
    plan = cut_plan(first, *cut)
    apply_plan(first, plan)
    apply_plan(second, PruningPlan.load(plan.save(tmp_path / "plan.json")))
    assert_same_state(second, snapshot(first))


def composed(first, second):
    """The plan that does at once what two plans do in turn."""
    layers = {
        index: {
            kind: replace(block, kept=tuple(block.kept[unit] for unit in second.layers[index][kind].kept))
            for kind, block in blocks.items()
        }
        for index, blocks in first.layers.items()
    }
    return replace(first, layers=layers)


@all_families
@both_shapes
@pytest.mark.parametrize("export", ["auto", "custom"])
def test_pruning_twice_equals_pruning_once(family, cut, export):
    twice, once = tiny_model(family, num_key_value_heads=4), tiny_model(family, num_key_value_heads=4)
    first = cut_plan(twice, *cut)
    apply_plan(twice, first, export)
    second = cut_plan(twice, (1, 0, 1), (2, 4, 0), seed=5)
    apply_plan(twice, second)
    apply_plan(once, composed(first, second))
    assert torch.equal(logits(twice), logits(once))
    assert twice.state_dict().keys() == once.state_dict().keys()


def test_an_own_type_whose_layers_become_equal_is_stock_again(llama):
    pruned(llama, UNEVEN)
    assert llama.config.model_type == CUSTOM_PREFIX + "llama"
    pruned(llama, ((1, 0, 1), (6, 9, 0)))
    assert llama.config.model_type == "llama" and "per_layer_config" not in llama.config.to_dict()
    assert not hasattr(llama.config, "auto_map")


@all_families
@both_shapes
def test_hidden_states_and_attentions_have_one_entry_per_layer(family, cut):
    model = tiny_model(family)
    model.set_attn_implementation("eager")
    pruned(model, cut)
    output = model(IDS, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 4
    heads = [layer.num_attention_heads for layer in model.config.per_layer_config]
    assert [tuple(attention.shape) for attention in output.attentions] == [(2, n, 12, 12) for n in heads]


@pytest.mark.parametrize("module", ["model.layers.0.mlp.up_proj", "model.layers.2.self_attn.k_proj"])
def test_a_layer_that_keeps_everything_keeps_its_very_tensors(llama, module):
    weight = llama.get_submodule(module).weight
    pruned(llama, ((0, 1, 0), (0, 5, 0)))
    assert llama.get_submodule(module).weight is weight


def wrong_type(model):
    return cut_plan(tiny_model("qwen3"), *UNIFORM), "auto"


def wrong_depth(model):
    return cut_plan(tiny_model(num_hidden_layers=2), (1, 1), (8, 8)), "auto"


def wrong_channels(model):
    return cut_plan(tiny_model(intermediate_size=20), *UNIFORM), "auto"


def wrong_weights(model):
    return replace(cut_plan(model, *UNIFORM), fingerprint="0" * 64), "auto"


def not_stock(model):
    return cut_plan(model, *UNEVEN), "stock"


@pytest.mark.parametrize(
    ("request_for", "error", "words"),
    [
        (wrong_type, PlanError, "model type 'qwen3'"),
        (wrong_depth, PlanError, "2 layers"),
        (wrong_channels, PlanError, "layers.0.mlp: plan has 20 units"),
        (wrong_weights, PlanError, "weights are not those"),
        (not_stock, ExportError, "nearest legal plan: "),
    ],
)
def test_a_refusal_leaves_the_model_as_it_was(llama, request_for, error, words):
    plan, export = request_for(llama)
    before, expected = snapshot(llama), logits(llama)
    with pytest.raises(error, match=words):
        apply_plan(llama, plan, export)
    assert_same_state(llama, before)
    assert torch.equal(logits(llama), expected)


def test_a_model_without_weights_is_refused(llama):
    plan = cut_plan(llama, *UNIFORM)
    with pytest.raises(UnsupportedModelError, match="meta device"):
        apply_plan(llama.to("meta"), plan)


@pytest.mark.parametrize("export", ["auto", "custom"])
def test_a_plan_carries_its_export(export):
    scope = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
    config = MoreauPrunerConfig(criterion="magnitude", unit_ratio=0.5, export=export, **scope)
    result = MoreauPruner(config).prune(model := tiny_model("llama"))
    assert apply_plan(again := tiny_model("llama"), result.plan) == result.summary.export
    assert type(again) is type(model)
    overridden = MoreauPruner().apply(tiny_model("llama"), result.plan, export="custom")
    assert overridden.summary.export == "moreau_llama"
    assert overridden.plan.config["export"] == "custom"
