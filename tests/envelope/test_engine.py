"""The scoring engine: what the oracle computes, in the memory it promises, on one process or several, killed or not."""

import json
import os
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan
from optimum_moreau.envelope import (
    GradientEngine,
    LossGradient,
    Micro,
    Noise,
    State,
    scoring_mode,
    smoothed_gradient,
)
from optimum_moreau.errors import CheckpointError, ConfigError, NonFiniteError, OutOfMemoryError, UnsupportedModelError
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.scoring.scores import UnitScores, UnitSums, score_units
from tests import warm
from tests.envelope.oracle import moreau_gradient, noise_of
from tests.tiny import FAMILIES, assert_same_state, snapshot, tiny_model

ALL = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
WORKER = Path(__file__).parents[1] / "score_process.py"


def config_for(model, criterion="moreau", **changes):
    few = {"steps": 3} if criterion.startswith("moreau") else {}
    return MoreauPrunerConfig(**{"criterion": criterion, "unit_ratio": 0.5, **ALL, **few, **changes}).resolve(
        model.config
    )


def oracle(model, tokens, config):
    """Unit scores of `moreau` by the plain statement of Algorithm 1 (oracle.py)."""
    blocks = model_shape(model).scored(config)
    names = dict.fromkeys(name for block in blocks for name in block.weight_names().values())
    own = config.criterion
    with scoring_mode(model), torch.no_grad():
        weights = {name: model.get_parameter(name) for name in names}
        found = moreau_gradient(
            LossGradient(model, [tokens]),
            weights,
            rho=own.rho or own.relative_rho,
            step_size=own.step_size or own.relative_rho * own.step_ratio,
            steps=own.steps,
            noise=Noise(own.sigma, seed=config.seed),
            noise_samples=own.noise_samples,
            relative=own.rho is None,
        )
        sums = UnitSums(blocks)
        for name, g in found.items():
            sums.add(name, (g * weights[name].float()).abs())
    return sums.combined("sum")


