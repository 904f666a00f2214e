"""What an engine derives from a layer's index or from counts holds of every plan that is made for it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.errors import PlanError
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import expected_plan, make_plan
from optimum_moreau.scoring.scores import UnitScores
from tests.tiny import FAMILIES, tiny_model

PERIODS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "smollm3": 4}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "pad_token_id": 0,
}


def whole_config(family, **changes):
    known = AutoConfig.for_model(family).to_dict()
    values = {name: value for name, value in SIZES.items() if name != "query_pre_attn_scalar" or name in known}
    if changes.get("sliding_window", 1) is None:
        values["layer_types"] = ["full_attention"] * values["num_hidden_layers"]
    return AutoConfig.for_model(family, **values | changes)


def shape_of(config):
    with torch.device("meta"):
        return model_shape(AutoModelForCausalLM.from_config(config))


def settings(config, engine="llama.cpp", **changes):
    return MoreauPrunerConfig(criterion="magnitude", engine=engine, **changes).resolve(config)


def plan_by_chance(shape, config, seed):
    generator = torch.Generator().manual_seed(seed)
    blocks = (*shape.blocks, *shape.wholes)
    values = {block.where: torch.rand(block.total, generator=generator, dtype=torch.float64) for block in blocks}
    return make_plan(UnitScores(values), shape, config)


def in_llama_cpp(family, depth):
    """Of each layer, whether its window slides and whether it rotates, as llama.cpp's model files have them."""
    if family == "smollm3":
        return [(False, (i + 1) % 4 != 0) for i in range(depth)]
    if family in ("gemma2", "gemma3_text"):
        return [(i % PERIODS[family] < PERIODS[family] - 1, True) for i in range(depth)]
    if family == "cohere2" or (family == "exaone4" and depth == 64):
        return [(i % 4 < 3, i % 4 < 3) for i in range(depth)]
    return [(False, True)] * depth


def in_transformers(config, plan):
    """The same of the layers that stay, as transformers' model files read the config."""
    found = []
    for i in plan.kept_layers or range(config.num_hidden_layers):
        slides = getattr(config, "layer_types", ["full_attention"] * 99)[i] == "sliding_attention"
        rotates = bool((getattr(config, "no_rope_layers", None) or [1] * 99)[i])
        if config.model_type == "cohere2" or (config.model_type == "exaone4" and config.sliding_window):
            rotates = slides
        found.append((slides, rotates))
    return found


def holds(config, plan):
    return in_transformers(config, plan) == in_llama_cpp(config.model_type, len(plan.kept_layers or plan.layers))


CASES = [(family, changes) for family in FAMILIES for changes in ({}, {"num_hidden_layers": 66})]


@pytest.mark.parametrize(("family", "changes"), [*CASES, ("exaone4", {"sliding_window": None})], ids=str)
def test_layers_that_go_leave_the_pattern_that_llama_cpp_derives_or_are_refused_before_scoring(family, changes):
    base = whole_config(family, **changes)
    shape = shape_of(base)
    for sizes in ({"pruning_ratio": 0.15}, {"unit_ratio": 0.2}, {"unit_ratio": 0.04, "whole_layers": (2, 4)}):
        config = settings(base, targets=("layers",), **sizes)
        plans, refusals = [], []
        for seed in range(4):
            try:
                plans.append(plan_by_chance(shape, config, seed))
            except PlanError as error:
                refusals.append(str(error))
        assert all(holds(base, plan) for plan in plans)
        try:
            expected_plan(shape, config)
        except PlanError as error:
            refusals.append(str(error))
        else:
            assert not refusals  # what is not refused before scoring is not refused after it
        assert all("\n" not in words and "use runtime 'transformers'" in words for words in refusals)
        assert refusals or family not in PERIODS or not plans[0].removed_layers


@pytest.mark.parametrize("family", PERIODS)
def test_the_way_that_a_refusal_names_is_one(family):
    base = whole_config(family)
    shape = shape_of(base)
    with pytest.raises(PlanError, match=r"^layers: llama\.cpp takes the last of every \d layers") as refused:
        expected_plan(shape, settings(base, targets=("layers",), pruning_ratio=0.2))
    first, last = map(int, str(refused.value).split("whole_layers ")[1].split(" ")[0].split(":"))
    config = settings(base, targets=("layers",), unit_ratio=0.99, whole_layers=(first, last))
    expected_plan(shape, config)
    plan = plan_by_chance(shape, config, 0)
    assert plan.removed_layers == tuple(range(first, last)) and holds(base, plan)
    assert "leave 'layers' out of the targets" in str(refused.value)
    assert not expected_plan(shape, settings(base, targets=("mlp",), pruning_ratio=0.1)).removed_layers


