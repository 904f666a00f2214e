"""The chain of one recipe: prune, recover, measure, publish; what was done before is left out."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from optimum_moreau import MoreauPrunerConfig, RecoveryConfig
from optimum_moreau.data.sources import read_documents
from optimum_moreau.pipeline.recipe import PushStep, Recipe, RecoverStep, overridden
from tests import warm
from tests.conftest import SHARED
from tests.hub_server import READ_ONLY, TOKEN, Hub
from tests.recover_process import RECORDS
from tests.tiny import contents

QUICK = ("--criterion", "taylor", "--ratio", "0.15", "--samples", "2", "--seq-len", "16")
TUNING = (
    "--recover-max-steps",
    "2",
    "--recover-batch-size",
    "4",
    "--recover-validation",
    "0",
    "--recover-seq-len",
    "128",
)


@pytest.fixture
def files(tmp_path, text, tiny_folder, monkeypatch):
    """The texts of a chain, in the working folder."""
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "records.json").write_text(json.dumps(RECORDS))
    (tmp_path / "model").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chain(*more):
    """The arguments of a chain."""
    return ("prune", "model", "-o", "out", *QUICK, "--calibration", "text.txt", *more)


def recovering(*more):
    return chain("--recover-data", "records.json", *TUNING, *more)


# The recipe


def test_a_recipe_survives_yaml():
    recipe = Recipe(
        model="org/model",
        output="out",
        evaluate="text.txt",
        prune=MoreauPrunerConfig(unit_ratio=(0.2, 0.3), attention_layers=(1, 3)),
        recover=RecoverStep("records.json", teacher="org/model", config=RecoveryConfig(rank=4)),
        push=PushStep("me/model", private=True),
    )
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
    assert "token" not in recipe.to_yaml()


def test_a_recipe_leaves_open_what_is_best():
    found = Recipe.from_dict({"model": "m", "output": "o", "prune": {"uniform": True, "pruning_ratio": 0.3}})
    assert found.prune == MoreauPrunerConfig.best(uniform=True, pruning_ratio=0.3)
    assert Recipe(model="m", output="o").prune == MoreauPrunerConfig.best()


@pytest.mark.parametrize("preset", ["best", "paper", "plain"])
def test_a_preset_lies_under_the_recipe_and_the_flags(preset, files, command):
    (files / "recipe.yaml").write_text("model: model\noutput: out\nprune: {criterion: moreau, uniform: true}\n")
    arguments = ("prune", "--config", "recipe.yaml", "--ratio", "0.3", "--preset", preset, "--print-config")
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    given = {"criterion": "moreau", "uniform": True, "pruning_ratio": 0.3}
    assert Recipe.from_dict(yaml.safe_load(out)).prune == MoreauPrunerConfig.preset(preset, **given)


def test_what_is_printed_is_what_runs(files, command):
    arguments = recovering("--evaluate", "text.txt", "--push", "me/x", "--push-private")
    code, out, err = command(*arguments, "--print-config")
    assert (code, err) == (0, "") and not (files / "out").exists()
    (files / "recipe.yaml").write_text(out)
    assert command("prune", "--config", "recipe.yaml", "--print-config")[1] == out
    found = yaml.safe_load(out)
    assert found["recover"]["max_steps"] == 2 and found["push"] == {
        "repo": "me/x", "private": True, "create_pr": False, "overwrite_card": False, "verify": False
    }  # fmt: skip
    _, out, _ = command("prune", "--config", "recipe.yaml", "--unit-ratio", "0.4", "-o", "b", "--print-config")
    changed = yaml.safe_load(out)
    assert changed["output"] == "b" and changed["prune"]["unit_ratio"] == 0.4
    assert "pruning_ratio" not in changed["prune"] and changed["prune"]["criterion"]["name"] == "taylor"


def test_flags_replace_a_size_and_keep_the_rest():
    recipe = {"model": "m", "prune": {"pruning_ratio": 0.2, "seed": 3}, "recover": {"data": "a", "rank": 4}}
    found = overridden(recipe, {"model": "n", "prune": {"target_bytes": "1GB"}, "recover": {"rank": 2}})
    assert found == {
        "model": "n", "prune": {"target_bytes": "1GB", "seed": 3}, "recover": {"data": "a", "rank": 2}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("model: m\noutput: o\nprun: {}\n", "unknown name 'prun'. Did you mean 'prune'?"),
        ("model: m\noutput: o\nprune: {ratio: 0.2}\n", "unknown field 'ratio'. Did you mean 'pruning_ratio'?"),
        ("model: m\noutput: o\nrecover: {max_steps: 3}\n", "recover: needs data"),
        ("model: m\noutput: o\nrecover: {data: d, stepz: 3}\n", "unknown setting 'stepz'"),
        ("model: m\noutput: o\npush: {private: true}\n", "push: needs repo"),
        ("model: m\noutput: o\npush: {repo: a/b, token: hf_x}\n", "push: unknown name 'token'"),
        ("model: m\noutput: o\ntrust_remote_code: true\n", "unknown name 'trust_remote_code'"),
        ("model: 3\noutput: o\n", "model: 3 is no text"),
        ("model: m\noutput: null\n", "output: is missing"),
        ("model: m\noutput: o\nrecover: {data: 3}\n", "recover: data: 3 is no text"),
        ("model: m\noutput: o\nrecover: {data: d, packing: 'no'}\n", "packing: 'no' is not true or false"),
        ("model: m\noutput: o\nrecover: {data: d, seed: a}\n", "seed: 'a' is not a whole number"),
        ("model: m\noutput: o\nrecover: {data: d, distillation: a}\n", "distillation: 'a' is not a share"),
        ("model: m\noutput: o\nrecover: {data: d, learning_rate: 1e-4}\n", "in YAML write 1.0e-4"),
        ("model: m\noutput: o\npush: {repo: a/b, create_pr: 'false'}\n", "create_pr: 'false' is not true or false"),
        ("output: o\n", "model: is missing"),
        ("- a\n", "is no recipe"),
        ("a: [\n", "no YAML"),
    ],
)
def test_a_recipe_that_is_none_is_refused(written, message, files, command):
    (files / "recipe.yaml").write_text(written)
    code, out, err = command("prune", "--config", "recipe.yaml")
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1, err


# The steps


def test_a_chain_that_was_run_is_not_run_again(files, command):
    code, out, err = command(*recovering("--evaluate", "text.txt", "--json"))
    assert code == 0, err
    first = json.loads(out)
    assert first["steps"] == {"prune": "done", "recover": "done"} and first["output"] == "out-recovered"
    assert list(first["perplexity"]) == ["before", "pruned", "recovered"] and first["recovery"]["steps"] == 2
    made = {name: contents(files / name) for name in ("out", "out-recovered")}

    code, out, err = command(*recovering("--evaluate", "text.txt", "--json"))
    second = json.loads(out)
    assert second["steps"] == {"prune": "skipped", "recover": "skipped"}
    assert second["perplexity"] == first["perplexity"] and "not pruned again" in err and "not tuned again" in err
    assert made == {name: contents(files / name) for name in made}


def test_only_what_depends_on_a_change_is_done_again(files, unverified, command):
    assert command(*recovering())[0] == 0
    pruned = contents(files / "out")
    other = recovering("--recover-rank", "4", "--json")
    code, _, err = command(*other)
    assert code == 2 and "out-recovered: holds a model made from other inputs" in err  # never replaced unasked
    done = json.loads(command(*other, "--overwrite")[1])
    assert done["steps"] == {"prune": "skipped", "recover": "done"} and contents(files / "out") == pruned

    (files / "text.txt").write_text((files / "text.txt").read_text()[100:])  # the same name, another text
    code, _, err = command(*other)
    assert code == 2 and "out: holds a model made from other inputs" in err
    done = json.loads(command(*other, "--overwrite")[1])
    assert done["steps"] == {"prune": "done", "recover": "done"}


def test_a_folder_without_its_weights_is_made_again(files, unverified, command):
    arguments = chain("--json")
    assert command(*arguments)[0] == 0
    (files / "out" / "model.safetensors").unlink()
    assert command(*arguments)[0] == 2
    assert json.loads(command(*arguments, "--overwrite")[1])["steps"] == {"prune": "done"}


def test_a_home_folder_in_a_recipe_is_the_users(files, unverified, command, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    _, out, _ = command(*chain("-o", "~/there", "--print-config"))
    (files / "recipe.yaml").write_text(out)
    assert "output: ~/there" in out
    for step in ("done", "skipped"):
        assert json.loads(command("prune", "--config", "recipe.yaml", "--json")[1])["steps"] == {"prune": step}
    assert (files / "there" / "config.json").is_file() and not (files / "~").exists()


def test_states_of_another_recovery_are_no_obstacle(files, unverified, command):
    assert command(*chain())[0] == 0
    assert command(*recovering("--recover-max-steps", "3"))[0] == 0
    left = files / ".out-recovered.recovery-0123abcd"
    left.mkdir()
    (left / "run.json").write_text('{"run": "another"}')
    code, _, err = command(*recovering("--overwrite"))
    assert code == 0, err
    assert sorted(path.name for path in files.glob(".out*")) == [left.name]


def test_a_card_template_given_later_changes_the_card_alone(files, unverified, command):
    assert command(*recovering("--evaluate", "text.txt"))[0] == 0
    (files / "card.md").write_text("---\n{{ card_data }}\n---\nMine: {{ title }}\n")
    (files / "out-recovered" / "model.gguf").write_text("converted")
    before = contents(files / "out-recovered")
    assert command(*recovering("--evaluate", "text.txt", "--card-template", "card.md"))[0] == 0
    after = contents(files / "out-recovered")
    assert {path.name for path in after if after[path] != before.get(path)} == {"README.md"}
    assert before.keys() == after.keys()
    assert "Mine: tiny-llama, pruned" in (files / "out-recovered" / "README.md").read_text()


def test_what_was_not_measured_is_measured_later(files, unverified, command):
    assert command(*recovering())[0] == 0
    assert not (files / "out-recovered" / "evaluation.json").exists()
    done = json.loads(command(*recovering("--evaluate", "text.txt", "--json"))[1])
    assert done["steps"] == {"prune": "skipped", "recover": "skipped"}
    assert list(done["perplexity"]) == ["before", "pruned", "recovered"]
    card = ModelCard.load(files / "out-recovered" / "README.md")
    assert card.data.eval_results[0].metric_value == pytest.approx(done["perplexity"]["recovered"], abs=1e-4)
    assert "## How it was tuned" in card.text and (files / "out-recovered" / "adapter").is_dir()
    again = json.loads(command(*recovering("--evaluate", "text.txt", "--json"))[1])
    assert again["perplexity"] == done["perplexity"]


def test_a_chain_measures_by_the_protocol_that_is_asked_for(files, unverified, tiny_folder, bos_tokenizer, command):
    (files / "model").unlink()
    shutil.copytree(tiny_folder, files / "model")
    bos_tokenizer.save_pretrained(files / "model")
    first = json.loads(command(*chain("--evaluate", "text.txt", "--json"))[1])
    assert first["protocol"] == "128-token segments after <s>"
    paper = json.loads(command(*chain("--evaluate", "text.txt", "--bos", "paper", "--json"))[1])
    assert paper["steps"] == {"prune": "skipped"} and paper["protocol"] == "128-token segments, no BOS"
    assert paper["perplexity"].keys() == first["perplexity"].keys() == {"before", "pruned"}
    assert paper["perplexity"] != first["perplexity"]
    again = json.loads(command(*chain("--evaluate", "text.txt", "--json"))[1])
    assert again["perplexity"] == first["perplexity"]
    (files / "recipe.yaml").write_text(command(*chain("--evaluate", "text.txt", "--bos", "paper", "--print-config"))[1])
    assert json.loads(command("prune", "--config", "recipe.yaml", "--json")[1])["perplexity"] == paper["perplexity"]
    texts = ("--evaluate", "text.txt", "--calibration", "text.txt")
    code, out, err = command("apply", "out", "model", "-o", "applied", *texts, "--bos", "paper")
    assert code == 0 and "(128-token segments, no BOS)" in out, err
    tuning = ("--data", "records.json", "--max-steps", "1", "--validation", "0", "--seq-len", "128")
    code, out, err = command("recover", "out", "-o", "tuned", *tuning, "--evaluate", "text.txt", "--bos", "paper")
    assert code == 0 and "(128-token segments, no BOS)" in out, err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--recover-data", "missing.json"), "missing.json: no such file"),
        (("--recover-seq-len", "100000"), "sequence_length: 100000 is more than the model's"),
        (("--recover-output", "out"), "out: is out, which is written too; give another output"),
        (("--recover-output", "out/tuned"), "out/tuned: lies in out, which is written too"),
        (("-o", "model/pruned"), "model/pruned: lies in model, which is read"),
        (("--calibration", "missing.txt"), "missing.txt: no such file"),
        (("--recover-teacher", "nowhere"), "nowhere: no such folder"),
        (("--evaluate", "missing.txt"), "missing.txt: no such file"),
        (("--card-template", "missing.md"), "missing.md: no such card template"),
        (("--recover-rank", "0"), "rank: 0 is not a whole number"),
        (("--push", "me/a/b"), "is no name for a repository"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_a_later_step_would_stumble_over_is_refused_first(changes, message, files, command):
    before = sorted(os.listdir(files))
    code, out, err = command(*recovering(*changes))
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1, err
    assert sorted(os.listdir(files)) == before


def test_several_processes_share_one_step_only(files, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "verbs of their own" in command(*recovering())[2]


# Published


def run(hub, folder, *arguments, token=TOKEN):
    """`optimum-moreau …` in a process of its own, with the loopback Hub for the Hub."""
    values = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    values |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "optimum_moreau", *arguments]
    return warm.run(command, timeout=250, env={**os.environ, **values})


def test_a_token_that_may_only_read_is_refused_before_anything_is_scored(files):
    with Hub() as hub:
        done = run(hub, files, *recovering("--push", "me/chain"), token=READ_ONLY)
    assert done.returncode == 2 and "the token may not write there" in done.stderr
    assert not (files / "out").exists() and READ_ONLY not in done.stderr


def test_the_chain_ends_on_the_hub_and_a_stranger_loads_it(files):
    """On a real model where there is one."""
    real = SHARED.is_dir()
    model, text, tuned_on = files / "model", files / "text.txt", files / "records.json"
    settings = ("--recover-lr", "1e-3", "--recover-max-steps", "15") if real else ()
    if real:
        stories = read_documents(SHARED / "data" / "tinystories_1k.jsonl")
        model, text, tuned_on = SHARED / "models" / "stories260K", files / "heldout.txt", files / "stories.jsonl"
        text.write_text("\n".join(stories[800:840]))
        tuned_on.write_text("\n".join(json.dumps({"text": one}) for one in stories[:200]))
    arguments = recovering("--recover-data", str(tuned_on), *settings, "--recover-batch-size", "16")
    arguments = tuple(str(model) if a == "model" else str(text) if a == "text.txt" else a for a in arguments)
    arguments += ("--evaluate", str(text), "--push", "me/chain", "--json")
    with Hub() as hub:
        done = run(hub, files, *arguments, "--push-verify")
        assert done.returncode == 0, done.stderr
        first = json.loads(done.stdout)
        assert first["steps"] == {"prune": "done", "recover": "done", "push": "done"}
        assert first["push"]["verified"]
        head = hub.repositories["me/chain"]["main"]
        again = run(hub, files, *arguments)
        assert json.loads(again.stdout)["steps"] == {"prune": "skipped", "recover": "skipped", "push": "skipped"}
        assert hub.repositories["me/chain"]["main"] == head  # nothing had changed: no commit
        found = hub.files("me/chain")
    if real:
        measured = first["perplexity"]
        assert measured["before"] < measured["recovered"] < measured["pruned"]
    assert {"adapter/adapter_model.safetensors", "recovery_summary.json", "pruning_plan.json"} <= set(found)
    for file, content in found.items():
        if file.endswith((".json", ".md")):
            for secret in (TOKEN, str(files), os.uname().nodename):
                assert secret.encode() not in content, (file, secret)


def test_a_recipe_runs_from_python_as_from_the_command_line(files, command):
    """… and what one has done the other does not do again."""
    code, out, err = command(*chain(), "--print-config")
    assert code == 0, err
    (files / "recipe.yaml").write_text(out)
    done = Recipe.from_file("recipe.yaml").run(device="cpu")
    assert done["steps"] == {"prune": "done"} and (files / "out" / "README.md").is_file()
    assert command("prune", "--config", "recipe.yaml", "--json")[0] == 0
    assert Recipe.from_file("recipe.yaml").run(device="cpu")["steps"] == {"prune": "skipped"}
