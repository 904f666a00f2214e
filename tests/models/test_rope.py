"""State that is not a weight: a model in memory computes what its reload computes, for every kind of RoPE."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, MoreauRecovery, RecoveryConfig
from optimum_moreau.errors import CheckpointError, ExportError
from optimum_moreau.saving.verification import tolerance, verify
from tests.tiny import FAMILIES, assert_same_state, cut_plan, snapshot, tiny_model

TRAINED, LONG = 64, 96  # positions; the models have room for 128
THETA = {"rope_theta": 500.0}
OF_TRAINED = {"original_max_position_embeddings": TRAINED, **THETA}
ROPES = {
    "default": THETA,
    "linear": {"factor": 2.0, **THETA},
    "dynamic": {"factor": 2.0, **THETA},
    "yarn": {"factor": 2.0, **OF_TRAINED},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "factor": 2.0,
        **OF_TRAINED,
    },
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **OF_TRAINED},
}
CASTS = {
    "no cast": lambda model: model,
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "to": lambda model: model.to(torch.bfloat16),
}
EXPORTS = ("stock", "custom")


def roped(rope, model_type="llama", **changes):
    """Dynamic stretches beyond `max_position_embeddings`, the others beyond the trained positions."""
    positions = TRAINED if rope == "dynamic" else 128
    parameters = {"rope_type": rope, **ROPES[rope]}
    return tiny_model(model_type, max_position_embeddings=positions, rope_parameters=parameters, **changes)


def windows(length=LONG):
    return torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(0))


def buffers(model):
    return {name: buffer for name, buffer in model.named_buffers() if name not in model.state_dict()}


def assert_as_reloaded(model, folder):
    """State and logits are those of a reload, on short windows and long ones."""
    model.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.eval()
    assert again.dtype == model.dtype and buffers(again).keys() == buffers(model).keys()
    for name, buffer in buffers(again).items():
        assert buffer.dtype == buffers(model)[name].dtype and torch.equal(buffer, buffers(model)[name]), name
    with torch.no_grad():
        for length in (16, LONG, 16):
            ids = windows(length)
            assert torch.equal(again(ids, use_cache=False).logits, model(ids, use_cache=False).logits), length


def pruner(export, **changes):
    settings = {"criterion": "taylor", "unit_ratio": 0.5, "sequence_length": 16, "calibration_samples": 2, **changes}
    whole = {} if export == "custom" else {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
    return MoreauPruner(MoreauPrunerConfig(**settings, **whole, export=export))


def test_every_kind_of_rope_that_transformers_knows_for_text_is_tried():
    assert set(ROPES) == {"default", *ROPE_INIT_FUNCTIONS} - {"proportional"}  # gemma 4's alone


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("rope", ROPES)
def test_a_pruned_model_is_what_its_reload_is(tmp_path, rope, export, cast):
    model = CASTS[cast](roped(rope))
    with torch.no_grad():
        model(windows(), use_cache=False)  # dynamic and longrope change their frequencies
    pruner(export, sequence_length=LONG).prune(model, windows())
    assert model.config.model_type == ("moreau_llama" if export == "custom" else "llama")
    assert_as_reloaded(model, tmp_path)


@pytest.mark.parametrize("rope", ROPES)
def test_an_applied_and_compensated_plan_is_what_its_reload_is(tmp_path, rope):
    model = roped(rope).half()
    config = MoreauPrunerConfig(
        criterion="magnitude", compensation="refit", compensation_samples=2, sequence_length=LONG
    )
    plan = cut_plan(model, [0, 1, 1], [0, 8, 6])
    MoreauPruner(config).apply(model, plan, torch.cat([windows(), 63 - windows()]))
    assert_as_reloaded(model, tmp_path)


@pytest.mark.parametrize("rope", ["yarn", "dynamic", "longrope"])
@pytest.mark.parametrize("export", EXPORTS)
def test_a_tuned_and_a_merged_model_are_what_their_reload_is(tmp_path, tokenizer, text, rope, export):
    model = roped(rope, vocab_size=len(tokenizer)).bfloat16()
    pruner(export).prune(model, windows())
    model.bfloat16()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        model(windows(), use_cache=False)
    recovery = MoreauRecovery(RecoveryConfig(sequence_length=TRAINED, max_steps=1, batch_size=1), tokenizer)
    recovery.train(model, [text])
    assert_as_reloaded(model, tmp_path / "tuned")
    recovery.adapter.save(tmp_path / "adapter")
    model.load_state_dict(before)
    model.bfloat16()
    MoreauRecovery(tokenizer=tokenizer).merge(model, tmp_path / "adapter")
    assert_as_reloaded(model, tmp_path / "merged")


@pytest.mark.parametrize("rope", ROPES)
def test_scores_are_those_of_the_model_that_will_be_saved(rope):
    model, cast = roped(rope, dtype=torch.bfloat16), roped(rope, dtype=torch.bfloat16).bfloat16()
    with torch.no_grad():
        cast(windows(), use_cache=False)
    scores = [pruner("custom").plan(one, windows(16))[1] for one in (model, cast)]
    assert all(torch.equal(scores[0].values[key], scores[1].values[key]) for key in scores[0].values)


@pytest.mark.parametrize("rope", ROPES)
def test_planning_and_what_fails_leave_the_state_as_it_was(rope, monkeypatch):
    model = roped(rope).half()
    with torch.no_grad():
        model(windows(), use_cache=False)
    before, held = snapshot(model), {name: buffer.clone() for name, buffer in buffers(model).items()}
    attributes = {key: value for key, value in vars(model.model.rotary_emb).items() if not key.startswith("_")}
    pruner("custom", sequence_length=LONG).plan(model, windows())
    monkeypatch.setattr("optimum_moreau.run.scoring.score_units", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pruner("custom").prune(model, windows(16))
    assert_same_state(model, before)
    assert all(
        torch.equal(buffer, held[name]) and buffer.dtype == held[name].dtype for name, buffer in buffers(model).items()
    )
    after = {key: value for key, value in vars(model.model.rotary_emb).items() if not key.startswith("_")}
    assert after.keys() == attributes.keys() and all(after[key] is attributes[key] for key in after)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("export", EXPORTS)
def test_the_state_of_each_family_is_what_a_real_constructor_makes(family, export):
    model = tiny_model(family).bfloat16()
    pruner(export, criterion="magnitude").prune(model)
    fresh = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    assert buffers(model).keys() == buffers(fresh).keys()
    for name, buffer in buffers(fresh).items():
        assert buffer.dtype == buffers(model)[name].dtype and torch.equal(buffer, buffers(model)[name]), name


def test_layers_that_alternate_have_each_kinds_rope(tmp_path):
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    parameters = {
        "sliding_attention": {"rope_type": "default", **THETA},
        "full_attention": {"rope_type": "yarn", **ROPES["yarn"]},
    }
    for export in EXPORTS:
        model = tiny_model("gemma3_text", layer_types=layers, rope_parameters=parameters).half()
        pruner(export).prune(model, windows(16))
        assert_as_reloaded(model, tmp_path / export)


def test_a_fresh_process_computes_the_same_after_a_cast_and_long_windows(tmp_path):
    """Longrope, of an own type, cast to float16: all at once, with the modeling file that travels."""
    model = roped("longrope").half()
    made = pruner("custom", sequence_length=LONG)
    made.prune(model, windows())
    with torch.no_grad():
        model(windows(), use_cache=False)
    assert made.save_pretrained(tmp_path / "out").max_abs_difference == 0.0


# What cannot be loaded again is refused before any work

UNBUILDABLE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0, 1.0],
    "long_factor": [1.0, 2.0, 3.0],
    "factor": 2.0,
    **OF_TRAINED,
}


def test_a_config_that_cannot_be_loaded_again_is_refused_before_scoring(tmp_path, monkeypatch, command):
    model = roped("longrope")
    model.config.rope_parameters = UNBUILDABLE
    before = snapshot(model)
    monkeypatch.setattr("optimum_moreau.run.scoring.score_in_rounds", lambda *_, **__: pytest.fail("was scored"))
    with pytest.raises(ExportError, match=r"cannot build a 'moreau_llama' from this config .*nobody could load"):
        pruner("custom").prune(model, windows(16))
    with pytest.raises(ExportError, match="cannot build a 'moreau_llama' from this config"):
        MoreauPruner().apply(model, cut_plan(model, [0, 1, 1], [0, 8, 6]))
    assert_same_state(model, before)


def test_a_dry_run_refuses_what_cannot_be_loaded_again(tmp_path, monkeypatch, command):
    roped("longrope").save_pretrained(tmp_path)

    def cannot(config, *_):
        raise ExportError("cannot build")

    monkeypatch.setattr("optimum_moreau.surgery.export.built_from", cannot)
    for verb in ("plan", "prune"):
        code, _, said = command(verb, tmp_path, "--dry-run")
        assert code == 2 and said.rstrip().endswith("cannot build"), said


# How close is the same


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float32, 2e-6), (torch.float64, 2e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)]
)
def test_the_tolerance_follows_the_dtype(dtype, share):
    assert tolerance(dtype) == pytest.approx(share, rel=0.05)


def test_frequencies_that_were_cast_are_not_within_the_tolerance(tmp_path, monkeypatch):
    from contextlib import nullcontext

    model = tiny_model(
        "llama",
        dtype=torch.float16,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        initializer_range=0.4,
    )
    model.save_pretrained(tmp_path)
    model.half()
    assert verify(model, tmp_path, windows()).max_abs_difference == 0.0
    monkeypatch.setattr("optimum_moreau.saving.verification.as_reloaded", lambda _: nullcontext())
    with pytest.raises(CheckpointError, match="logits differ"):
        verify(model, tmp_path, windows())
