"""Layers that are kept as they are adjusted: a run that was killed goes on behind them, to the same model."""

import pytest

from optimum_moreau import MoreauPruner
from optimum_moreau.compensation.fitting import Fitter
from optimum_moreau.compensation.kept import KeptLayers
from optimum_moreau.compensation.refit import Refit
from optimum_moreau.compensation.train import Train
from optimum_moreau.errors import CheckpointError, ConfigError
from tests.tiny import FAMILIES, assert_same_state, own_windows, snapshot, tiny_model

FEW = {"windows": 32, "held_out": 4}
TRAIN = Train(steps=20, learning_rate=1e-3, batch_tokens=64, **FEW)


@pytest.fixture(scope="module")
def tokens():
    return own_windows(tiny_model(), 36, 12)


def pruner(step, **changes):
    given = {"criterion": "wanda", "calibration_samples": 8, "sequence_length": 12, "unit_ratio": 0.5} | changes
    return MoreauPruner(compensation=step, **given)


def prune(model, tokens, folder=None, step=TRAIN, **changes):
    return pruner(step, **changes).prune(model, tokens, checkpoint_dir=folder)


@pytest.fixture
def killed(monkeypatch):
    """Kills a run once so many layers are kept; the list grows by every layer that is adjusted."""
    adjusted, original = [], Fitter._adjusted

    def noting(self, dense, *args):
        adjusted.append((self.compensation.name, dense.index))
        return original(self, dense, *args)

    def kill(model, tokens, folder, *, after, **how):
        kept, keep = [], KeptLayers.keep

        def once(self, *args):
            keep(self, *args)
            kept.append(args[0])
            if len(kept) == after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(KeptLayers, "keep", once)
            with pytest.raises(KeyboardInterrupt):
                prune(model, tokens, folder, **how)
        adjusted.clear()

    monkeypatch.setattr(Fitter, "_adjusted", noting)
    return kill, adjusted


def same_but_for_seconds(one, other):
    assert one.summary.compensation == other.summary.compensation


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", [Refit(**FEW), Refit(intercept=True, **FEW)], ids=["refit", "intercept"])
def test_a_refit_goes_on_to_the_same_model(family, step, tokens, tmp_path, killed):
    kill, adjusted = killed
    whole, again = tiny_model(family), tiny_model(family)
    before = snapshot(again)
    expected = prune(whole, tokens, step=step)
    kill(again, tokens, tmp_path, after=2, step=step)
    assert_same_state(again, before)
    same_but_for_seconds(prune(again, tokens, tmp_path, step=step), expected)
    assert_same_state(again, snapshot(whole))
    assert adjusted == [("refit", 2)]


@pytest.mark.parametrize("after", range(1, 7))
def test_training_goes_on_from_wherever_it_was_killed(after, tokens, tmp_path, killed):
    kill, adjusted = killed
    whole, again = tiny_model(), tiny_model()
    expected = prune(whole, tokens)
    kill(again, tokens, tmp_path, after=after)
    same_but_for_seconds(prune(again, tokens, tmp_path), expected)
    assert_same_state(again, snapshot(whole))
    every = [(name, layer) for name in ("refit", "train") for layer in range(3)]
    assert [one for one in adjusted if one in every[:after]] == []  # what a refit is taken instead for is fitted anew


def test_what_is_done_is_not_done_again(tokens, tmp_path, killed):
    _, adjusted = killed
    first, second = tiny_model(), tiny_model()
    expected = prune(first, tokens, tmp_path)
    adjusted.clear()
    same_but_for_seconds(prune(second, tokens, tmp_path), expected)
    assert_same_state(second, snapshot(first))
    assert adjusted == []


@pytest.mark.parametrize("changes", [{"seed": 1}, {"step": Refit(ridge=0.5, **FEW)}, {"unit_ratio": 0.25}], ids=str)
def test_layers_of_another_run_are_no_obstacle_and_not_taken(changes, tokens, tmp_path, killed):
    first = {"step": Refit(**FEW)}
    prune(tiny_model(), tokens, tmp_path, **first)
    killed[1].clear()
    prune(tiny_model(), tokens, tmp_path, **first | changes)
    assert killed[1] == [("refit", layer) for layer in range(3)]


@pytest.mark.parametrize("text", [b"", b"{", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "], ids=["empty", "cut", "bare"])
def test_a_damaged_layer_is_named_and_the_model_untouched(text, tokens, tmp_path):
    prune(tiny_model(), tokens, tmp_path, step=Refit(**FEW))
    (file,) = tmp_path.glob("*/00001.safetensors")
    file.write_bytes(text)
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"00001\.safetensors: .*an adjusted layer \(remove the folder to start"):
        prune(model, tokens, tmp_path, step=Refit(**FEW))
    assert_same_state(model, before)


def test_several_processes_are_refused_before_anything_is_scored(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_moreau.run.run.is_distributed", lambda: True)
    monkeypatch.setattr("optimum_moreau.run.scoring.score_units", None)
    with pytest.raises(ConfigError, match="checkpoint_dir works in one process only"):
        prune(tiny_model(), tokens, tmp_path)


def test_a_plan_alone_keeps_no_layers(tokens, tmp_path):
    with pytest.raises(ConfigError, match="checkpoint_dir: wanda keeps no steps"):
        pruner(TRAIN).plan(tiny_model(), tokens, checkpoint_dir=tmp_path / "steps")
    assert not (tmp_path / "steps").exists()
