"""What stays after a cut is adjusted: against numpy, layer by layer from plain forward passes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.compensation.rounds import rounds, without_removed
from optimum_moreau.data.parts import parted
from optimum_moreau.data.windows import CalibrationSet, load_calibration
from optimum_moreau.errors import ConfigError, DataError, ExportError, NonFiniteError, PlanError
from optimum_moreau.models.units import decoder_layers, model_shape
from optimum_moreau.planning import make_plan, removed_parameters, whole_plan
from optimum_moreau.run.run import Run
from optimum_moreau.run.scoring import score_in_rounds
from optimum_moreau.scoring.scores import score_units
from optimum_moreau.surgery.apply import apply_plan
from optimum_moreau.surgery.export import decide_export
from tests.compensation.test_aims import weighted_mean
from tests.models.test_stream import inputs_of
from tests.tiny import FAMILIES, in_parts, tiny_model

EVERYWHERE = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
OUT, DOWN = "self_attn.o_proj", "mlp.down_proj"
pytestmark = pytest.mark.usefixtures("unguarded")  # what guards has tests of its own: test_guard.py


@pytest.fixture
def windows():
    return torch.randint(64, (48, 16), generator=torch.Generator().manual_seed(1))


def planned(model, **changes):
    """A resolved config, and a plan by magnitude."""
    settings = {"criterion": "magnitude", "unit_ratio": 0.5, "compensation": "refit", **EVERYWHERE, **changes}
    config = MoreauPrunerConfig(**settings).resolve(model.config)
    shape = model_shape(model)
    return make_plan(score_units(model, shape, None, config), shape, config), config


def adjusted(model, windows, **changes):
    """In place: compensates and cuts; returns what was done and the plan."""
    plan, config = planned(model, **changes)
    with compensated(model, model_shape(model), plan, in_parts(windows), config) as found:
        apply_plan(model, replace(plan, fingerprint=None))
    return found.matrices, plan


@pytest.mark.parametrize("family", FAMILIES)
def test_within_the_block_the_whole_model_computes_what_the_cut_one_will(family, windows):
    model = tiny_model(family)
    plan, config = planned(model)
    with torch.no_grad(), compensated(model, model_shape(model), plan, in_parts(windows), config):
        expected = model(windows[:2]).logits
        apply_plan(model, replace(plan, fingerprint=None))
    with torch.no_grad():
        torch.testing.assert_close(model(windows[:2]).logits, expected, rtol=1e-4, atol=1e-4)


def test_what_comes_before_the_first_cut_is_not_adjusted(windows):
    model = tiny_model("llama", dtype=torch.bfloat16)
    before = model.model.layers[1].self_attn.o_proj.weight.clone()
    found, _ = adjusted(model, windows, targets=("mlp",), mlp_layers=(1, 2))
    assert [one.name for one in found] == [f"layers.1.{DOWN}", f"layers.2.{OUT}", f"layers.2.{DOWN}"]
    assert torch.equal(model.model.layers[1].self_attn.o_proj.weight, before)


@pytest.mark.parametrize("compensation", ["refit", "scale"])
def test_a_plan_that_removes_nothing_changes_nothing(compensation, windows):
    model = tiny_model("llama")
    before = {name: w.clone() for name, w in model.named_parameters()}
    _, config = planned(model, compensation=compensation)
    with compensated(model, model_shape(model), whole_plan(model_shape(model)), in_parts(windows), config):
        pass
    for name, w in model.named_parameters():
        torch.testing.assert_close(w, before[name], rtol=0, atol=1e-5)


def test_a_block_that_loses_nothing_is_refitted_behind_one_that_does_to_its_dense_outputs(windows):
    """Of the last layer nothing goes; its refit makes up for what the first lost, and never adds to its error."""
    model = tiny_model("llama")
    found, plan = adjusted(model, windows, mlp_layers=(0, 1), attention_layers=(0, 1))
    assert plan.layers[2]["mlp"].removed == 0
    assert [one.name for one in found][-1] == f"layers.2.{DOWN}"
    assert found[-1].error_after < found[-1].error_before


def test_layers_that_go_whole_are_passed_over(windows):
    model = tiny_model("llama")
    found, plan = adjusted(
        model, windows, targets=("mlp", "layers"), unit_ratio=(0.5, 0.4), whole_layers=(0, 3), batch_size=24
    )
    (gone,) = plan.removed_layers
    assert not any(one.name.startswith(f"layers.{gone}.") for one in found)
    assert len(decoder_layers(model)) == 2 and all(np.isfinite(one.error_after) for one in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_keep_their_dtype_and_come_near_float32(dtype, windows):
    model, reference = tiny_model("llama", dtype=dtype), tiny_model("llama")
    adjusted(model, windows)
    adjusted(reference, windows)
    assert model.dtype == dtype
    with torch.no_grad():
        near, exact = (one(windows[:4]).logits.float() for one in (model, reference))
    assert (near - exact).norm() / exact.norm() < 0.1


def test_an_error_leaves_the_model_as_it_was(windows):
    model = tiny_model("llama")
    before = {name: w.clone() for name, w in model.named_parameters()}
    plan, config = planned(model)
    with pytest.raises(KeyboardInterrupt), compensated(model, model_shape(model), plan, in_parts(windows), config):
        raise KeyboardInterrupt
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_what_is_not_finite_names_the_layer_and_leaves_the_model_as_it_was(windows):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[:, 0] = torch.inf
    before = {name: w.clone() for name, w in model.named_parameters()}
    plan, config = planned(tiny_model("llama"))
    with (
        pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.down_proj: what flows through it is not finite"),
        compensated(model, model_shape(model), plan, in_parts(windows), config),
    ):
        pass
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_too_few_tokens_warn_with_the_number_that_would_do(windows, caplog):
    model = tiny_model("llama")
    plan, config = planned(model, unit_ratio=0.05)
    with compensated(model, model_shape(model), plan, in_parts(windows[:3]), config):
        pass
    words = "compensation: 32 tokens of text for 32 columns; 512 would be better: give longer text, or more windows"
    assert f"{words} (--compensation-args windows=N)" in caplog.text


@pytest.mark.parametrize("settings", [{"compensation": "scale"}, {"targets": ("mlp",), "unit_ratio": 0.5}])
def test_they_do_not_warn_where_nothing_so_wide_is_solved_for(settings, windows, caplog):
    model = tiny_model("llama")
    plan, config = planned(model, **{"mlp_layers": (2, 3), "attention_layers": (2, 3), **settings})
    with compensated(model, model_shape(model), plan, in_parts(windows[:24]), config):
        pass
    assert not caplog.text


def test_windows_that_overlap_in_a_short_text_warn_with_what_is_distinct(caplog):
    model = tiny_model("llama")
    text = load_calibration(torch.arange(300) % 64, samples=42, sequence_length=16)
    assert text.distinct <= 300
    parts = parted(text.tokens, 14, text.places)
    plan, config = planned(model, unit_ratio=0.05)
    with compensated(model, model_shape(model), plan, parts, config, distinct=text.distinct):
        pass
    overlap = f"({16 * parts.fitted} in windows that overlap)"
    assert f"{text.distinct} tokens of text {overlap} for 32 columns; 512 would be better: give longer" in caplog.text


def test_more_tokens_make_held_out_error_no_worse(windows):
    """The refit's aim on windows it has not seen: the last layer's outputs, of the dense model."""
    held = torch.randint(64, (64, 16), generator=torch.Generator().manual_seed(9))

    def error(samples):
        model, dense = tiny_model("llama"), tiny_model("llama")
        text = torch.randint(64, (samples, 16), generator=torch.Generator().manual_seed(2))
        adjusted(model, text)
        with torch.no_grad():
            return float((model(held).logits - dense(held).logits).square().mean())

    few, some, many = (error(samples) for samples in (4, 32, 256))
    assert many <= some * 1.02 <= few * 1.05


def test_offloaded_models_are_adjusted_as_loaded_ones(windows):
    from accelerate import cpu_offload

    loaded, offloaded = tiny_model("llama"), tiny_model("llama")
    adjusted(loaded, windows)
    cpu_offload(offloaded, "cpu")
    adjusted(offloaded, windows)
    with torch.no_grad():
        torch.testing.assert_close(offloaded(windows[:2]).logits, loaded(windows[:2]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compensation": "refitt"}, "unknown compensation 'refitt'. Did you mean 'refit'?"),
        ({"compensation": "refit", "pattern": "2:4"}, "a mask takes update instead"),
        ({"compensation": "refit", "ridge": 0}, "ridge: 0 is not a number > 0"),
        ({"intercept": True}, "intercept: is a setting of refit, train, scale; take one of these, or leave it out"),
        ({"rounds": 0}, "rounds: 0 is not a whole number ≥ 1"),
        ({"rounds": 2, "targets": ("layers",)}, "rounds: only heads and MLP channels"),
        ({"rounds": 2, "budget": "search"}, "rounds: budget 'search' measures whole layers"),
        ({"rounds": 2, "pattern": "2:4"}, "rounds: only heads and MLP channels"),
        ({"schedule": "cubik"}, "schedule: unknown value 'cubik'. Did you mean 'cubic'?"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        MoreauPrunerConfig(**settings)
    assert message in str(error.value)


def test_text_is_needed(windows):
    model = tiny_model("llama")
    shape = model_shape(model)
    plan, config = planned(model)
    with pytest.raises(DataError, match="reads calibration text"), compensated(model, shape, plan, None, config):
        pass


@pytest.mark.parametrize(("schedule", "parts"), [("linear", (1 / 3, 2 / 3)), ("cubic", (19 / 27, 26 / 27))])
@pytest.mark.parametrize(
    ("size", "whole"),
    [
        ({"pruning_ratio": 0.3}, 0.3),
        ({"unit_ratio": 0.3}, 0.3),
        ({"target_parameters": 20_000}, None),
        ({"target_bytes": 80_000}, None),
    ],
)
def test_rounds_go_the_way_of_their_schedule(schedule, parts, size, whole):
    model = tiny_model("llama")
    shape = model_shape(model)
    config = MoreauPrunerConfig(criterion="magnitude", rounds=3, schedule=schedule, **size, **EVERYWHERE)
    *earlier, last = rounds(config.resolve(model.config), shape)
    (name,) = size
    base = {"target_parameters": shape.parameters, "target_bytes": shape.bytes}.get(name, 0)
    for part, one in zip(parts, earlier, strict=True):
        goal = size[name] if whole is None else whole
        assert getattr(one, name) == pytest.approx(base + part * (goal - base), abs=1)
    assert getattr(last, name) == size[name]


def test_a_round_scores_what_the_last_one_left_and_what_went_stays_gone(windows):
    model = tiny_model("llama")
    before = {name: w.clone() for name, w in model.named_parameters()}
    shape = model_shape(model)
    config = MoreauPrunerConfig(criterion="taylor", rounds=2, unit_ratio=0.5, compensation="refit", **EVERYWHERE)
    config = config.resolve(model.config)
    scored, fitted = (CalibrationSet(tokens, "windows", 0, "", tokens.numel()) for tokens in (windows[:4], windows))
    found = score_in_rounds(Run(model, shape, shape, config, scored, fitted, in_parts(windows)))
    first = make_plan(score_units(model, shape, windows[:4], config), shape, rounds(config, shape)[0])
    with compensated(model, shape, first, in_parts(windows), config, undone=True):
        expected = without_removed(score_units(model, shape, windows[:4], config), first, shape)
    for where, values in expected.values.items():
        assert torch.equal(found.values[where], values)
    final = make_plan(found, shape, config)
    for block in shape.blocks:
        assert set(final.kept(block).kept) <= set(first.kept(block).kept)
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_the_pruner_compensates_and_says_so_in_summary_and_card(tmp_path, windows, unverified):
    results = {}
    for compensation in ("none", "refit"):
        model = tiny_model("llama")
        config = MoreauPrunerConfig(
            criterion="magnitude", unit_ratio=0.5, compensation=compensation, compensation_samples=24,
            sequence_length=16, **EVERYWHERE,
        )  # fmt: skip
        pruner = MoreauPruner(config)
        pruner.prune(model, windows)
        pruner.save_pretrained(tmp_path / compensation)
        results[compensation] = pruner, model
    found = results["refit"][0]._result.summary.compensation
    assert found["step"] == "refit" and found["calibration"]["samples"] == 36 and len(found["matrices"]) == 6
    assert results["none"][0]._result.summary.compensation == {}
    card = (tmp_path / "refit" / "README.md").read_text()
    fitted = 36 - found["held_out"]["windows"]
    assert "Compensation: **refit**" in card and f"{fitted} × 16 tokens" in card
    assert "Compensation" not in (tmp_path / "none" / "README.md").read_text()
    # the plan applied to a fresh base, with the same text, gives the same model
    again = tiny_model("llama")
    with pytest.raises(DataError, match=r"the plan is to be compensated for \('refit'\).*give the calibration"):
        MoreauPruner().apply(again, results["refit"][0]._result.plan)
    MoreauPruner().apply(again, results["refit"][0]._result.plan, windows)
    for one, other in zip(again.parameters(), results["refit"][1].parameters(), strict=True):
        assert torch.equal(one, other)


FLAGGED = ("llama", "granite", "smollm3", "nemotron", "arcee", "starcoder2", "seed_oss", "ernie4_5")


@pytest.mark.parametrize("target", ["stream", "matrix"])
@pytest.mark.parametrize(
    "settings", [{"compensation": "bias"}, {"intercept": True}, {"compensation": "scale", "intercept": True}], ids=str
)
def test_with_an_intercept_the_mean_over_the_fitted_text_is_the_dense_models(settings, target):
    """Of the stream behind each matrix, or of what the matrix gives."""
    model, dense = tiny_model("llama"), tiny_model("llama")
    plan, config = planned(model, target=target, **settings)
    parts = in_parts(torch.randint(64, (240, 16), generator=torch.Generator().manual_seed(1)))
    text = torch.cat(parts.folds)
    with compensated(model, model_shape(model), plan, parts, config) as found:
        assert all(one.error_after < one.error_before for one in found.matrices)
        for layer in range(3):
            given, aims = (given_in(one, text, f"model.layers.{layer}") for one in (model, dense))
            for place in ("behind attention", "behind mlp") if target == "stream" else (OUT, DOWN):
                mean, goal = (weighted_mean(aims[place], one[place]) for one in (given, aims))
                np.testing.assert_allclose(mean, goal, atol=1e-4)


def given_in(model, text, layer):
    """Of all tokens: what two matrices give, and the stream behind each."""
    out, down = (inputs_of(model, text, f"{layer}.{module}")[1] for module in (OUT, DOWN))
    before = inputs_of(model, text, f"{layer}.input_layernorm")[0]
    return {OUT: out, DOWN: down, "behind attention": before + out, "behind mlp": before + out + down}


def readers(model):
    for block in model_shape(model).blocks:
        yield decoder_layers(model)[block.layer].get_submodule(block.reader.module)


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_are_held_by_the_stock_class_where_it_can_and_else_by_the_own_type(family, windows, tmp_path):
    model = tiny_model(family)
    config = model.config.to_dict()
    plan, settings = planned(model, compensation="bias")
    with compensated(model, model_shape(model), plan, in_parts(windows), settings, undone=True):
        assert all(module.bias is not None for module in readers(model))
    assert model.config.to_dict() == config
    assert decide_export(model.config, model_shape(model), plan, "auto").model_type == (
        family if family in FLAGGED else f"moreau_{family}"
    )
    with compensated(model, model_shape(model), plan, in_parts(windows), settings):
        apply_plan(model, replace(plan, fingerprint=None))
    assert model.config.model_type == (family if family in FLAGGED else f"moreau_{family}")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert any(module.bias.count_nonzero() for module in readers(again))
    with torch.no_grad():
        torch.testing.assert_close(again(windows[:2]).logits, model(windows[:2]).logits)
    assert not model_shape(again).without_bias  # so that it can be pruned again


def test_a_model_with_biases_of_its_own_is_pruned_again_in_its_own_type(windows, monkeypatch):
    plain = {"criterion": "magnitude", "unit_ratio": 0.5, "sequence_length": 16, **EVERYWHERE}
    model = tiny_model("mistral")
    found = MoreauPruner(MoreauPrunerConfig(**plain, compensation="bias")).prune(model, windows)
    assert any("leave the intercept out" in words for words in found.plan.adjustments)
    with monkeypatch.context() as patched, pytest.raises(ExportError, match="has biases in"):
        patched.setattr("optimum_moreau.run.scoring.score_units", lambda *_, **__: pytest.fail("scored"))
        MoreauPruner(MoreauPrunerConfig(**plain, budget="global", export="stock")).prune(model, windows)
    again = MoreauPruner(MoreauPrunerConfig(**{**plain, "mlp_layers": (0, 2)})).prune(model, windows)
    assert model.config.model_type == "moreau_mistral" and all(module.bias is not None for module in readers(model))
    assert not any("intercept" in words or "nearest" in words for words in again.plan.adjustments)


def test_an_intercept_of_nothing_removed_changes_nothing(windows):
    model = tiny_model("mistral")
    config = MoreauPrunerConfig(criterion="magnitude", pruning_ratio=0.0, compensation="bias", sequence_length=16)
    before = [name for name, _ in model.named_parameters()]
    MoreauPruner(config).prune(model, windows)
    assert model.config.model_type == "mistral" and [name for name, _ in model.named_parameters()] == before


def test_an_intercept_rules_out_the_class_without_biases_beforehand(windows):
    """Five heads do not divide 32 channels: a Mistral holds them, but none of its biases."""
    model = tiny_model("llama", num_attention_heads=8, num_key_value_heads=8)
    plan, config = planned(model, compensation="bias", unit_ratio=(0.375, 0.0))
    found = decide_export(model.config, model_shape(model), plan, "auto")
    assert found.model_type == "moreau_llama" and "4 heads, 4 KV heads" in found.advice
    with compensated(model, model_shape(model), plan, in_parts(windows), config, undone=True):
        assert decide_export(model.config, model_shape(model), plan, "auto") == found
    plan, _ = planned(model, unit_ratio=(0.375, 0.0))
    assert decide_export(model.config, model_shape(model), plan, "auto").model_type == "mistral"


def test_biases_go_again_after_an_error(windows):
    model = tiny_model("llama")
    names = [name for name, _ in model.named_parameters()]
    plan, config = planned(model, compensation="bias")
    with pytest.raises(KeyboardInterrupt), compensated(model, model_shape(model), plan, in_parts(windows), config):
        raise KeyboardInterrupt
    assert [name for name, _ in model.named_parameters()] == names
    assert not model.config.attention_bias and not model.config.mlp_bias


def test_biases_go_again_where_not_all_could_be_given(windows, monkeypatch):
    model, given = tiny_model("llama"), []

    def zeros(*size, make=torch.zeros, **kind):
        given.append(size)
        if len(given) == 3:
            raise MemoryError
        return make(*size, **kind)

    plan, config = planned(model, compensation="bias")
    with pytest.raises(MemoryError), monkeypatch.context() as patch:
        patch.setattr("optimum_moreau.compensation.biases.torch.zeros", zeros)
        with compensated(model, model_shape(model), plan, in_parts(windows), config):
            pass
    assert len(given) == 3 and not any("bias" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("budget", ["uniform", "global", "zscore"])
def test_whatever_the_budget_no_unit_comes_back_in_a_later_round(budget, criterion, windows):
    model = tiny_model("llama")
    shape = model_shape(model)
    config = MoreauPrunerConfig(
        criterion=criterion, budget=budget, rounds=4, schedule="linear", pruning_ratio=0.3, **EVERYWHERE
    ).resolve(model.config)
    scores = score_units(model, shape, windows[:4], config)
    gone = {block.where: set() for block in shape.blocks}
    for one in rounds(config, shape):
        plan = make_plan(scores, shape, one)
        for block in shape.blocks:
            now = set(range(block.total)) - set(plan.kept(block).kept)
            assert gone[block.where] <= now
            gone[block.where] = now
        with compensated(model, shape, plan, None, one, undone=True):
            scores = without_removed(score_units(model, shape, windows[:4], config), plan, shape)


def test_an_intercept_is_counted_and_said(windows):
    model = tiny_model("llama")
    config = MoreauPrunerConfig(
        criterion="magnitude", unit_ratio=0.5, compensation="bias", compensation_samples=24, sequence_length=16,
        **EVERYWHERE,
    )  # fmt: skip
    summary = MoreauPruner(config).prune(model, windows).summary
    assert summary.parameters_after == sum(p.numel() for p in model.parameters())
    added = summary.parameters_after - (summary.parameters_before - sum(summary.contributions.values()))
    assert added == sum(m.bias.numel() for m in model.modules() if getattr(m, "bias", None) is not None)


@pytest.mark.parametrize("settings", [{"compensation": "bias"}, {"compensation": "refit", "intercept": True}])
@pytest.mark.parametrize("size", [{"target_parameters": 18_000}, {"target_bytes": 72_000}])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("mistral", {}),
        ("llama", {"rounds": 2}),
        ("mistral", {"rounds": 2}),
        ("llama", {"targets": ("attention", "mlp", "layers")}),
    ],
    ids=str,
)
def test_an_upper_limit_holds_with_the_biases_of_an_intercept(
    family, changes, size, settings, windows, command, tmp_path
):
    model = tiny_model(family)
    model.config.save_pretrained(tmp_path)
    settings = {
        "criterion": "magnitude",
        "compensation_samples": 24,
        "sequence_length": 16,
        **settings,
        **size,
        **changes,
    }
    result = MoreauPruner(MoreauPrunerConfig(**settings)).prune(model, windows)
    left = sum(p.numel() for p in model.parameters())
    assert 17_000 < left == result.summary.parameters_after <= 18_000
    assert sum(result.plan.contributions.values()) == removed_parameters(result.plan, model_shape(tiny_model(family)))
    flags = [flag for name, value in {**settings, **changes}.items() for flag in flag_of(name, value)]
    code, out, err = command("plan", tmp_path, "--dry-run", *flags, "--json")
    assert code == 0 and abs(json.loads(out)["parameters_after"] - left) <= (600 if changes else 0), err


def flag_of(name, value):
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, ",".join(value) if isinstance(value, tuple) else str(value)]


def test_another_text_than_the_plans_is_said(windows, caplog):
    settings = {"criterion": "taylor", "unit_ratio": 0.5, "compensation": "refit", "compensation_samples": 24}
    pruner = MoreauPruner(MoreauPrunerConfig(**settings, calibration_samples=4, sequence_length=16, **EVERYWHERE))
    plan, _ = pruner.plan(tiny_model("llama"), windows)
    MoreauPruner().apply(tiny_model("llama"), plan, windows)
    assert "another text" not in caplog.text
    result = MoreauPruner().apply(tiny_model("llama"), plan, windows.flip(0, 1))
    assert caplog.text.count("compensation reads another text than the plan was scored on (token ids)") == 1
    assert result.summary.compensation["calibration"]["sha256"] != result.summary.calibration["sha256"]


def test_a_plan_of_another_model_is_refused_before_its_text_is_read(windows, caplog):
    windows_of = {"calibration_samples": 4, "compensation_samples": 4, "sequence_length": 16}
    config = MoreauPrunerConfig("wanda", compensation="refit", **windows_of)
    plan, _ = MoreauPruner(config).plan(tiny_model("llama"), windows)
    with pytest.raises(PlanError, match="model type"):
        MoreauPruner().apply(tiny_model("mistral"), plan, torch.zeros(1, 1).long())
    assert "another text" not in caplog.text


@pytest.mark.parametrize("asked", [{"export": "stock"}, {"engine": "vllm"}], ids=str)
def test_a_bias_that_no_stock_class_holds_is_refused_before_scoring(asked, windows, monkeypatch):
    monkeypatch.setattr("optimum_moreau.run.scoring.score_units", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(ExportError, match=r"a qwen2 has no bias in mlp\.down_proj, self_attn\.o_proj; leave the"):
        config = MoreauPrunerConfig(criterion="magnitude", compensation="bias", sequence_length=16, **asked)
        MoreauPruner(config).prune(tiny_model("qwen2"), windows)


def test_a_cut_that_fails_late_is_undone_as_far_as_it_was_adjusted(windows):
    """Matrices that were cut already get their shape back with their weights; the first error is the one raised."""
    model = tiny_model("llama")
    plan, config = planned(model)
    before = {name: w.clone() for name, w in model.named_parameters() if "o_proj" in name or "down_proj" in name}
    with (
        pytest.raises(MemoryError, match="late"),
        compensated(model, model_shape(model), plan, in_parts(windows), config),
    ):
        apply_plan(model, replace(plan, fingerprint=None))
        raise MemoryError("late")
    assert all(torch.equal(model.get_parameter(name), w) for name, w in before.items())


def test_a_plan_by_hand_is_compensated_for_only_where_it_is_asked_for():
    model = tiny_model("llama")
    plan = whole_plan(model_shape(model))
    assert not plan.config
    result = MoreauPruner().apply(model, plan)
    assert result.summary.compensation == {} and result.plan.config["compensation"]["name"] == "none"
    with pytest.raises(DataError, match="is to be compensated for"):
        MoreauPruner(MoreauPrunerConfig.best()).apply(tiny_model("llama"), plan)