def test_a_model_that_llama_cpp_reads_otherwise_as_it_is_is_refused():
    base = whole_config("exaone4")  # slides, and has not 64 layers
    with pytest.raises(
        PlanError, match=r"'exaone4' .* at 64 layers, .* layer 0 is sliding; use runtime 'transformers'$"
    ):
        expected_plan(shape_of(base), settings(base, targets=("mlp",), pruning_ratio=0.1))
    base = whole_config("exaone4", num_hidden_layers=64)
    expected_plan(shape_of(base), settings(base, targets=("mlp",), pruning_ratio=0.1))


def test_the_depth_that_llama_cpp_takes_for_the_largest_gemma_scales_by_the_number_of_heads():
    """Of Gemma 2 27B the scale is 1/√(hidden size / heads): 4608/32 there, 256/8 here, and not the head width."""
    base = whole_config("gemma2", num_hidden_layers=46, head_dim=64)
    shape = shape_of(base)
    assert expected_plan(shape, settings(base, targets=("mlp",), pruning_ratio=0.1)).removes
    with pytest.raises(PlanError, match=r"^attention: llama\.cpp scales .* by 1/√\d+ what .* wants 1/√32; leave 'att"):
        expected_plan(shape, settings(base, targets=("attention",), unit_ratio=0.5))
    layers = settings(base, targets=("layers",), unit_ratio=0.99, whole_layers=(2, 4))
    with pytest.raises(PlanError, match=r"by 1/√64 what would stay, .* leave 'layers' out of the targets, or use"):
        expected_plan(shape, layers)
    base = whole_config("gemma2", num_hidden_layers=48, head_dim=64, query_pre_attn_scalar=64)  # comes down to 46
    with pytest.raises(PlanError, match=r"by 1/√32 what would stay, which wants 1/√64; leave 'layers'"):
        expected_plan(shape_of(base), layers)
    base = whole_config("gemma3_text", query_pre_attn_scalar=64)
    with pytest.raises(PlanError, match=r"by 1/√32 what would stay, which wants 1/√64; use runtime 'transformers'"):
        expected_plan(shape_of(base), settings(base, targets=("mlp",), pruning_ratio=0.1))


@pytest.mark.parametrize("family", ["qwen2", "phi3", "cohere", "cohere2", "olmo", "glm", "starcoder2", "nemotron"])
def test_llama_cpp_gets_no_other_head_count_where_it_derives_the_head_width_from_it(family):
    base = whole_config(family)
    shape = shape_of(base)
    with pytest.raises(PlanError, match=f"llama.cpp takes the head width of '{family}' .* leave 'attention' out"):
        expected_plan(shape, settings(base, pruning_ratio=0.2))
    assert expected_plan(shape, settings(base, targets=("mlp",), pruning_ratio=0.2)).removes
    if not shape.family.hidden_refusal:
        with pytest.raises(PlanError, match=r"^hidden: llama\.cpp takes .* leave 'hidden' out of the targets"):
            expected_plan(shape, settings(base, targets=("hidden",), pruning_ratio=0.2))


def test_vllm_rotates_an_exaone_in_which_no_layer_slides():
    base = whole_config("exaone4", num_hidden_layers=4)
    sliding = settings(base, "vllm", targets=("layers",), unit_ratio=0.99, whole_layers=(0, 3))
    with pytest.raises(PlanError, match="vllm rotates every layer of 'exaone4' where none has a sliding window"):
        expected_plan(shape_of(base), sliding)
    expected_plan(shape_of(base), settings(base, "vllm", targets=("layers",), unit_ratio=0.3))


def test_nothing_is_scored_before_the_refusal(monkeypatch):
    monkeypatch.setattr("optimum_moreau.run.scoring.score_in_rounds", lambda *_, **__: pytest.fail("scored"))
    model = tiny_model("smollm3", num_hidden_layers=8, intermediate_size=32)
    with pytest.raises(PlanError, match="the last of every 4 layers of 'smollm3'"):
        MoreauPruner(MoreauPrunerConfig("random", 0.2, targets=("layers",), engine="llama.cpp")).prune(model)


def test_a_dry_run_refuses_it_in_one_line(command, tmp_path):
    model = tiny_model("gemma2", num_hidden_layers=6, intermediate_size=32, query_pre_attn_scalar=8)
    model.save_pretrained(tmp_path / "gemma")
    flags = ("--targets", "layers", "--ratio", "0.3", "--engine", "llama.cpp", "--preset", "plain", "--dry-run")
    code, out, err = command("prune", tmp_path / "gemma", *flags)
    assert code == 2 and not out and "the last of every 2 layers of 'gemma2'" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("optimum-moreau prune: error: layers: ")


def test_a_plan_by_hand_is_refused_where_it_is_applied(tmp_path):
    model = tiny_model("smollm3", num_hidden_layers=8, intermediate_size=32)
    config = MoreauPrunerConfig(unit_ratio=0.2, targets=("layers",), criterion="random")
    plan, _ = MoreauPruner(config).plan(model)
    assert plan.removed_layers
    plan.config["engine"] = "llama.cpp"
    with pytest.raises(PlanError, match="the last of every 4 layers of 'smollm3'"):
        MoreauPruner().apply(model, plan)
    assert len(model.model.layers) == 8
