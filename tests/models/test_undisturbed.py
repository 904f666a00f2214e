"""No result depends on what the process is set to, nor is that changed; config flags of outputs do no harm."""

import ast
import copy
import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import optimum_moreau
from optimum_moreau import MoreauPruner, MoreauPrunerConfig, RecoveryConfig, perplexity
from optimum_moreau.config.settings import settings_of
from optimum_moreau.data.windows import load_calibration
from optimum_moreau.errors import UnsupportedModelError
from optimum_moreau.evaluation.generations import generations
from optimum_moreau.registry import CRITERIA
from tests.tiny import TEXT, snapshot, tiny_model

TEXTS = [TEXT * 6]
SMALL = {"calibration_samples": 4, "sequence_length": 16, "compensation_samples": 4, "seed": 1}
FEW = {"passes": 2, "steps": 2}


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def other_random_numbers():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    yield


STATES = {
    "dtype": default_dtype,
    "device": default_device,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "random numbers": other_random_numbers,
}


def shared_random_numbers():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def process():
    """What a user may have set, as it is now."""
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    flags = torch.get_default_dtype(), torch.get_default_device(), torch.are_deterministic_algorithms_enabled()
    return modes, flags, shared_random_numbers(), Path.cwd()


def small(criterion, **changes):
    few = {
        key: value for key, value in FEW.items() if key in {one.name for one in settings_of(CRITERIA.get(criterion))}
    }
    return MoreauPrunerConfig(criterion=criterion, **{**SMALL, **few, **changes})


def outcome(model, config, tokenizer):
    """All that a run gives: scores, plan, weights."""
    result = MoreauPruner(config, tokenizer=tokenizer).prune(model, TEXTS)
    scores = None if result.scores is None else {name: one.tolist() for name, one in result.scores.values.items()}
    assert not any(parameter.is_inference() or parameter.is_meta for parameter in model.parameters())
    return scores, result.plan.layers, [w.tolist() for w in model.state_dict().values()], snapshot(model)[1:4]


def same_in_every_state(do, model, tmp_path, monkeypatch):
    expected = do(copy.deepcopy(model))
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    for name, state in STATES.items():
        monkeypatch.chdir(tmp_path / "elsewhere")
        fresh = copy.deepcopy(model)
        with state():
            before = process()
            found = do(fresh)
            assert process() == before, name
        assert found == expected, name


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_scores_and_plans_depend_on_no_state_of_the_process(criterion, tokenizer, tmp_path, monkeypatch):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    config = small(criterion, pruning_ratio=0.2)
    same_in_every_state(lambda one: outcome(one, config, tokenizer), model, tmp_path, monkeypatch)


MORE = {
    "search and refit": small("wanda", pruning_ratio=0.2, budget="search", compensation="refit"),
    "rounds and scale": small("taylor", pruning_ratio=0.2, rounds=2, compensation="scale", intercept=True),
    "owl": small("taylor", pruning_ratio=0.2, budget="owl", protect_outliers=5.0),
    "hidden and layers": small(
        "taylor", unit_ratio=0.3, targets=("hidden", "layers"), layer_criterion="block-influence"
    ),
    "update": small("wanda", pattern="2:4", update=True, refine="dsnot", permute=True),
    "sparsegpt": small("sparsegpt", pattern="unstructured"),
}


@pytest.mark.parametrize("what", MORE)
def test_budgets_compensations_and_masks_depend_on_no_state(what, tokenizer, tmp_path, monkeypatch):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    same_in_every_state(lambda one: outcome(one, MORE[what], tokenizer), model, tmp_path, monkeypatch)


def test_what_is_measured_and_trained_depends_on_no_state(tokenizer, tmp_path, monkeypatch):
    model = tiny_model("llama", vocab_size=len(tokenizer))

    def do(one):
        pruner = MoreauPruner(small("magnitude", unit_ratio=0.25), tokenizer=tokenizer)
        pruner.prune(one)
        before = pruner.evaluate(TEXTS, sequence_length=16)
        pruner.recover(TEXTS, RecoveryConfig(max_steps=2, sequence_length=32, batch_size=2, dropout=0.1))
        written = generations(one, tokenizer, ["The quick"], new_tokens=4)
        return before, perplexity(one, tokenizer, TEXTS, sequence_length=16).perplexity, written

    same_in_every_state(do, model, tmp_path, monkeypatch)


def test_windows_depend_on_no_state(tokenizer, tmp_path, monkeypatch):
    def do(one):
        found = load_calibration(TEXTS, tokenizer, samples=3, sequence_length=16)
        assert found.tokens.device.type == "cpu" and not found.tokens.is_inference()
        return found.sha256

    same_in_every_state(do, tiny_model("llama"), tmp_path, monkeypatch)


def test_a_model_of_inference_mode_is_refused_in_one_line_where_gradients_are_needed(tokenizer):
    with torch.inference_mode():
        model = tiny_model("llama", vocab_size=len(tokenizer))
        with pytest.raises(UnsupportedModelError, match="can have no gradients; load it outside") as refused:
            MoreauPruner(small("taylor"), tokenizer=tokenizer).prune(model, TEXTS)
        assert "\n" not in str(refused.value)


FLAGS = {"return_dict": False, "output_hidden_states": True, "_output_attentions": True, "use_cache": True}


@pytest.mark.parametrize("what", ["taylor", *MORE])
def test_flags_of_outputs_in_the_config_change_nothing_and_stay(what, tokenizer):
    config = MORE.get(what) or small("taylor", pruning_ratio=0.2)
    plain, flagged = (tiny_model("llama", vocab_size=len(tokenizer), attn_implementation="eager") for _ in range(2))
    for name, value in FLAGS.items():
        setattr(flagged.config, name, value)
    expected, found = (outcome(model, config, tokenizer)[:3] for model in (plain, flagged))
    assert found == expected
    assert {name: getattr(flagged.config, name) for name in FLAGS} == FLAGS


def test_a_model_that_returns_tuples_is_saved_verified_measured_and_tuned(tokenizer, tmp_path):
    model = tiny_model("llama", vocab_size=len(tokenizer), return_dict=False)
    pruner = MoreauPruner(small("taylor", unit_ratio=0.25), tokenizer=tokenizer)
    pruner.prune(model, TEXTS)
    pruner.recover(
        TEXTS,
        RecoveryConfig(max_steps=1, sequence_length=32, batch_size=2),
        teacher=tiny_model("llama", vocab_size=len(tokenizer), return_dict=False),
    )
    assert pruner.evaluate(TEXTS, sequence_length=16) > 1
    assert pruner.save_pretrained(tmp_path / "out").max_abs_difference < 1e-4
    assert generations(model, tokenizer, ["The quick"], new_tokens=2)
    assert model.config.return_dict is False


PACKAGE = Path(optimum_moreau.__file__).parent
MAKES = {
    "zeros",
    "ones",
    "empty",
    "full",
    "rand",
    "randn",
    "randint",
    "randperm",
    "arange",
    "tensor",
    "eye",
    "linspace",
}
# built where transformers builds; a process of its own
ELSEWHERE = ("modeling/modeling_moreau.py", "evaluation/speed/process.py")


def test_every_new_tensor_names_its_dtype_and_device():
    for file in PACKAGE.rglob("*.py"):
        if str(file.relative_to(PACKAGE)) in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKES):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
                named = {keyword.arg for keyword in node.keywords}
                assert {"dtype", "device"} <= named, f"{file.name}:{node.lineno}: torch.{node.func.attr}"
