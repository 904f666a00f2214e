"""A criterion, a budget and a compensation, each with a setting of its own, are one file and one line each."""

import ast
import json

import pytest

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan, RecoveryConfig
from optimum_moreau.config.flat import known_names
from optimum_moreau.config.settings import settings_of
from optimum_moreau.loading import load_model
from optimum_moreau.pipeline.recipe import PushStep, Recipe, RecoverStep
from optimum_moreau.registry import BUDGETS, COMPENSATIONS, CRITERIA
from tests.conftest import ROOT

FILES = {
    "power": '''
from optimum_moreau.config.settings import setting, settings
from optimum_moreau.criteria import Criterion


@settings
class Power(Criterion):
    """|W|^p."""

    name = "power"
    summary = "Σ|W|^p"
    paper = "https://example.org/power"
    p: float = setting("the power", default=3.0, gt=0)

    def score(self, run):
        run.by_weight(lambda name, w: w.abs() ** self.p)
''',
    "ramp": '''
from optimum_moreau.budgets import Budget
from optimum_moreau.config.settings import setting, settings


@settings
class Ramp(Budget):
    """Later layers give more."""

    name = "ramp"
    summary = "later layers give more"
    slope: float = setting("by how much", default=0.1, affects="plan", ge=0.0)

    def shares(self, blocks, share, values, most):
        middle = (len(blocks) - 1) / 2
        return {block: share + self.slope * (i - middle) for i, block in enumerate(blocks)}
''',
    "damp": '''
from optimum_moreau.compensation import Compensation
from optimum_moreau.config.settings import setting, settings


@settings
class Damp(Compensation):
    """Goes some way towards plain least squares."""

    name = "damp"
    summary = "goes some way towards least squares"
    factor: float = setting("so much of the way", default=0.5, affects="apply", gt=0)

    def fit(self, w, moments):
        import torch

        best = torch.linalg.solve(moments.xx, moments.tx.T).T
        return w + self.factor * (best - w), None
''',
}
METHODS = {
    "criterion": (CRITERIA, "power", "p"),
    "budget": (BUDGETS, "ramp", "slope"),
    "compensation": (COMPENSATIONS, "damp", "factor"),
}
SCOPE = {"attention_layers": (0, 3), "mlp_layers": (0, 3), "targets": ("mlp",), "unit_ratio": 0.5}
SMALL = {"sequence_length": 16, "compensation_samples": 2}


@pytest.fixture(autouse=True)
def new_methods(monkeypatch, tmp_path_factory):
    """The three, in a package of somebody else's; forgotten after the test."""
    folder = tmp_path_factory.mktemp("somewhere")
    for name, source in FILES.items():
        (folder / f"{name}_method.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    for registry, name, _ in METHODS.values():
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        registry.register(name, f"{name}_method:{name.title()}")


def settings(p=2.0, slope=0.2, factor=0.25):
    return {
        "criterion": {"name": "power", "p": p},
        "budget": {"name": "ramp", "slope": slope},
        "compensation": {"name": "damp", "factor": factor, "windows": 60},
    }


def test_they_prune_as_they_are_told_and_plan_and_card_say_so(
    tiny_folder, tokenizer, text, tmp_path, unverified, unguarded
):
    llama = load_model(str(tiny_folder), device="cpu")
    dense = llama.model.layers[0].mlp.down_proj.weight.detach().clone()
    config = MoreauPrunerConfig(**settings(), **SCOPE, sequence_length=16)
    pruner = MoreauPruner(config, tokenizer=tokenizer)
    result = pruner.prune(llama, [text])
    assert [result.plan.layers[i]["mlp"].removed for i in range(3)] == [7, 12, 17]  # 24 · (0.3, 0.5, 0.7)
    kept = list(result.plan.layers[0]["mlp"].kept)
    way = llama.model.layers[0].mlp.down_proj.weight.detach() - dense[:, kept]
    assert way.abs().max() > 1e-3
    other = load_model(str(tiny_folder), device="cpu")
    MoreauPruner(config.changed(factor=0.5), tokenizer=tokenizer).prune(other, [text])
    twice = other.model.layers[0].mlp.down_proj.weight.detach() - dense[:, kept]
    assert twice.allclose(2 * way, atol=1e-5)
    pruner.save_pretrained(tmp_path / "out")
    saved = PruningPlan.load(tmp_path / "out" / "pruning_plan.json").config
    assert (saved["criterion"]["p"], saved["budget"]["slope"], saved["compensation"]["factor"]) == (2.0, 0.2, 0.25)
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "**power**: Σ|W|^p",
        "**ramp**: later layers give more",
        "**damp**: goes some way towards least squares",
    ):
        assert words in card
    for row in ("criterion.p", "budget.slope", "compensation.factor"):
        assert f"| `{row}` |" in card


