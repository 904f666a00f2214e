"""Saves are all or nothing, are checked against the model in memory, and say nothing about the machine."""

import errno
import json
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.errors import CheckpointError, MoreauError
from optimum_moreau.loading import base_revision
from optimum_moreau.saving import save_folder
from optimum_moreau.saving.verification import Verification, parked, verify
from tests.tiny import assert_same_state, snapshot, tiny_model, weights_in

CONFIG = MoreauPrunerConfig(criterion="taylor", unit_ratio=0.25, calibration_samples=2, sequence_length=16)
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
RECORDS = {"pruning_plan.json", "pruning_summary.json", "moreau_pruner_config.json", "README.md"}
SCORES = {"pruning", "pruning_scores.safetensors"}
FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def pruner(tokenizer, text):
    """A pruner that has pruned a tiny model: of its own type, with its tokenizer."""
    model = tiny_model("llama", vocab_size=len(tokenizer))
    pruner = MoreauPruner(CONFIG, tokenizer=tokenizer)
    pruner.prune(model, [text])
    pruner.model = model
    return pruner


def old_model(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_text("old")
    (folder / "NOTICE.txt").write_text("old")
    return folder


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def files_limited_to(size):
    """No file may grow beyond so many bytes: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# All or nothing

STEPS = (
    "transformers.PreTrainedModel.save_pretrained",
    "transformers.PreTrainedTokenizerBase.save_pretrained",
    "optimum_moreau.pruner.PruningPlan.save",
    "optimum_moreau.saving.records.write_card",
)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
def test_a_save_that_fails_leaves_what_was_there(pruner, unverified, monkeypatch, tmp_path, step, old):
    def fail(*_, **__):
        raise FULL_DISK

    if old:
        old_model(tmp_path / "out")
    before = tree(tmp_path)
    monkeypatch.setattr(step, fail)
    with pytest.raises(CheckpointError, match=r"out: cannot be written \(No space left on device\); nothing was saved"):
        pruner.save_pretrained(tmp_path / "out", overwrite=old)
    assert tree(tmp_path) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] * old


@pytest.mark.parametrize("error", [FULL_DISK, SafetensorError("I/O error"), KeyboardInterrupt(), RuntimeError("a bug")])
@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
def test_whatever_interrupts_a_save_leaves_what_was_there(tmp_path, error, old):
    if old:
        old_model(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises((CheckpointError, type(error))), save_folder(tmp_path / "out", overwrite=old) as folder:
        (folder / "model.safetensors").write_text("half")
        raise error
    assert tree(tmp_path) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] * old


@pytest.mark.parametrize("size", [100, 40_000], ids=["config", "weights"])
def test_a_disk_that_fills_up_leaves_no_folder(pruner, unverified, tmp_path, size):
    with files_limited_to(size), pytest.raises(CheckpointError, match="out: cannot be written"):
        pruner.save_pretrained(tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())
    pruner.save_pretrained(tmp_path / "new" / "out")
    assert weights_in(tmp_path / "new" / "out").keys() == pruner.model.state_dict().keys()


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    before = tree(old_model(tmp_path / "out"))
    rename = Path.rename

    def no_exchange(one, two):
        raise OSError(errno.ENOSYS, "no such call")

    def fail_for_the_new_one(path, target):
        if ".partial" in path.name:
            raise FULL_DISK
        return rename(path, target)

    monkeypatch.setattr("optimum_moreau.files.temporary.exchange", no_exchange)
    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(CheckpointError), save_folder(tmp_path / "out", overwrite=True):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and tree(tmp_path / "out") == before


def test_a_folder_that_is_not_empty_needs_overwrite(pruner, unverified, tmp_path):
    out = old_model(tmp_path / "out")
    before = tree(out)
    with pytest.raises(CheckpointError, match=r"is not empty; .*--overwrite"):
        pruner.save_pretrained(out)
    assert tree(out) == before
    pruner.save_pretrained(out, overwrite=True)
    assert not (out / "NOTICE.txt").exists() and (out / "model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == [out]


def test_an_empty_folder_needs_no_overwrite(pruner, unverified, tmp_path):
    (tmp_path / "out").mkdir()
    pruner.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_overwrite_replaces_models_only(pruner, unverified, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds no saved model"):
        pruner.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_place_of_the_folder_is_refused(pruner, unverified, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        pruner.save_pretrained(tmp_path / "out", overwrite=True)


def test_nothing_pruned_is_nothing_to_save(tmp_path):
    with pytest.raises(MoreauError, match="nothing was pruned yet"):
        MoreauPruner().save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Verification


def after_save(model, monkeypatch, change):
    """Every save of the model is followed by a change to what is on disk."""
    save = model.save_pretrained

    def save_and_change(folder, *args, **kwargs):
        save(folder, *args, **kwargs)
        change(Path(folder))

    monkeypatch.setattr(model, "save_pretrained", save_and_change)


def flip_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1e-6  # no logit would tell
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_the_config(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"rms_norm_eps": 0.5}))


def damage_the_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip_a_weight, "model.layers.1.mlp.up_proj.weight on disk is not what was saved"),
        (drop_a_weight, r"logits differ by .* \(window [01], position \d+, token \d+\)"),
        (change_the_config, r"logits differ by .* \(window [01], position \d+, token \d+\)"),
        (damage_the_config, "config.json: cannot be read as a config: not JSON"),
    ],
)
def test_a_checkpoint_that_is_not_the_model_is_not_saved(pruner, monkeypatch, tmp_path, change, words):
    before = snapshot(pruner.model)
    after_save(pruner.model, monkeypatch, change)
    with pytest.raises(CheckpointError, match=words) as error:
        pruner.save_pretrained(tmp_path / "out")
    assert str(error.value).startswith(f"{tmp_path}/out: ") and str(error.value).endswith("; nothing was saved")
    assert not list(tmp_path.iterdir())
    assert_same_state(pruner.model, before)


@pytest.mark.parametrize("export", ["stock", "custom"])
def test_a_checkpoint_that_is_the_model_is_verified_exactly(tmp_path, tokens, export, fresh_processes):
    model = tiny_model("qwen2").train()
    config = MoreauPrunerConfig(criterion="random", unit_ratio=0.5, export=export)
    MoreauPruner(config).prune(model)
    before = snapshot(model)
    model.save_pretrained(tmp_path / "out")
    assert verify(model, tmp_path / "out", tokens) == Verification(0.0, 32)
    assert_same_state(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", ["1GB", "20KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_parked_weights_are_freed_and_come_back_bit_for_bit(tmp_path, dtype, size, tied):
    model = tiny_model("llama", dtype=dtype, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=size)
    before, parameters = snapshot(model), dict(model.named_parameters())
    with pytest.raises(KeyboardInterrupt), parked(model, tmp_path):
        assert not any(parameter.numel() for parameter in model.parameters())
        raise KeyboardInterrupt
    assert_same_state(model, before)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_weights_that_are_not_on_disk_stay_in_memory(llama, tmp_path):
    with parked(llama, tmp_path):
        assert all(parameter.numel() for parameter in llama.parameters())


# What a saved folder holds


@pytest.mark.parametrize("export", ["stock", "custom"])
def test_a_saved_folder_holds_these_files(tokenizer, text, unverified, tmp_path, export):
    model = tiny_model("mistral", vocab_size=len(tokenizer))
    pruner = MoreauPruner(MoreauPrunerConfig(**CONFIG.to_dict() | {"export": export}), tokenizer=tokenizer)
    pruner.prune(model, [text])
    pruner.save_pretrained(tmp_path / "out")
    own = {"modeling_moreau.py"} if export == "custom" else set()
    assert {path.name for path in (tmp_path / "out").rglob("*")} == MODEL_FILES | RECORDS | SCORES | own


def test_an_applied_plan_is_saved_with_all_but_scores(pruner, unverified, tmp_path):
    plan = pruner._result.plan
    model = tiny_model("llama", vocab_size=pruner.model.config.vocab_size)
    again = MoreauPruner(tokenizer=pruner.tokenizer)
    again.apply(model, plan)
    again.save_pretrained(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"modeling_moreau.py"} == MODEL_FILES | RECORDS
    assert_same_state(model, snapshot(pruner.model))


def test_no_file_says_whose_machine_it_was(tiny_folder, tmp_path, text, unverified, monkeypatch):
    monkeypatch.setenv("USER", "ada.lovelace")
    monkeypatch.setattr("socket.gethostname", lambda: "ada-laptop")
    home = tmp_path / "home" / "ada.lovelace"
    home.mkdir(parents=True)
    base = home / "tiny-llama"
    base.symlink_to(tiny_folder)
    (home / "my text.txt").write_text(text, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    pruner = MoreauPruner(CONFIG, tokenizer=tokenizer)
    pruner.prune(AutoModelForCausalLM.from_pretrained(str(base)), str(home / "my text.txt"))
    pruner.save_pretrained(home / "out")
    secrets = ("ada.lovelace", "ada-laptop", str(tmp_path), str(tiny_folder.parent))
    for path in (path for path in (home / "out").rglob("*") if path.is_file()):
        assert not [secret for secret in secrets if secret.encode() in path.read_bytes()], path.name
    summary = json.loads((home / "out" / "pruning_summary.json").read_text())
    assert (summary["base_model"], summary["calibration"]["source"]) == ("tiny-llama", "my text.txt")


def test_weights_are_safetensors_of_the_model_alone(pruner, unverified, tmp_path):
    pruner.save_pretrained(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    saved, state = weights_in(tmp_path / "out"), pruner.model.state_dict()
    assert saved.keys() == state.keys() and all(torch.equal(saved[name], state[name]) for name in saved)


def test_verifying_leaves_nothing_in_the_users_cache(pruner, tmp_path, monkeypatch, fresh_processes):
    """The own type's modeling file is imported from a folder of its own, not from the cache of Hub code."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    pruner.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "modules").exists()


def test_a_hub_models_revision_is_the_commit_in_the_cache(tmp_path, monkeypatch, tiny_folder):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / commit
    shutil.copytree(tiny_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert base_revision("org/tiny") == commit
    assert base_revision("org/unknown") is None
    assert base_revision(str(tiny_folder)) is None
