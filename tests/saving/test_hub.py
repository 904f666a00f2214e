"""Publishing with the real client, against a Hub on the loopback: what arrives, what loads, what fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optimum_moreau import push_to_hub
from optimum_moreau.saving.hub import merged_card
from tests import warm
from tests.hub_client import environment, push
from tests.hub_server import TOKEN

LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
{first}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]{options})
AutoTokenizer.from_pretrained(sys.argv[1]{options})
{records}
print(json.dumps({{name: float(w.double().sum()) for name, w in model.state_dict().items()}}))
"""


@pytest.mark.parametrize(
    ("kind_of_model", "first", "options"),
    [("stock", "", ""), ("own", "import optimum_moreau", ""), ("own", "", ", trust_remote_code=True")],
    ids=["stock", "own", "remote code"],
)
def test_what_is_pushed_loads_from_the_hub(kind_of_model, first, options, hub, folders, tmp_path):
    done = push(hub, tmp_path, folders[kind_of_model], "me/pruned", "--verify", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    assert b'from_pretrained("me/pruned")' in hub.files("me/pruned")["README.md"]
    assert files.keys() | {".gitattributes"} == hub.files("me/pruned").keys()
    assert sum("/commit/" in path for method, path in hub.log if method == "POST") == 1
    records = "from optimum_moreau import MoreauPrunerConfig, PruningPlan\n" + "".join(
        f"assert {kind}.from_pretrained(sys.argv[1]) == {kind}.from_pretrained({str(folders[kind_of_model])!r})\n"
        for kind in ("MoreauPrunerConfig", "PruningPlan")
    )
    code = LOAD.format(first=first, options=options, records=records if first else "")
    loaded = warm.run(
        [sys.executable, "-P", "-c", code, "me/pruned"], timeout=120, env=environment(hub, tmp_path / "stranger")
    )
    assert loaded.returncode == 0, loaded.stderr
    sums = json.loads(loaded.stdout)
    for name, weight in load_file(folders[kind_of_model] / "model.safetensors").items():
        assert sums[name] == pytest.approx(float(weight.double().sum()), abs=1e-9)


PLAIN_PUSH = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from optimum_moreau import MoreauPruner, MoreauPrunerConfig
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
MoreauPruner(MoreauPrunerConfig(criterion="magnitude", unit_ratio=0.5, mlp_layers=(1, 2))).prune(model)
model.push_to_hub("me/plain")
tokenizer.push_to_hub("me/plain")
print(float(model.lm_head.weight.double().sum()))
"""


def test_a_plain_push_of_a_pruned_model_loads_too(hub, tiny_folder, tmp_path):
    load = LOAD.format(first="", options=", trust_remote_code=True", records="")
    for code, argument, home in ((PLAIN_PUSH, tiny_folder, "home"), (load, "me/plain", "stranger")):
        done = warm.run(
            [sys.executable, "-P", "-c", code, argument], timeout=120, env=environment(hub, tmp_path / home)
        )
        assert done.returncode == 0, done.stderr
    assert "modeling_moreau.py" in hub.files("me/plain")


def test_a_dry_run_sends_nothing(hub, folders, tmp_path):
    message = ("--commit-message", "Half the MLP")
    done = push(hub, tmp_path, folders["stock"], "me/pruned", "--dry-run", *message, token=None)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout and "would send to me/pruned, as 'Half the MLP'" in done.stdout
    assert not hub.log


DRY_RUN = """
import sys
from optimum_moreau import push_to_hub
print(push_to_hub(sys.argv[1], "me/pruned", dry_run=True))
"""


def test_a_dry_run_from_python_says_what_a_push_sends(hub, folders, tmp_path):
    found = push_to_hub(folders["stock"], "me/pruned", dry_run=True)
    sizes = {path.relative_to(folders["stock"]).as_posix(): path.stat().st_size for path in folders["stock"].rglob("*")}
    assert found.files == {name: sizes[name] for name in found.files} and "model.safetensors" in found.files
    assert (found.repo_id, found.commit, found.changed) == ("me/pruned", "", False)
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, str(folders["stock"])],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(hub, tmp_path / "home", token=None),
    )
    assert done.stdout.strip() == str(found), done.stderr
    assert not hub.log
    assert push(hub, tmp_path, folders["stock"], "me/pruned").returncode == 0
    assert hub.files("me/pruned").keys() - found.files.keys() == {".gitattributes"}
    assert hub.messages == [found.commit_message]


WITHOUT_TORCH = """
import sys
sys.modules |= {"torch": None, "transformers": None}
from optimum_moreau.cli.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_push_needs_no_torch(hub, folders, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "push", str(folders["stock"]), "me/pruned"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(hub, tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.files("me/pruned")


def test_what_cannot_be_pushed_is_refused_before_a_request(hub, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "training_args.bin").touch()
    cards = {"cut": "---\na: [\n---\n", "endless": "---\na: &a [x]\nb: [*a, *a]\n---\n", "bytes": b"\xff"}
    for name, card in cards.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    for arguments, message in (
        *(((tmp_path / name, "me/x"), f"{name}/README.md: cannot be read as a model card") for name in cards),
        ((tmp_path / "empty", "me/x"), "holds no model"),
        ((pickled, "me/x"), "training_args.bin may be a pickle"),
        ((folders["stock"], "me/a/b"), "is no name for a repository"),
        ((folders["stock"], "me/a--b"), "is no name for a repository"),
    ):
        done = push(hub, tmp_path, *arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not hub.log


def test_the_card_on_the_hub_is_merged_and_replaced_when_asked(hub, folders, tmp_path):
    assert push(hub, tmp_path, folders["stock"], "me/pruned").returncode == 0
    theirs = hub.files("me/pruned")["README.md"].decode().replace("tags:\n", "tags:\n- mine\n") + "\nMy own words.\n"
    hub.commit("me/pruned", "main", {**hub.files("me/pruned"), "README.md": theirs.encode()})
    assert push(hub, tmp_path, folders["stock"], "me/pruned").returncode == 0
    merged = ModelCard(hub.files("me/pruned")["README.md"].decode())
    assert "My own words." in merged.text and merged.text.count("## How it was pruned") == 1
    assert {"mine", "pruned"} <= set(merged.data.tags)
    assert push(hub, tmp_path, folders["stock"], "me/pruned", "--overwrite-card").returncode == 0
    assert b"My own words." not in hub.files("me/pruned")["README.md"]


def test_a_push_leaves_nothing_of_the_one_before(hub, folders, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, model in ((first, "own"), (second, "stock")):
        shutil.copytree(folders[model], folder)
    (first / "adapter").mkdir()
    for file in (
        "model-00001-of-00002.safetensors",
        "recovery_summary.json",
        "benchmark.json",
        "pruning_scores.safetensors",  # where older versions put them
        "adapter/adapter_config.json",
    ):
        (first / file).write_text("{}")
    assert push(hub, tmp_path, first, "me/pruned").returncode == 0
    hub.commit("me/pruned", "main", {**hub.files("me/pruned"), "model-q8.gguf": b"mine", "notes.md": b"mine"})
    assert push(hub, tmp_path, second, "me/pruned").returncode == 0
    there = hub.files("me/pruned")
    sent = {path.relative_to(second).as_posix() for path in second.rglob("*")}
    assert "pruning/pruning_scores.safetensors" in there
    assert there.keys() - sent == {".gitattributes", "model-q8.gguf", "notes.md"}


def test_weights_that_would_be_loaded_instead_are_found(hub, folders, tmp_path):
    assert push(hub, tmp_path, folders["stock"], "me/pruned").returncode == 0
    sharded = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(folders["stock"])
    with torch.no_grad():
        model.lm_head.weight.neg_()
    model.save_pretrained(sharded, max_shard_size="20KB")
    done = push(hub, tmp_path, sharded, "me/pruned", "--verify")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" not in hub.files("me/pruned")


def test_a_card_that_cannot_be_read_is_not_replaced_unasked(hub, folders, tmp_path):
    assert push(hub, tmp_path, folders["stock"], "me/pruned").returncode == 0
    hub.commit("me/pruned", "main", {**hub.files("me/pruned"), "README.md": b"---\na: [\n---\nMy words.\n"})
    done = push(hub, tmp_path, folders["stock"], "me/pruned")
    assert done.returncode == 2 and "the card there cannot be read" in done.stderr and "Traceback" not in done.stderr
    assert hub.files("me/pruned")["README.md"].endswith(b"My words.\n")
    assert push(hub, tmp_path, folders["stock"], "me/pruned", "--overwrite-card").returncode == 0


def test_merging_keeps_what_they_wrote_and_unites_lists():
    theirs = ModelCard("---\nlicense: mit\ntags: [a]\ndatasets: [x]\n---\n\n# Theirs\n\nWords.\n")
    ours = ModelCard("---\ntags: [b, a]\nlibrary_name: transformers\n---\n\n# Ours\n")
    once = ModelCard(merged_card(theirs, ours))
    assert once.data.to_dict() == {
        "license": "mit",
        "tags": ["a", "b"],
        "datasets": ["x"],
        "library_name": "transformers",
    }
    assert once.text.strip().startswith("# Theirs\n\nWords.") and "# Ours" in once.text
    assert merged_card(once, ours) == merged_card(theirs, ours)  # pushing again changes nothing


def test_the_example_prunes_recovers_and_pushes(hub, tiny_folder, text, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    example = Path(__file__).parents[2] / "examples" / "prune_recover_push.py"
    assert len(example.read_text().splitlines()) <= 60
    flags = [f"--{name}={tmp_path / 'text.txt'}" for name in ("calibration", "data", "heldout")]
    done = warm.run(
        [sys.executable, example, tiny_folder, "me/chain", *flags, "--max-steps=5", "--seq-len=32"],
        timeout=200,
        env=environment(hub, tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr
    stages = [line.split()[0] for line in done.stdout.splitlines() if " perplexity " in line]
    assert stages == ["before", "pruned", "recovered"]
    card = ModelCard(hub.files("me/chain")["README.md"].decode())
    assert card.data.eval_results[0].metric_type == "perplexity"
    for name, content in hub.files("me/chain").items():
        if name.endswith((".json", ".md")):
            assert str(tmp_path) not in content.decode() and TOKEN not in content.decode(), name
