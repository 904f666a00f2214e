"""Files that the first edition wrote, flat, are read as they were meant; its plans are made again, unit for unit."""

import json

import pytest

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan
from optimum_moreau.config import Mask
from optimum_moreau.config.flat import known_names
from optimum_moreau.criteria.moreau import Moreau
from optimum_moreau.criteria.wanda import Wanda
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.pipeline.recipe import Recipe, read_recipe
from tests.conftest import ROOT

FIRST = ROOT / "tests" / "data" / "first_edition"
PLANS = sorted(file.stem for file in FIRST.glob("*-*.json"))


def test_a_config():
    found = MoreauPrunerConfig.from_pretrained(FIRST)
    mask = Mask("2:4", refine="dsnot", update=True, damping=0.02, permute=True, feed_forward=False)
    assert found == MoreauPrunerConfig(criterion=Wanda(), mask=mask, compensation_samples=128)
    assert MoreauPrunerConfig.from_dict(found.to_dict()) == found


def test_a_recipe():
    found = Recipe.from_dict(read_recipe(FIRST / "recipe.yaml"))
    assert found.prune.criterion == Moreau(steps=3, sigma=0.1, reduction="importance")
    assert (found.prune.budget.name, found.prune.budget.protect) == ("search", 0.1)
    assert (found.prune.compensation.name, found.prune.compensation.ridge) == ("refit", 0.1)
    assert (found.prune.calibration_samples, found.recover.config.learning_rate, found.push.repo) == (
        8,
        1e-3,
        "me/model",
    )
    assert Recipe.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_made_again_unit_for_unit(name, shared):
    model, preset = name.rsplit("-", 1)
    folder = str(shared / "models" / model)
    first = PruningPlan.load(FIRST / f"{name}.json")
    steps = {"relative_rho": 0.03, "step_ratio": 0.2, "sigma": 0.2} if preset == "plain" else {}  # its defaults
    pruner = MoreauPruner(MoreauPrunerConfig.preset(preset, seed=1, **steps), tokenizer=load_tokenizer(folder))
    plan, _ = pruner.plan(load_model(folder, device="cpu"))
    drawn = {name: plan.calibration[name] for name in first.calibration}  # the file's own hash is new
    assert plan.layers == first.layers and drawn == first.calibration
    depth = type("Config", (), {"num_hidden_layers": len(first.layers)})
    ours = MoreauPrunerConfig.from_dict(plan.config).changed(compensation_samples=128)  # which says nothing of "none"
    assert MoreauPrunerConfig.from_dict(first.config).resolve(depth) == ours.resolve(depth)


def test_every_flat_name_of_the_first_edition_has_its_place():
    written = json.loads((FIRST / "moreau_pruner_config.json").read_text())
    own = {name for name in written if name in MoreauPrunerConfig.__pydantic_fields__}
    assert set(written) - own - {"pattern", "engine"} <= set(known_names())