def test_another_setting_gives_other_scores_and_saved_scores_serve_another_plan(llama):
    config = MoreauPrunerConfig(**settings(), **SCOPE)
    plan, _ = MoreauPruner(config).plan(llama)
    other, _ = MoreauPruner(config.changed(p=1.0)).plan(llama)
    assert plan.layers != other.layers
    again = config.replanned({"slope": 0.0})
    assert again.budget.slope == 0.0 and again.criterion == config.criterion
    with pytest.raises(ValueError, match="criterion decided the scores"):
        config.replanned({"p": 1.0})


def test_a_wrong_setting_is_refused(command, tiny_folder, tmp_path):
    target = (tiny_folder, "-o", tmp_path / "out")
    code, _, err = command("prune", *target, "--criterion", "power", "--criterion-args", "p=0")
    assert code == 2 and "p: 0.0 is not a number > 0" in err
    code, _, err = command("prune", *target, "--budget", "ramp", "--budget-args", "slop=1")
    assert code == 2 and "ramp: unknown setting 'slop'. Did you mean 'slope'?" in err


def test_the_command_line_and_a_recipe_give_the_same_config(command, tiny_folder, tmp_path):
    flags = ["--criterion", "power", "--criterion-args", "p=2", "--budget", "ramp", "--budget-args", "slope=0.2"]
    flags += ["--compensation", "damp", "--compensation-args", "factor=0.25,windows=60"]
    code, out, err = command("prune", tiny_folder, "-o", tmp_path / "out", *flags, "--print-config", "--json")
    assert code == 0, err
    printed = Recipe.from_dict(json.loads(out))
    values = {"model": str(tiny_folder), "output": str(tmp_path / "out"), "prune": settings()}
    assert printed.prune == Recipe.from_dict(values).prune
    assert printed.prune.criterion.p == 2.0 and printed.prune.compensation.factor == 0.25


@pytest.mark.parametrize("kind", METHODS)
def test_they_are_listed_with_their_settings(kind, command):
    verb = {"criterion": "criteria", "budget": "budgets", "compensation": "compensations"}[kind]
    _, name, setting = METHODS[kind]
    code, out, _ = command(verb, name)
    assert code == 0 and f"`{setting}`" in out
    assert f"`{name}`" in command(verb)[1] or name in command(verb)[1]


def listed(node):
    """The texts of a list, a tuple, a set, or of a dictionary's keys."""
    parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def test_no_list_of_settings_stands_outside_the_classes_that_have_them():
    """Three names may be said together; more is a list that must be kept."""
    of_pruning = {one.name for one in settings_of(MoreauPrunerConfig)} | known_names().keys()
    of_steps = {one.name for kind in (RecoveryConfig, RecoverStep, PushStep) for one in settings_of(kind)}
    own = ("config", "criteria", "budgets", "compensation")
    for file in (ROOT / "optimum_moreau").rglob("*.py"):
        where = file.relative_to(ROOT / "optimum_moreau")
        if where.parts[0] in own:
            continue
        trainer = where.as_posix() == "recovery/training.py"  # the Trainer's arguments have names of their own
        names = of_pruning | (set() if trainer else of_steps)
        for node in ast.walk(ast.parse(file.read_text())):
            assert len(listed(node) & names) <= 3, f"{where}, line {node.lineno}: {listed(node) & names}"
