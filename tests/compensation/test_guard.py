"""Text that was held out decides whether a compensation stays: never worse there than the cut alone."""

import logging

import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.compensation.chosen import Chosen
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.models.loss import mean_loss
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.scoring.scores import score_units
from tests.tiny import assert_same_state, in_parts, own_windows, snapshot, tiny_model

SCOPE = {"attention_layers": (0, 3), "mlp_layers": (0, 3), "sequence_length": 16}
SIZES = {"heads and channels": {}, "hidden": {"targets": ("hidden",), "unit_ratio": 0.25}}


def config_of(compensation="refit", **changes):
    values = {"criterion": "magnitude", "unit_ratio": 0.5, "compensation": compensation, "compensation_samples": 160}
    return MoreauPrunerConfig(**{**values, **SCOPE, **changes})


@pytest.fixture(scope="module")
def written():
    """What a tiny LLaMA itself would write."""
    return own_windows(tiny_model("llama"), 180, 16)


@pytest.fixture
def damaging(monkeypatch):
    """Whatever is fitted is far from what was there."""

    def choose(step, w, folds):
        return Chosen(-9 * w, torch.ones(len(w), dtype=w.dtype) if step.fits_biases else None, None, 1.0, 0.5)

    monkeypatch.setattr("optimum_moreau.compensation.fitting.choose", choose)


@pytest.mark.parametrize("size", SIZES)
def test_on_text_of_the_models_own_a_refit_lowers_the_held_out_loss(size, written):
    model, parts = tiny_model("llama"), in_parts(written)
    config = config_of(**SIZES[size]).resolve(model.config)
    shape = model_shape(model)
    plan = make_plan(score_units(model, shape, None, config), shape, config)
    dense = mean_loss(model, parts.held_out, 4)
    with compensated(model, shape, plan, parts, config) as done:
        found = done.held_out
        assert not found.taken_back and found.dense < found.compensated < found.cut
        assert (found.windows, found.dense) == (len(parts.held_out), pytest.approx(dense))
        assert mean_loss(model, parts.held_out, 4) == pytest.approx(found.compensated)


@pytest.mark.parametrize("settings", [{}, {"intercept": True}, {"rounds": 2}], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_what_raises_the_loss_is_taken_back_to_the_last_bit(size, settings, written, damaging, caplog):
    if "rounds" in settings and size == "hidden":
        pytest.skip("rounds are of heads and channels")
    one, plain = tiny_model("llama"), tiny_model("llama")
    with caplog.at_level(logging.WARNING):
        result = MoreauPruner(config_of(**settings, **SIZES[size])).prune(one, written)
    rounds = {name: value for name, value in settings.items() if name == "rounds"}
    MoreauPruner(config_of("none", **rounds, **SIZES[size])).prune(plain, written)
    assert one.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(w, plain.state_dict()[name]) for name, w in one.state_dict().items())
    found = result.summary.compensation
    assert found["held_out"]["taken_back"] and found["held_out"]["compensated"] > found["held_out"]["cut"]
    words = "taken back, since it raised the loss on text that was held out:"
    assert caplog.text.count(words) == settings.get("rounds", 1)
    assert result.summary.parameters_after == sum(p.numel() for p in one.parameters())


@pytest.mark.parametrize("family", ["mistral", "llama"])
def test_biases_of_a_compensation_that_is_taken_back_go_and_the_folder_loads(
    family, written, damaging, tmp_path, unverified
):
    model = tiny_model(family)
    pruner = MoreauPruner(config_of("bias"))
    pruner.prune(model, written)
    assert not any("bias" in name for name, _ in model.named_parameters())
    pruner.save_pretrained(tmp_path / "out")
    from optimum_moreau.loading import load_model

    again = load_model(str(tmp_path / "out"), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(again(written[:2]).logits, model(written[:2]).logits)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**it was taken back: this model is cut without compensation**" in card


def test_a_dry_attempt_leaves_the_model_as_it_was(written, damaging):
    model = tiny_model("llama")
    before, config = snapshot(model), config_of("bias").resolve(model.config)
    shape = model_shape(model)
    plan = make_plan(score_units(model, shape, None, config), shape, config)
    with compensated(model, shape, plan, in_parts(written), config, undone=True) as done:
        assert done.held_out.taken_back
    assert_same_state(model, before)


def test_a_card_says_what_the_compensation_is_worth_and_an_old_summary_does_not(written, tmp_path, unverified):
    pruner = MoreauPruner(config_of())
    summary = pruner.prune(tiny_model("llama"), written).summary
    pruner.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    found = summary.compensation["held_out"]
    assert f"{found['cut']:.3f} of the cut alone, {found['compensated']:.3f} with the compensation." in card
    assert "taken back" not in card
