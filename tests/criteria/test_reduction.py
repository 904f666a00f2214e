"""What is averaged over the samples, importances or gradients: each criterion against its formula sample by sample."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.envelope import GradientEngine, Noise
from optimum_moreau.errors import ConfigError
from optimum_moreau.estimate import estimate_scoring, skeleton_of
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.models.units import model_shape
from optimum_moreau.scoring.scores import UnitScores, score_channels, score_units
from tests import score_process, warm
from tests.criteria.test_criteria import algorithm_1, assert_same, by_hand, gradients, in_scope
from tests.envelope.oracle import noise_of
from tests.tiny import assert_same_state, snapshot, tiny_model

SCOPE = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
SETTINGS = {
    "taylor": {},
    "taylor-mixed": {},
    "taylor-vector": {},
    "smoothgrad": {"passes": 2},
    "moreau": {"steps": 3, "step_size": 0.01},
    "moreau-gs": {"steps": 3, "step_size": 0.01, "eta_quantile": 0.3},
}
EVERY = pytest.mark.parametrize("criterion", list(SETTINGS))


def config_for(model, criterion, reduction="importance", **changes):
    few = SETTINGS.get(criterion, {})
    fields = {"criterion": criterion, "reduction": reduction, "sequence_length": 16, **SCOPE, **few, **changes}
    return MoreauPrunerConfig(**fields).resolve(model.config)


def scores(model, tokens, criterion, reduction="importance", **changes):
    return score_units(model, model_shape(model), tokens, config_for(model, criterion, reduction, **changes)).values


def mean_of(samples):
    return {key: sum(sample[key] for sample in samples) / len(samples) for key in samples[0]}


def quantile_of_rows(name, d):
    norms = d.norm(dim=1, keepdim=True)
    alpha = torch.quantile(norms, 0.3)
    return torch.where(norms > alpha, (1 - alpha / norms) * d, torch.zeros_like(d))


def elements_of_a_sample(model, sample, criterion):
    """Element importances of one sample by plain autograd: name → `(out, in)`."""
    w = {name: model.get_parameter(name).detach() for name in in_scope(model)}
    if criterion == "moreau":
        return algorithm_1(model, sample, rho=0.05, gamma=0.01, sigma=0.05, steps=3)
    if criterion == "moreau-gs":
        return algorithm_1(model, sample, rho=0.2, gamma=0.01, sigma=0.05, steps=3, prox=quantile_of_rows)
    if criterion == "smoothgrad":
        drawn = [gradients(model, sample, {n: noise_of(Noise(0.05), w[n], n, 0, i) for n in w}) for i in range(2)]
        return mean_of([{name: (g[name] * w[name]).abs() for name in w} for g in drawn])
    g = gradients(model, sample)
    if criterion == "taylor-mixed":
        return {name: (w[name] * g[name] - 0.5 * w[name] ** 2 * g[name] ** 2).abs() for name in w}
    return {name: (w[name] * g[name]).abs() for name in w}


@pytest.mark.parametrize("criterion", [name for name in SETTINGS if name != "taylor-vector"])
def test_the_score_is_the_mean_of_the_samples_importances(llama, tokens, criterion):
    expected = mean_of([elements_of_a_sample(llama, tokens[n : n + 1], criterion) for n in range(len(tokens))])
    rtol = 3e-3 if criterion.startswith("moreau") else 1e-4
    assert_same(scores(llama, tokens, criterion), by_hand(llama, expected.get), rtol=rtol)


@pytest.mark.parametrize("criterion", ["moreau", "moreau-gs"])
def test_relative_steps_are_of_each_samples_own_gradient(llama, tokens, criterion):
    """The mean over the samples of what the criterion gives with one sample alone."""
    settings = {"step_size": None, "relative_rho": 0.1, "step_ratio": 0.5}
    alone = [scores(llama, tokens[n : n + 1], criterion, "gradient", **settings) for n in range(len(tokens))]
    assert_same(scores(llama, tokens, criterion, **settings), mean_of(alone))


def test_the_vector_form_takes_the_absolute_value_of_each_samples_sum(llama, tokens):
    mlp, expected = llama.model.layers[1].mlp, torch.zeros(24)
    for n in range(len(tokens)):
        g = gradients(llama, tokens[n : n + 1])
        for m, dim in (("gate", 1), ("up", 1), ("down", 0)):
            w = mlp.get_submodule(f"{m}_proj").weight.detach()
            expected += (w * g[f"model.layers.1.mlp.{m}_proj.weight"]).sum(dim).abs() / len(tokens)
    found = scores(llama, tokens, "taylor-vector")["layers.1.mlp"]
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-7)


VARIANTS = ({"noise_samples": 2}, {"average_last": 2}, {"channel_group": "unit"}, {"noise": "absolute"})


@pytest.mark.parametrize(
    ("criterion", "changes"), [*((name, {}) for name in SETTINGS), *(("moreau-gs", one) for one in VARIANTS)], ids=str
)
def test_with_one_sample_the_reductions_agree(llama, tokens, criterion, changes):
    found = [scores(llama, tokens[:1], criterion, reduction, **changes) for reduction in ("gradient", "importance")]
    for where, value in found[0].items():
        torch.testing.assert_close(found[1][where], value, rtol=1e-4, atol=1e-10)


@EVERY
def test_the_score_is_the_mean_of_the_samples_scores(llama, tokens, criterion):
    """Whatever the batch size and the order; so no sample leaves anything behind for the next."""
    expected = mean_of([scores(llama, tokens[n : n + 1], criterion, "gradient") for n in range(len(tokens))])
    for text, batch_size in ((tokens, 4), (tokens, 1), (tokens.flip(0), 3)):
        found = scores(llama, text, criterion, batch_size=batch_size)
        for where, value in expected.items():
            torch.testing.assert_close(found[where], value, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("changes", [{"offload": "disk"}, {"offload": "cpu"}, {"state_dtype": "bfloat16"}], ids=str)
def test_where_delta_is_kept_changes_nothing(llama, tokens, changes):
    expected, found = scores(llama, tokens, "moreau-gs"), scores(llama, tokens, "moreau-gs", **changes)
    for where, value in expected.items():
        torch.testing.assert_close(found[where], value, rtol=5e-2 if "state_dtype" in changes else 1e-6, atol=1e-9)


def test_the_importance_is_never_less_than_that_of_the_mean_gradient(llama, tokens):
    """mean_n |g_n ⊙ w| ≥ |mean_n g_n ⊙ w|; strictly, where gradients of samples cancel."""
    for criterion in ("taylor", "taylor-vector"):
        mean, each = scores(llama, tokens, criterion, "gradient"), scores(llama, tokens, criterion)
        assert all((each[where] >= value * (1 - 1e-5)).all() for where, value in mean.items())
        assert any((each[where] > 1.1 * value).any() for where, value in mean.items())


@pytest.mark.parametrize("criterion", ["taylor-second", "gblm", "magnitude", "wanda"])
def test_it_changes_nothing_for_other_criteria(llama, tokens, criterion):
    found = [scores(llama, tokens, criterion, reduction) for reduction in ("gradient", "importance")]
    assert all(torch.equal(found[1][where], value) for where, value in found[0].items())


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_model_is_left_as_it_was(tokens, criterion, dtype):
    model = tiny_model("llama", dtype=dtype).train()
    before = snapshot(model)
    found = scores(model, tokens, criterion)
    assert_same_state(model, before)
    assert all(torch.isfinite(value).all() for value in found.values())


@EVERY
def test_hidden_channels_beside_heads(tokens, criterion):
    """Units that share their matrices, and a matrix used twice (the embedding, tied to the head)."""
    model = tiny_model("llama", tie_word_embeddings=True)
    targets = {"targets": ("attention", "mlp", "hidden")}
    expected = mean_of([scores(model, tokens[n : n + 1], criterion, "gradient", **targets) for n in range(2)])
    found = scores(model, tokens[:2], criterion, **targets)
    for where, value in expected.items():
        torch.testing.assert_close(found[where], value, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("criterion", ["taylor", "taylor-vector", "moreau"])
def test_channels_and_masks_average_importances_too(llama, tokens, criterion):
    blocks = model_shape(llama).blocks[:2]

    def channels(text, reduction):
        return score_channels(llama, blocks, text, config_for(llama, criterion, reduction))

    expected = mean_of([channels(tokens[n : n + 1], "gradient") for n in range(len(tokens))])
    for name, line in channels(tokens, "importance").items():
        torch.testing.assert_close(line, expected[name], rtol=1e-4, atol=1e-10)
    each = [elements_of_a_sample(llama, tokens[n : n + 1], criterion) for n in range(len(tokens))]
    w, importance = {name: llama.get_parameter(name).detach().clone() for name in in_scope(llama)}, mean_of(each)
    config = config_for(llama, criterion, pattern="unstructured", sparsity=0.5)
    sparsify(llama, model_shape(llama), tokens, config)
    for name, elements in importance.items():
        zeros = llama.get_parameter(name) == 0
        lowest = elements.argsort(dim=1)[:, : w[name].shape[1] // 2]
        expected_zeros = torch.zeros_like(zeros).scatter_(1, lowest, True)
        assert (zeros == expected_zeros).float().mean() > 0.995  # ties in float32


@EVERY
def test_the_estimate_counts_the_passes_as_they_run(llama, tokens, criterion, monkeypatch):
    """In passes over the calibration text: N windows, one at a time, are one."""
    config = config_for(llama, criterion, calibration_samples=len(tokens))
    windows = []
    run = GradientEngine._pass
    monkeypatch.setattr(
        GradientEngine, "_pass", lambda self, micro: windows.append(len(micro.batch)) or run(self, micro)
    )
    score_units(llama, model_shape(llama), tokens, config)
    estimate = estimate_scoring(skeleton_of(llama), model_shape(llama), config, "cpu")
    assert set(windows) == {config.criterion.cost(config).batch} == {1}
    assert estimate.passes * len(tokens) == len(windows)


def test_steps_of_single_samples_are_not_kept(llama, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(GradientEngine, "run", None)  # refused before anything is computed
    pruner = MoreauPruner(config_for(llama, "moreau"))
    with pytest.raises(ConfigError, match=r"checkpoint_dir: moreau keeps no steps .*--reduction gradient"):
        pruner.plan(llama, tokens, checkpoint_dir=tmp_path / "steps")
    assert not (tmp_path / "steps").exists()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"reduction: unknown value 'importnce'\. Did you mean 'importance'\?"):
        MoreauPrunerConfig(reduction="importnce")
    with pytest.raises(ConfigError, match="released=True takes the gradient of the mean loss; leave reduction out"):
        MoreauPrunerConfig(released=True, reduction="importance")
    assert MoreauPrunerConfig().criterion.reduction == "gradient"


def test_two_processes_give_what_one_gives(llama, tmp_path):
    """Five windows: three for one process, two for the other."""
    criteria = ["taylor", "taylor-mixed", "taylor-vector", "taylor-second", "gblm", "smoothgrad", "moreau-gs"]
    request = {"criteria": criteria, "steps": 2, "reduction": "importance"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    worker = Path(score_process.__file__)
    command = [sys.executable, "-P", worker, tmp_path]
    done = warm.run_together(command, env=os.environ | {"PYTHONPATH": str(worker.parents[1])}, timeout=300)
    assert done.returncode == 0, done.stderr
    for criterion in criteria:
        config = score_process.config_for(llama, criterion, request)
        alone = score_units(llama, model_shape(llama), score_process.windows(), config).values
        first, second = (UnitScores.load(tmp_path / f"scores-{criterion}-{r}.safetensors").values for r in range(2))
        for where, value in alone.items():
            torch.testing.assert_close(first[where], value, rtol=1e-4, atol=1e-9)
            assert torch.equal(first[where], second[where])
