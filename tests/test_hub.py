"""Publishing with the real client, against a Hub on the loopback: what arrives, what loads, what fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optimum_moreau.hub import merged_card
from tests.hub_server import READ_ONLY, TOKEN, Hub

LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
{first}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]{options})
AutoTokenizer.from_pretrained(sys.argv[1]{options})
{records}
print(json.dumps({{name: float(w.double().sum()) for name, w in model.state_dict().items()}}))
"""


@pytest.fixture
def hub():
    with Hub() as found:
        yield found


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory, text):
    """A pruned model of its own type, and a stock one."""
    from optimum_moreau import MoreauPruner, MoreauPrunerConfig
    from optimum_moreau.checkpoint import load_model, load_tokenizer

    found = {}
    for kind, scope in {"own": (1, 2), "stock": (0, 3)}.items():
        config = MoreauPrunerConfig(
            criterion="taylor", unit_ratio=0.5, attention_layers=scope, mlp_layers=scope, sequence_length=32
        )
        pruner = MoreauPruner(config, tokenizer=load_tokenizer(str(tiny_folder)))
        pruner.prune(load_model(str(tiny_folder)), [text])
        found[kind] = tmp_path_factory.mktemp("pruned") / kind
        pruner.save_pretrained(found[kind])
    return found


def environment(hub, home, token=TOKEN):
    """A client of the loopback Hub alone, with an empty cache."""
    values = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return {**os.environ, **values, **({"HF_TOKEN": token} if token else {})}


def push(hub, tmp_path, *arguments, token=TOKEN):
    """Runs `optimum-moreau push …` in a process of its own."""
    command = [sys.executable, "-m", "optimum_moreau", "push", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment(hub, tmp_path / "home", token)
    )


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
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code, "me/pruned"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(hub, tmp_path / "stranger"),
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
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, str(argument)],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(hub, tmp_path / home),
        )
        assert done.returncode == 0, done.stderr
    assert "modeling_moreau.py" in hub.files("me/plain")


def test_a_dry_run_sends_nothing(hub, folders, tmp_path):
    done = push(hub, tmp_path, folders["stock"], "me/pruned", "--dry-run")
    assert done.returncode == 0 and "model.safetensors" in done.stdout
    assert not hub.log


def assert_arrived(hub, folder):
    """Every file but the card is there as it is in the folder."""
    there = hub.files("me/pruned")
    for path in folder.iterdir():
        assert path.name == "README.md" or there[path.name] == path.read_bytes(), path.name


# the endpoint that fails, and what the message says where it goes on failing
FAILURES = {
    "401": (("POST", "/api/repos/create", 401), "no token, or one that is not valid"),
    "403": (("POST", "/commit/", 403), "the token may not write there"),
    "404": (("POST", "/preupload/", 404), "no such repository or namespace"),
}
PASSING = {
    "409": ("POST", "/commit/", 409),
    "429": ("POST", "/preupload/", 429),
    "429 until a date": ("POST", "/preupload/", 429, "Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 until whenever": ("POST", "/preupload/", 429, "later"),
    "500": ("POST", "/commit/", 500),
    "cut connection": ("PUT", "/lfs/", "cut"),
    "500 in the upload": ("PUT", "/lfs/", 500),
    "slow": ("POST", "/preupload/", "slow", 2.0),
}


@pytest.mark.parametrize(("failure", "message"), FAILURES.values(), ids=FAILURES)
def test_a_refusal_is_told_in_one_line_and_a_second_try_completes(failure, message, hub, folders, tmp_path):
    hub.failures.append(failure)
    done = push(hub, tmp_path, folders["stock"], "me/pruned")
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr and TOKEN not in done.stderr + done.stdout
    again = push(hub, tmp_path, folders["stock"], "me/pruned")
    assert again.returncode == 0, again.stderr
    assert_arrived(hub, folders["stock"])


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_what_passes_is_waited_for(failure, hub, folders, tmp_path):
    hub.failures.append(failure)
    done = push(hub, tmp_path, folders["stock"], "me/pruned")
    assert done.returncode == 0, done.stderr
    assert_arrived(hub, folders["stock"])
    assert not hub.failures and TOKEN not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "no token, or one that is not valid"), (READ_ONLY, "the token may not write there")],
    ids=["none", "read-only"],
)
def test_without_the_right_to_write_nothing_is_sent(token, message, hub, folders, tmp_path):
    done = push(hub, tmp_path, folders["stock"], "me/pruned", token=token)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and READ_ONLY not in done.stderr
    assert not hub.repositories


def test_what_cannot_be_pushed_is_refused_before_a_request(hub, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "training_args.bin").touch()
    for arguments, message in (
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
    for file in ("model-00001-of-00002.safetensors", "recovery_summary.json", "adapter/adapter_config.json"):
        (first / file).write_text("{}")
    assert push(hub, tmp_path, first, "me/pruned").returncode == 0
    hub.commit("me/pruned", "main", {**hub.files("me/pruned"), "model-q8.gguf": b"mine", "notes.md": b"mine"})
    assert push(hub, tmp_path, second, "me/pruned").returncode == 0
    there = hub.files("me/pruned")
    assert there.keys() - {path.name for path in second.iterdir()} == {".gitattributes", "model-q8.gguf", "notes.md"}


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
    example = Path(__file__).parents[1] / "examples" / "prune_recover_push.py"
    assert len(example.read_text().splitlines()) <= 60
    flags = [f"--{name}={tmp_path / 'text.txt'}" for name in ("calibration", "data", "heldout")]
    done = subprocess.run(
        [sys.executable, str(example), str(tiny_folder), "me/chain", *flags, "--max-steps=5", "--seq-len=32"],
        capture_output=True,
        text=True,
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
