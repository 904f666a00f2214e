"""Flags of methods' settings over a recipe: they are of the method that it chose, and add to what it says."""

import pytest
import yaml

GS, OWL = {"name": "moreau-gs", "sigma": 0.3}, {"name": "owl", "strength": 0.2}


@pytest.fixture
def printed(tmp_path, command):
    """Runs `prune --config … --print-config` with flags over a recipe → its `prune` section, and standard error."""

    def run(prune, *flags):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({"model": "m", "output": "o", "prune": prune}))
        code, out, errors = command("prune", "--config", str(file), *flags, "--print-config")
        return yaml.safe_load(out)["prune"] if not code else None, errors

    return run


@pytest.mark.parametrize("flags", [[], ["--criterion", "moreau-gs"]])
@pytest.mark.parametrize("how", [["--criterion-args", "steps=5"], ["--steps", "5"]])
def test_settings_of_the_recipes_criterion_are_added_to_its_own(printed, flags, how):
    found, _ = printed({"criterion": GS}, *flags, *how)
    assert found["criterion"] | GS | {"steps": 5} == found["criterion"]


def test_settings_of_the_recipes_budget_are_added_to_its_own(printed):
    found, _ = printed({"criterion": "wanda", "budget": OWL}, "--budget-args", "outlier=3")
    assert found["budget"] | OWL | {"outlier": 3.0} == found["budget"]


def test_another_method_begins_with_its_own_settings(printed):
    found, _ = printed({"criterion": GS}, "--criterion", "moreau", "--criterion-args", "steps=5")
    assert found["criterion"]["name"] == "moreau" and found["criterion"].get("sigma") != GS["sigma"]


def test_a_setting_that_the_recipes_criterion_has_not_is_refused(printed):
    found, errors = printed({"criterion": "wanda"}, "--criterion-args", "steps=5")
    assert found is None and "steps: wanda has no such setting" in errors


def test_a_value_may_hold_a_comma_beside_switches(tmp_path, command):
    code, out, errors = command(
        *("prune", "m", "-o", "o", "--push", "me/name", "--push-args", "commit_message=fix, again,private"),
        "--print-config",
    )
    assert code == 0, errors
    push = yaml.safe_load(out)["push"]
    assert push["commit_message"] == "fix, again" and push["private"] is True
