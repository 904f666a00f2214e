"""Layers that are kept as they are adjusted: a run that was killed goes on behind them, to the same model."""

from functools import partial

import pytest
import torch

from optimum_moreau import MoreauPruner
from optimum_moreau.compensation.fitting import Fitter
from optimum_moreau.compensation.kept import KeptLayers
from optimum_moreau.compensation.refit import Refit
from optimum_moreau.compensation.train import Train
from optimum_moreau.errors import CheckpointError, ConfigError
from optimum_moreau.files import read_tensors, write_tensors
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


def offloaded(**how):
    from accelerate import cpu_offload

    model = tiny_model(**how)
    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


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


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (tiny_model, {"targets": ("mlp", "hidden"), "criterion": "taylor"}),
        (tiny_model, {"targets": ("mlp", "layers"), "unit_ratio": (0.5, 0.34), "whole_layers": (0, 2)}),
        (tiny_model, {"criterion": "moreau", "steps": 2}),  # whose steps lie in the same folder
        (partial(tiny_model, dtype=torch.bfloat16), {}),
        (offloaded, {}),
    ],
    ids=["hidden", "layers", "moreau", "bfloat16", "offloaded"],
)
def test_whatever_goes_and_wherever_the_weights_are(make, changes, tokens, tmp_path, killed):
    kill, adjusted = killed
    step = Refit(**FEW)
    whole, again = make(), make()
    expected = prune(whole, tokens, step=step, **changes)
    kill(again, tokens, tmp_path, after=1, step=step, **changes)
    same_but_for_seconds(prune(again, tokens, tmp_path, step=step, **changes), expected)
    torch.testing.assert_close(again(tokens).logits, whole(tokens).logits, rtol=0, atol=0)
    assert 0 < len(adjusted) < 3


@pytest.mark.parametrize("after", range(1, 7))
def test_training_goes_on_from_wherever_it_was_killed(after, tokens, tmp_path, killed):
    kill, adjusted = killed
    whole, again = tiny_model(), tiny_model()
    expected = prune(whole, tokens)
    kill(again, tokens, tmp_path, after=after)
    same_but_for_seconds(prune(again, tokens, tmp_path), expected)
    assert_same_state(again, snapshot(whole))
    every = [(name, layer) for name in ("refit", "train") for layer in range(3)]
    assert [one for one in adjusted if one in every[:after]] == []


def test_what_is_done_is_not_done_again(tokens, tmp_path, killed):
    _, adjusted = killed
    first, second = tiny_model(), tiny_model()
    expected = prune(first, tokens, tmp_path)
    adjusted.clear()
    same_but_for_seconds(prune(second, tokens, tmp_path), expected)
    assert_same_state(second, snapshot(first))
    assert adjusted == []


def test_layers_of_other_weights_are_not_taken(tokens, tmp_path, killed):
    prune(tiny_model(), tokens, tmp_path, step=Refit(**FEW), criterion="magnitude")
    killed[1].clear()
    models = [tiny_model(), tiny_model()]
    with torch.no_grad():
        for model in models:
            for layer in model.model.layers:
                layer.mlp.down_proj.weight.mul_(1.3)  # the same signs, and so the same plan and fingerprint
    prune(models[0], tokens, step=Refit(**FEW), criterion="magnitude")
    prune(models[1], tokens, tmp_path, step=Refit(**FEW), criterion="magnitude")
    assert_same_state(models[1], snapshot(models[0]))


def test_what_is_kept_of_another_layer_is_refused(tokens, tmp_path):
    prune(tiny_model(), tokens, tmp_path, step=Refit(**FEW))
    (file,) = tmp_path.glob("*/00001.safetensors")
    values, about = read_tensors(file, "a layer")
    write_tensors(file, {name: value[:, :-1].contiguous() for name, value in values.items()}, about)
    with pytest.raises(CheckpointError, match=r"00001\.safetensors: .*: it holds other weights"):
        prune(tiny_model(), tokens, tmp_path, step=Refit(**FEW))


@pytest.mark.parametrize("inside", ["", "steps"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_scored(inside, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_moreau.run.scoring.score_units", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        prune(tiny_model(), tokens, tmp_path / "file" / inside, step=Refit(**FEW))


def test_what_is_not_kept_is_said(tokens, tmp_path, caplog):
    changes = {"criterion": "moreau", "steps": 1, "reduction": "importance"}
    prune(tiny_model(), tokens, tmp_path, step=Refit(**FEW), **changes)
    assert "adjusted layers are kept, and of the scoring by moreau nothing" in caplog.text
    prune(tiny_model(), tokens, tmp_path, step=Refit(**FEW), **changes)
    assert "3 layers are there, and are not adjusted again" in caplog.text


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
    with pytest.raises(CheckpointError, match=r"00001\.safetensors: .*an adjusted layer \(remove its folder to start"):
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
