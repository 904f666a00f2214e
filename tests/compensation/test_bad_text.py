"""What a compensation cannot work with is refused in one line, and the model is as it was."""

import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.errors import DataError, NonFiniteError
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.scoring.scores import score_units
from tests.tiny import assert_same_state, in_parts, own_windows, snapshot, tiny_model, tiny_tokenizer


def config_of(**changes):
    depth = changes.pop("depth", 3)
    values = {"criterion": "magnitude", "unit_ratio": 0.5, "compensation": "refit", "sequence_length": 16}
    scope = {"attention_layers": (0, depth), "mlp_layers": (0, depth)}
    return MoreauPrunerConfig(**{**values, "compensation_samples": 40, **scope, **changes})


def test_a_text_that_leaves_nothing_to_hold_out_is_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setattr("optimum_moreau.run.scoring.score_units", lambda *_, **__: pytest.fail("scored"))
    model = tiny_model("llama")
    before = snapshot(model)
    with pytest.raises(DataError, match="leave none to hold out") as error:
        MoreauPruner(config_of()).prune(model, torch.arange(20))
    assert "\n" not in str(error.value)
    assert_same_state(model, before)


def test_the_command_says_so_in_one_line(command, tiny_folder, tmp_path):
    file, tokenizer = tmp_path / "short.txt", tiny_tokenizer()
    file.write_text("a little text " * 3)
    length = len(tokenizer(file.read_text())["input_ids"])
    flags = ("--calibration", file, "--ratio", "0.2", "--compensation", "refit", "--seq-len", length)
    code, _, err = command("prune", tiny_folder, "-o", tmp_path / "out", *flags)
    (line,) = [line for line in err.splitlines() if "error:" in line]
    assert code == 2 and "short.txt: " in line and "leave none to hold out" in line
    assert not (tmp_path / "out").exists()


def test_constant_text_is_worked_with():
    model = tiny_model("llama")
    found = MoreauPruner(config_of()).prune(model, torch.full((60, 16), 7)).summary.compensation["held_out"]
    assert found["taken_back"] or found["compensated"] <= found["cut"]
    assert all(torch.isfinite(w).all() for w in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_the_model_is_as_it_was(value):
    model = tiny_model("llama")
    config = config_of().resolve(model.config)
    shape = model_shape(model)
    plan = make_plan(score_units(model, shape, None, config), shape, config)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(value)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    parts = in_parts(torch.randint(64, (48, 16), generator=torch.Generator().manual_seed(1)))
    with pytest.raises(NonFiniteError) as error, compensated(model, shape, plan, parts, config):
        pass
    assert "\n" not in str(error.value)
    assert all(torch.equal(w.nan_to_num(), before[name].nan_to_num()) for name, w in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"tie_word_embeddings": True}, {}),
        ({"num_hidden_layers": 1}, {"depth": 1}),
        ({}, {"unit_ratio": 0.95}),  # one unit stays in each layer
        ({"num_hidden_layers": 1}, {"depth": 1, "targets": ("mlp", "hidden"), "unit_ratio": (0.9, 0.25)}),
    ],
    ids=str,
)
def test_extreme_models_and_sizes_are_never_worse_for_it(changes, settings):
    model = tiny_model("llama", **changes)
    found = MoreauPruner(config_of(**settings)).prune(model, own_windows(model, 60, 16))
    loss = found.summary.compensation["held_out"]
    assert loss["taken_back"] == (loss["compensated"] > loss["cut"]) and loss["windows"] == 16
    assert (
        found.summary.parameters_after == sum(p.numel() for p in model.parameters()) < found.summary.parameters_before
    )