@pytest.mark.parametrize("targets", [("attention", "mlp"), ("hidden",), ("attention", "mlp", "hidden")], ids=",".join)
@pytest.mark.parametrize("family", ["llama", "phi3", "glm4", "qwen3", "exaone4"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_engine_is_the_oracle(family, targets, tied, tokens):
    model = tiny_model(family, tie_word_embeddings=tied)
    config = config_for(model, targets=targets)
    found = score_units(model, model_shape(model), tokens, config)
    expected = oracle(model, tokens, config)
    assert found.values.keys() == expected.keys()
    for where, value in expected.items():
        torch.testing.assert_close(found.values[where], value, rtol=1e-5, atol=0)
    shape = model_shape(model)
    plans = [make_plan(type(found)(values), shape, config) for values in (found.values, expected)]
    assert plans[0] == plans[1]


PASSES = ({"batch_size": 1}, {"batch_size": 3}, {"noise_samples": 2, "batch_size": 2})
CASES = [*zip(FAMILIES, cycle(PASSES), strict=False), *(("llama", changes) for changes in PASSES[1:])]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_several_passes_make_one_gradient(family, changes, tokens):
    model = tiny_model(family)
    config = config_for(model, **changes)
    found, expected = score_units(model, model_shape(model), tokens, config).values, oracle(model, tokens, config)
    for where, value in expected.items():
        torch.testing.assert_close(found[where], value, rtol=1e-4, atol=1e-9)


ABSOLUTE = {"rho": 0.5, "step_size": 0.1, "sigma": 0.1}


@pytest.mark.parametrize("changes", [{}, {"dtype": torch.float16}, {"reduction": "importance"}], ids=str)
def test_relative_steps_score_one_function_the_same_however_its_weights_are_scaled(changes, tokens):
    """2·up_proj with ½·down_proj is the same function: its channels score the same, unlike with absolute steps."""
    dtype = {name: value for name, value in changes.items() if name == "dtype"}
    changes = {name: value for name, value in changes.items() if name != "dtype"}
    models = [tiny_model("llama", **dtype) for _ in range(2)]
    for name, w in models[1].named_parameters():
        w.data *= 8 if "up_proj" in name else 1 / 8 if "down_proj" in name else 1
    steps = {"relative_rho": 0.1, "step_ratio": 0.5}
    for settings, same in ((steps, True), (ABSOLUTE, False)):
        found = [
            score_units(model, model_shape(model), tokens, config_for(model, **settings, **changes)).values
            for model in models
        ]
        rtol = 2e-2 if dtype else 1e-4  # w + δ + z is rounded to float16 in both
        assert same == all(torch.allclose(v, found[1][k], rtol=rtol, atol=0) for k, v in found[0].items() if "mlp" in k)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_relative_steps_move_every_matrix_by_the_same_share_at_first(state_dtype, tokens, monkeypatch):
    """After a step δ = −γ_W·g, of the share γ/ρ·ρ̂ of ‖W‖, and −δ/ρ_W = γ/ρ·g: Taylor's score, but for the noise."""
    model, shares = tiny_model("llama"), {}
    put = State.put

    def watch(state, name, tensor):
        shares[name] = float(tensor.float().norm() / model.get_parameter(name).norm())
        put(state, name, tensor)

    monkeypatch.setattr(State, "put", watch)
    settings = {"relative_rho": 0.1, "step_ratio": 0.5, "sigma": 0.0, "steps": 1, "state_dtype": state_dtype}
    found = score_units(model, model_shape(model), tokens, config_for(model, **settings)).values
    assert len(shares) == 21 and all(share == pytest.approx(0.05, rel=1e-2) for share in shares.values())
    taylor = score_units(model, model_shape(model), tokens, config_for(model, "taylor")).values
    for where, value in taylor.items():
        torch.testing.assert_close(found[where], 0.5 * value, rtol=1e-4 if state_dtype == "float32" else 1e-2, atol=0)


@pytest.mark.parametrize("group", ["row", "unit"])
@pytest.mark.parametrize("changes", [{}, {"average_last": 2}, {"noise_samples": 2}], ids=str)
def test_a_state_on_disk_changes_no_bit(group, changes, tokens):
    model = tiny_model("llama")
    kept = [
        score_units(
            model, model_shape(model), tokens, config_for(model, "moreau-gs", channel_group=group, offload=o, **changes)
        )
        for o in (None, "cpu", "disk")
    ]
    for other in kept[1:]:
        assert all(torch.equal(value, other.values[where]) for where, value in kept[0].values.items())


def test_a_state_in_bfloat16_scores_nearly_the_same(tokens):
    model = tiny_model("llama")
    full, half = (
        score_units(model, model_shape(model), tokens, config_for(model, state_dtype=dtype)).values["layers.1.mlp"]
        for dtype in ("float32", "bfloat16")
    )
    assert not torch.equal(full, half)
    assert torch.corrcoef(torch.stack([full, half]))[0, 1] > 0.999


def test_the_model_is_its_own_again_after_a_run_and_after_an_error(tokens):
    model = tiny_model("llama").train()
    before = snapshot(model)
    names = [name for name, _ in model.named_parameters() if "_proj" in name]

    def fail(name, g, scale):
        raise RuntimeError("stop")

    with scoring_mode(model):
        engine = GradientEngine(model, names)
        engine.run([Micro(tokens, 1.0, None, "")], lambda name, g, scale: None)
        with pytest.raises(RuntimeError, match="stop"):
            engine.run([Micro(tokens, 1.0, None, "")], fail)
    assert_same_state(model, before)
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_graph_is_kept_below_the_first_layer_in_scope(tokens):
    model = tiny_model("llama")
    needs = {}

    def watch(index):
        def hook(module, args, output):
            needs[index] = output.requires_grad

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(watch(index))
    with scoring_mode(model), torch.no_grad():
        GradientEngine(model, ["model.layers.1.mlp.up_proj.weight"]).run(
            [Micro(tokens, 1.0, None, "")], lambda *_: None
        )
    assert needs == {0: False, 1: True, 2: True}


def test_only_the_weights_in_scope_move():
    """Embedding, norms and head are fixed: a run over one matrix draws noise for that matrix alone."""
    model, moved = tiny_model("llama"), []

    def move(name, w, out):
        moved.append(name)
        return out.copy_(w)

    with scoring_mode(model), torch.no_grad():
        engine = GradientEngine(model, ["model.layers.2.mlp.up_proj.weight"])
        engine.run([Micro(torch.arange(8)[None], 1.0, move, "")], lambda *_: None)
    assert set(moved) == {"model.layers.2.mlp.up_proj.weight"} and len(moved) == 1  # its input needs no gradient


def test_a_weight_that_no_linear_layer_holds_is_refused(llama):
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight: a LlamaRMSNorm cannot be scored"):
        GradientEngine(llama, ["model.norm.weight"])


def test_an_infinite_gradient_is_named(llama, tokens):
    name = "model.layers.1.self_attn.v_proj.weight"
    llama.get_submodule(name.removesuffix(".weight")).register_full_backward_hook(
        lambda module, before, after: tuple(None if g is None else g * float("inf") for g in before)
    )
    names = [f"model.layers.{i}.self_attn.v_proj.weight" for i in range(3)]
    with (
        scoring_mode(llama),
        torch.no_grad(),
        pytest.raises(NonFiniteError, match=r"here: the gradient of model\.layers"),
    ):
        GradientEngine(llama, names).run([Micro(tokens, 1.0, None, "here")], lambda *_: None)


# float16


def test_loss_scaling_saves_gradients_from_underflow():
    """In float16 gradients of a small loss fall below 6e-8; scaled up they are those of float32."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 64, (8, 96))
    full, half = tiny_model("llama"), tiny_model("llama", dtype=torch.float16)
    names = [name for name, _ in full.named_parameters() if "_proj" in name]
    with torch.no_grad():
        for model in (full, half):
            model.model.norm.weight.mul_(1e-5)  # a nearly flat loss

    def gradients(model, scaled):
        found = {}
        with scoring_mode(model), torch.no_grad():
            engine = GradientEngine(model, names)
            if not scaled:
                engine._loss_scale = 1.0
            engine.run(
                [Micro(tokens, 1.0, None, "")], lambda name, g, scale: found.__setitem__(name, g.float() * scale)
            )
        return torch.cat([found[name].flatten() for name in names])

    expected, plain, scaled = gradients(full, False), gradients(half, False), gradients(half, True)
    lost = ((plain == 0) & (expected != 0)).float().mean()
    assert lost > 0.1
    assert ((scaled == 0) & (expected != 0)).float().mean() < 0.1 * lost
    assert (scaled - expected).norm() < 0.1 * (plain - expected).norm()


# Noise


def test_noise_is_normal_and_independent_of_layer_and_step():
    w = torch.ones(700, 700)
    noise = Noise(1.0, relative=False, seed=5)
    draws = [
        noise_of(noise, w, name, step, i) for name, step, i in (("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1))
    ]
    n = w.numel()
    for z in draws:
        z = z.double()
        assert abs(z.mean()) < 5 / n**0.5
        assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
        assert abs((z**4).mean() / z.var() ** 2 - 3) < 5 * (24 / n) ** 0.5
        assert abs((z**3).mean()) < 5 * (15 / n) ** 0.5
        lagged = torch.stack([z.flatten()[:-1], z.flatten()[1:]])
        assert abs(torch.corrcoef(lagged)[0, 1]) < 5 / n**0.5
        share = (z.abs() > 3).double().mean()
        assert abs(share - 0.0027) < 5 * (0.0027 / n) ** 0.5
    between = torch.corrcoef(torch.stack([z.flatten() for z in draws])) - torch.eye(len(draws))
    assert between.abs().max() < 5 / n**0.5


def test_moved_weights_are_weight_plus_delta_plus_noise():
    w = torch.randn(300, 500, generator=torch.Generator().manual_seed(0))
    delta = torch.randn(300, 500, generator=torch.Generator().manual_seed(1))
    noise = Noise(0.1, seed=2)
    z = noise_of(noise, w, "x", 1, 0)
    torch.testing.assert_close(noise.moved(w, delta, "x", 1, 0), w + delta + z)
    torch.testing.assert_close(noise.moved(w, None, "x", 1, 0, out=torch.empty_like(w)), w + z)
    assert torch.equal(Noise(0.0).moved(w, None, "x", 1, 0), w)
    half = noise.moved(w.bfloat16(), delta, "x", 1, 0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), w + delta + z, rtol=0.02, atol=0.02)


def test_the_smoothed_gradient_of_the_engine_is_that_of_the_oracle(llama, tokens):
    names = [name for name, _ in llama.named_parameters() if "mlp" in name]
    noise, found = Noise(0.1, seed=1), {}
    with scoring_mode(llama), torch.no_grad():
        weights = {name: llama.get_parameter(name) for name in names}
        expected = smoothed_gradient(LossGradient(llama, [tokens]), weights, noise, draws=2)
        micros = [
            Micro(tokens, 0.5, lambda name, w, out, i=i: noise.moved(w, None, name, 0, i, out=out), "")
            for i in range(2)
        ]
        GradientEngine(llama, names).run(micros, lambda name, g, scale: found.__setitem__(name, g * scale))
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)


# Processes of their own


def worker(folder, *, how=warm.run, check=True):
    """Runs `score_process.py` as the request in a folder says."""
    command = [sys.executable, "-P", str(WORKER), str(folder)]
    done = how(command, timeout=300, env=os.environ | {"PYTHONPATH": str(WORKER.parents[1])})
    assert not check or done.returncode == 0, done.stderr
    return done


TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone")
# with --cpu accelerate starts one process only
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")


@pytest.mark.parametrize("batch_size", [None, 1])  # 1: of five windows one process makes three passes, the other two
def test_two_processes_make_the_plan_of_one(batch_size, tmp_path):
    criteria = ["moreau", "taylor-second", "taylor-mixed", "smoothgrad"]
    plans, scores = ({criterion: [] for criterion in criteria} for _ in range(2))
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        (folder / "request.json").write_text(json.dumps({"criteria": criteria, "steps": 3, "batch_size": batch_size}))
        worker(folder, how=warm.run_together if processes == 2 else warm.run)
        for criterion in criteria:
            plans[criterion] += [PruningPlan.load(path).layers for path in sorted(folder.glob(f"plan-{criterion}-*"))]
            scores[criterion] += [UnitScores.load(path).values for path in sorted(folder.glob(f"scores-{criterion}-*"))]
    for criterion in criteria:
        alone, first, second = plans[criterion]
        assert alone == first == second, criterion
        alone, first, second = scores[criterion]
        for where, value in alone.items():
            torch.testing.assert_close(first[where], value, rtol=1e-4, atol=1e-9)
            assert torch.equal(first[where], second[where])


@pytest.mark.parametrize("launch", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_the_command_line_runs_as_two_processes(launch, tiny_folder, text, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    plans = []
    for start, how in (((), warm.run), (launch, subprocess.run)):
        output = tmp_path / f"plan-{len(start)}.json"
        flags = ["--calibration", str(tmp_path / "text.txt"), "--samples", "4", "--seq-len", "16", "--steps", "2"]
        command = [*start, "-m", "optimum_moreau", "plan", str(tiny_folder), "-o", str(output), "--json", *flags]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        done = how([sys.executable, *command], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        assert ("2 processes" in done.stderr) == bool(start)
        assert json.loads(done.stdout)["output"] == str(output)  # one process prints
        plans.append(PruningPlan.load(output))
    assert plans[0].layers == plans[1].layers


# 21 matrices a step, three flushes a commit: in the middle of step 4, and in step 4's commit before it counts
@pytest.mark.parametrize("die", [{"where": "put", "call": 3 * 21 + 9}, {"where": "_flush", "call": 3 * 2 + 1}], ids=str)
@pytest.mark.parametrize("offload", [None, "disk"])
def test_a_killed_run_goes_on_to_the_same_plan_and_scores(offload, die, whole_run, tmp_path):
    request = {"criteria": ["moreau-gs"], "steps": 6, "offload": offload, "checkpoint": True}
    (tmp_path / "request.json").write_text(json.dumps({**request, "die": die}))
    assert worker(tmp_path, check=False).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "steps" / "step.json").read_text())["step"] == 3
    (tmp_path / "request.json").write_text(json.dumps(request))
    worker(tmp_path)
    for name in ("plan-moreau-gs-0.json", "scores-moreau-gs-0.safetensors"):
        assert weights_or_plan(tmp_path / name) == weights_or_plan(whole_run / name)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "request.json").write_text(json.dumps({"criteria": ["moreau-gs"], "steps": 6}))
    worker(folder)
    return folder


def weights_or_plan(file):
    """The kept units of a plan, or the bytes of every score."""
    if file.suffix == ".json":
        return PruningPlan.load(file).layers
    return {name: value.numpy().tobytes() for name, value in UnitScores.load(file).values.items()}


@pytest.mark.parametrize(("criterion", "offload"), [("taylor", None), ("moreau", None), ("moreau", "disk")], ids=str)
def test_scoring_takes_no_more_memory_than_it_says(criterion, offload, tmp_path):
    """Peak above the loaded model, in layers of six: taylor and δ on disk a few, δ in memory little more than all six.

    The C library gives freed blocks back here, so that the peak is what is held and not what was left between.
    """
    (tmp_path / "request.json").write_text(
        json.dumps({"criteria": [criterion], "steps": 2, "memory": True, "offload": offload})
    )
    worker(tmp_path)
    found = json.loads((tmp_path / "memory.json").read_text())
    layers = 6 * found["peak_above_model"] / found["scope_bytes"]
    assert layers <= (9 if (criterion, offload) == ("moreau", None) else 3.9), found


# Checkpoint folders


def prune(folder, tokens, model=None, **changes):
    model = model or tiny_model("llama")
    config = MoreauPrunerConfig(**{"criterion": "moreau", "steps": 2, "sequence_length": 16, **changes})
    return MoreauPruner(config).plan(model, tokens, checkpoint_dir=folder)


def test_a_finished_run_is_read_back_without_computing(tokens, tmp_path, monkeypatch):
    plan, _ = prune(tmp_path / "steps", tokens)
    monkeypatch.setattr(GradientEngine, "run", None)
    assert prune(tmp_path / "steps", tokens)[0] == plan


@pytest.mark.parametrize("changes", [{"seed": 1}, {"steps": 3}, {"rho": 0.1}, {"calibration_samples": 2}], ids=str)
def test_the_steps_of_another_run_are_refused(changes, tokens, tmp_path):
    prune(tmp_path / "steps", tokens)
    with pytest.raises(CheckpointError, match="holds the state of another run"):
        prune(tmp_path / "steps", tokens, **changes)
    for other in (tiny_model("llama", seed=1), tiny_model("llama", dtype=torch.bfloat16)):
        with pytest.raises(CheckpointError, match="holds the state of another run"):
            prune(tmp_path / "steps", tokens, other)


@pytest.mark.parametrize(
    "changes", [{"average_last": 2}, {"released": True}, {"criterion": "taylor", "steps": None}], ids=str
)
def test_what_a_checkpoint_would_not_hold_is_refused(changes, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(GradientEngine, "run", None)  # before anything is computed
    with pytest.raises(ConfigError, match=r"checkpoint_dir: .* keeps no steps with these settings; leave it out"):
        prune(tmp_path / "steps", tokens, **changes)


@pytest.mark.parametrize("changes", [{"released": True}, {}], ids=["released", "checkpoint"])
def test_what_one_process_must_do_alone_is_refused_to_several(changes, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_moreau.scoring.scores.is_distributed", lambda: True)
    monkeypatch.setattr("optimum_moreau.run.run.is_distributed", lambda: True)
    with pytest.raises(ConfigError, match="works in one process only; leave it out under torchrun"):
        prune(None if changes else tmp_path / "steps", tokens, **changes)


@pytest.mark.parametrize("offload", [None, "disk"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"{")], ids=["missing", "cut short"])
def test_a_damaged_state_is_refused(offload, damage, tokens, tmp_path):
    prune(tmp_path / "steps", tokens, offload=offload)
    damage(tmp_path / "steps" / "delta-0.bin")  # of the second, last step
    with pytest.raises(CheckpointError, match=r"delta-0\.bin: is missing or damaged; remove the folder"):
        prune(tmp_path / "steps", tokens, offload=offload)


def test_a_folder_of_other_things_is_refused(tokens, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint folder \(thesis\.tex is in it\)"):
        prune(tmp_path, tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("offload", [None, "disk"])
def test_a_folder_that_cannot_hold_the_steps_is_refused_before_the_first(offload, tokens, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(GradientEngine, "run", None)
    with pytest.raises(CheckpointError, match=r"file: is a file; give a folder"):
        prune(tmp_path / "file", tokens, offload=offload)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"no room for δ, which is kept twice \([\d,]+ bytes, 1,000 are free\)"):
        prune(tmp_path / "steps", tokens, offload=offload)


def test_another_ratio_goes_on_from_the_same_steps(tokens, tmp_path, monkeypatch, caplog):
    prune(tmp_path / "steps", tokens, pruning_ratio=0.1)
    expected, _ = prune(None, tokens, pruning_ratio=0.05)
    monkeypatch.setattr(GradientEngine, "run", None)
    assert prune(tmp_path / "steps", tokens, pruning_ratio=0.05)[0].layers == expected.layers
    assert "going on after step 2 of 2" in caplog.text


def test_a_damaged_marker_is_refused(tokens, tmp_path):
    prune(tmp_path / "steps", tokens)
    (tmp_path / "steps" / "step.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step\.json: cannot be read as .*remove the folder"):
        prune(tmp_path / "steps", tokens)


def test_running_out_of_memory_says_what_is_needed_and_what_lowers_it(tokens, monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("optimum_moreau.run.scoring.score_units", exhausted)
    model = tiny_model("llama")
    before = snapshot(model)
    with pytest.raises(OutOfMemoryError, match=r"needs about [\d.]+ \w+ with the model; what lowers it: ") as caught:
        prune(None, tokens, model)
    assert "\n" not in str(caught.value)
    assert_same_state(model, before)
