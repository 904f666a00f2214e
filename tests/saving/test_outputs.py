"""Outputs: never what is read, one run's at a time, whole or as they were, wherever they lie."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan
from optimum_moreau.config import CONFIG_NAME
from optimum_moreau.errors import CheckpointError, ConfigError, MoreauError
from optimum_moreau.evaluation.records import EVALUATION_NAME, Measurement, save_measurements
from optimum_moreau.evaluation.speed import SPEED_NAME
from optimum_moreau.files import write_json, write_tensors, write_text
from optimum_moreau.files.temporary import collect_temporary, exchange, temporary_folder
from optimum_moreau.masks.summary import SPARSITY_NAME
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import PLAN_NAME, make_plan, removed_parameters, removes_nothing
from optimum_moreau.recovery.adapter import Adapter
from optimum_moreau.recovery.recovery import RECOVERY_NAME
from optimum_moreau.recovery.training import last_state
from optimum_moreau.saving import add_files, check_apart, claimed, save_folder
from optimum_moreau.saving import contents as model_contents
from optimum_moreau.saving.hub import files_to_push
from optimum_moreau.saving.summary import SUMMARY_NAME
from optimum_moreau.scoring.scores import SCORES_NAME, UnitScores
from tests.recover_process import RECORDS
from tests.tiny import contents, tiny_model

PLAIN = ("--criterion", "magnitude", "--preset", "plain")
RECOVER = ("--max-steps", "1", "--batch-size", "2", "--validation", "0", "--seq-len", "64")


@pytest.fixture
def place(tmp_path, text, tiny_folder, folders, monkeypatch):
    """A working folder with a base model, a pruned one and texts."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    shutil.copytree(folders["stock"], tmp_path / "pruned")
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "records.json").write_text(json.dumps(RECORDS))
    (tmp_path / "card.md").write_text("---\n{{ card_data }}\n---\n{{ title }}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


# Never what is read


READ = {
    "apply onto its base": ("apply", "pruned", "base", "-o", "base", "--overwrite"),
    "apply onto its plan": ("apply", "pruned", "base", "-o", "pruned", "--overwrite"),
    "apply onto its plan's file": ("apply", "pruned/pruning_plan.json", "base", "-o", "pruned", "--overwrite"),
    "apply onto a link to its base": ("apply", "pruned", "base", "-o", "link", "--overwrite"),
    "prune onto its base": ("prune", "base", "-o", "base", "--overwrite", *PLAIN),
    "prune into its base": ("prune", "base", "-o", "base/pruned", *PLAIN),
    "prune around its base": ("prune", "base", "-o", ".", "--overwrite", *PLAIN),
    "prune around its card": ("prune", "base", "-o", "near", "--card-template", "near/card.md", "--overwrite", *PLAIN),
    "prune into its steps": ("prune", "base", "-o", "steps/out", "--checkpoint-dir", "steps", *PLAIN),
    "steps in the base": ("prune", "base", "-o", "out", "--checkpoint-dir", "base/steps", *PLAIN),
    "plan into its base": ("plan", "base", "-o", "base/plan.json", *PLAIN),
    "plan onto its text": ("plan", "base", "-o", "text.txt", "--calibration", "text.txt", "--overwrite", *PLAIN),
    "plan onto its scores": (
        "plan", "base", "-o", f"pruned/{SCORES_NAME}", "--from-scores", f"pruned/{SCORES_NAME}", "--overwrite"
    ),
    "recover onto its model": ("recover", "pruned", "-o", "pruned", "--data", "records.json", "--overwrite"),
    "recover onto its teacher": (
        "recover", "pruned", "-o", "base", "--teacher", "base", "--data", "records.json", "--overwrite"
    ),
    "states in the model": ("recover", "pruned", "-o", "o", "--data", "records.json", "--work-dir", "pruned/work"),
    "adapter replaced": ("recover", "pruned", "-o", "near", "--adapter", "near/adapter", "--overwrite"),
    "report onto a record": ("report", "pruned", "-o", "pruned/README.md", "--overwrite"),
    "robustness into the model": ("robustness", "base", "-o", "base"),
    "insight into the model": ("insight", "base", "-o", "base", "--evaluate", "text.txt"),
}  # fmt: skip


@pytest.mark.parametrize("arguments", READ.values(), ids=READ)
def test_an_output_that_is_an_input_is_refused_before_any_work(arguments, place, command, monkeypatch):
    (place / "link").symlink_to("base")
    shutil.copytree(place / "pruned", place / "near")
    (place / "near" / "adapter").mkdir()
    shutil.copy(place / "card.md", place / "near")
    monkeypatch.setattr("optimum_moreau.loading.loading.load_model", lambda *_, **__: pytest.fail("was loaded"))
    before = contents(place)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "") and re.search(r"(is|lies in|holds) \S+, which is (read|written too)", err), err
    assert len(err.splitlines()) == 1 and contents(place) == before


def test_a_saved_model_never_replaces_the_one_it_was_loaded_from(place, unverified):
    pruner = MoreauPruner.from_pretrained("pruned")
    before = contents(place)
    for output in ("pruned", "pruned/again", place):
        with pytest.raises(ConfigError, match="which is read"):
            pruner.save_pretrained(output, overwrite=True)
    assert contents(place) == before


def test_names_that_are_not_there_are_no_inputs(tmp_path):
    check_apart([tmp_path / "out"], ["org/model", None, "", "hub:org/data", tmp_path / "none", "x" * 5000, "~nobody/x"])


# Only models are replaced


def test_the_names_of_all_records_are_known():
    written = (PLAN_NAME, SUMMARY_NAME, CONFIG_NAME, EVALUATION_NAME, SPEED_NAME, SPARSITY_NAME, RECOVERY_NAME)
    assert set(written) == set(model_contents.RECORDS)
    assert f"pruning/{model_contents.CONTENTS['pruning'][0]}" == SCORES_NAME


@pytest.mark.parametrize(
    "name",
    ["thesis.tex", "adapter/notes.txt", "pruning/plots/a.png", ".git/config", "data.csv", "results/x", "model.gguf"],
)
def test_what_is_no_part_of_a_model_is_never_replaced(name, place, command):
    (place / "pruned" / name).parent.mkdir(parents=True, exist_ok=True)
    (place / "pruned" / name).write_text("years of work")
    before = contents(place)
    code, _, err = command("prune", "base", "-o", "pruned", "--overwrite", *PLAIN)
    odd = name if name.startswith(("adapter", "data", "thesis", "model")) else name.rpartition("/")[0]
    assert code == 2 and f"pruned: holds {odd}, which is not part of a model: move it" in err, err
    assert contents(place) == before


@pytest.mark.parametrize("config", ["{}", "[]", "{", '{"model_type": 3}', '{"model_type": "llama"}'])
def test_a_config_alone_is_no_model(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match="holds no saved model"), save_folder(tmp_path / "out", overwrite=True):
        pytest.fail("was begun")


def test_every_kind_of_model_may_be_replaced(place, folders):
    (place / "base" / ".cache" / "huggingface" / "download").mkdir(parents=True)  # a download into a folder
    (place / "base" / ".cache" / "huggingface" / "download" / "a.metadata").write_text("")
    for name in ("LICENSE", "tokenizer.model", ".gitattributes", "merges.txt"):
        (place / "base" / name).write_text("")
    for folder in (place / "base", place / "pruned", folders["own"]):
        assert model_contents.is_model(folder) and model_contents.strangers(folder) == []


# What lies in a saved folder

TOP = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "README.md", "pruning_plan.json", "pruning_summary.json", "moreau_pruner_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tiny_folder, tmp_path_factory, text):
    """A saved folder of every kind."""
    from optimum_moreau import RecoveryConfig
    from optimum_moreau.loading import load_model, load_tokenizer

    settings = {
        "stock": {"unit_ratio": 0.5, "attention_layers": (0, 3), "mlp_layers": (0, 3)},
        "own": {"unit_ratio": 0.5, "attention_layers": (1, 2), "mlp_layers": (1, 2)},
        "masked": {"pattern": "2:4"},
    }
    found, top = {}, tmp_path_factory.mktemp("kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_moreau.pruner.verify", lambda *_, **__: type("V", (), {"max_abs_difference": 0.0}))
        for kind, fields in settings.items():
            pruner = MoreauPruner(
                MoreauPrunerConfig(criterion="magnitude", **fields), tokenizer=load_tokenizer(str(tiny_folder))
            )
            pruner.prune(load_model(str(tiny_folder)))
            found[kind] = top / kind
            pruner.save_pretrained(found[kind])
        pruner = MoreauPruner.from_pretrained(found["stock"])
        pruner.recover([{"text": text}], RecoveryConfig(max_steps=1, batch_size=2, validation=0, sequence_length=32))
        pruner.evaluate([text[:2000]], sequence_length=32)
        pruner.save_pretrained(top / "recovered")
    return {**found, "recovered": top / "recovered"}


def test_the_top_of_every_saved_folder_holds_exactly_this(kinds):
    more = {
        "stock": {"pruning"},
        "own": {"pruning", "modeling_moreau.py"},
        "masked": {"sparsity_summary.json"},
        "recovered": {"pruning", "adapter", "recovery_summary.json", "evaluation.json"},
    }
    for kind, folder in kinds.items():
        assert set(listed(folder)) == TOP | more[kind], kind
        assert [name for name in listed(folder) if name.endswith(".safetensors")] == ["model.safetensors"]
        assert model_contents.strangers(folder) == []
    assert listed(kinds["stock"] / "pruning") == ["pruning_scores.safetensors"]
    assert SCORES_NAME in files_to_push(kinds["stock"])


def test_scores_at_the_top_of_older_folders_are_read(kinds, tmp_path, command, tiny_folder):
    old = shutil.copytree(kinds["stock"], tmp_path / "old")
    (old / SCORES_NAME).rename(old / "pruning_scores.safetensors")
    (old / "pruning").rmdir()
    expected = UnitScores.load(kinds["stock"])
    assert UnitScores.load(old).values.keys() == expected.values.keys()
    assert MoreauPruner.from_pretrained(old)._result.scores is not None
    assert command("plan", tiny_folder, "-o", tmp_path / "plan.json", "--from-scores", old, "--ratio", "0.1")[0] == 0


# One run at a time


@contextmanager
def held(name, folder):
    """Another process claims an output, by a name in a folder; yields that process."""
    forks = multiprocessing.get_context("fork")
    here, there = forks.Pipe()

    def hold():
        os.chdir(folder)
        with claimed(name):
            there.send("claimed")
            there.recv()

    process = forks.Process(target=hold)
    process.start()
    try:
        assert here.poll(60) and here.recv() == "claimed"
        yield process
    finally:
        here.send("let go")
        process.join()


def test_of_two_runs_with_one_output_the_second_is_refused_at_once(place, command, unverified, monkeypatch):
    with held("out", place) as first:
        code, _, err = command("prune", "base", "-o", "out", *PLAIN)
        assert code == 2 and f"out: another run writes it (process {first.pid}); let that end" in err
        assert not (place / "out").exists()
        first.kill()  # a dead process holds nothing
        first.join()
    assert (place / ".out.lock").exists()
    assert command("prune", "base", "-o", "out", *PLAIN)[0] == 0
    assert [name for name in listed(place) if name.startswith(".")] == []


def test_a_claim_is_one_threads(tmp_path):
    found = []

    def other():
        try:
            with claimed(tmp_path / "out"):
                pass
        except CheckpointError as error:
            found.append(str(error))

    with claimed(tmp_path / "out"), claimed(tmp_path / "out"):  # within its own block it may claim again
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1 and "another run writes it" in found[0]
    assert listed(tmp_path) == []


@pytest.mark.parametrize("there", [True, False], ids=["there before", "made meanwhile"])
@pytest.mark.parametrize("first", ["within", "from outside", "renamed"])
def test_an_output_is_one_runs_whatever_the_others_call_it(first, there, place, command, monkeypatch):
    """… a `.` within it, its name from outside, or a name that the first did not know (as of a mount)."""
    if not there and first != "from outside":
        pytest.skip("nothing to be within, or to rename")
    if there:
        (place / "out").mkdir()
    where, name = (place / "out", ".") if first == "within" else (place, "out")
    with held(name, where) as run:
        (place / "out").mkdir(exist_ok=True)
        output = "out"
        if first == "from outside":
            monkeypatch.chdir(place / "out")
            output = "."
        elif first == "renamed":
            (place / "out").rename(place / "other")
            output = "other"
        code, out, err = command("prune", place / "base", "-o", output, *PLAIN)
        assert (code, out) == (2, "") and f"{output}: another run writes it (process " in err, err
        assert first == "renamed" or f"(process {run.pid})" in err
    assert [name for name in listed(place) if name.startswith(".")] == []
    assert command("prune", place / "base", "-o", output, *PLAIN, "--dry-run")[0] == 0
    with claimed(output):
        pass


def test_what_came_to_lie_there_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(CheckpointError, match=r"out: is not empty; .*nothing was saved"), save_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("{}")
    assert tree(tmp_path) == {"out/config.json": b"{}"}


def test_a_claim_says_at_the_start_that_nothing_can_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("optimum_moreau.saving.outputs.os.write", full)
    with pytest.raises(CheckpointError, match="No space left"), claimed(tmp_path / "a" / "out"):
        pytest.fail("was begun")
    assert listed(tmp_path) == []


# Kills


def left_by_a_dead_run(folder, made):
    """A folder as save_folder leaves it when it is killed."""
    folder.mkdir()
    for path, data in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(data)
    return folder


MODEL = {"config.json": '{"model_type": "llama"}', "model.safetensors": "new", "pruning/pruning_scores.safetensors": ""}


def test_the_target_is_there_at_every_moment_of_an_overwrite(tmp_path, monkeypatch):
    """… for the two names are exchanged in one step."""
    left_by_a_dead_run(tmp_path / "out", MODEL)
    seen = []

    def look(one, two):
        seen.append(two.exists())
        exchange(one, two)
        seen.append(two.exists())

    monkeypatch.setattr("optimum_moreau.files.temporary.exchange", look)
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("was renamed"))
    with save_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "config.json").write_text("{}")
    assert seen == [True, True] and tree(tmp_path / "out") == {"config.json": b"{}"}
    assert listed(tmp_path) == ["out"]


def test_an_adapter_is_replaced_in_that_step_too(tmp_path, monkeypatch):
    from peft import LoraConfig

    name = "base_model.model.a.lora_A.weight"
    for value in (0.0, 1.0):
        with monkeypatch.context() as patch:
            if value:
                patch.setattr(Path, "rename", lambda *_: pytest.fail("was renamed"))
            Adapter({name: torch.full((2, 3), value)}, LoraConfig(r=2)).save(tmp_path / "adapter")
        assert Adapter.load(tmp_path / "adapter").weights[name].unique().tolist() == [value]
        assert listed(tmp_path) == ["adapter"]


def test_what_a_killed_run_left_is_put_right(tmp_path, caplog):
    out = tmp_path / "out"
    left_by_a_dead_run(tmp_path / ".out.replaced-01234567", MODEL)
    left_by_a_dead_run(tmp_path / ".out.partial-01234567", {"config.json": "half"})
    left_by_a_dead_run(tmp_path / ".out.partial-mine", {"config.json": "not one of ours"})
    with pytest.raises(CheckpointError, match="is not empty"), save_folder(out):
        pytest.fail("was begun")
    assert (out / "model.safetensors").read_text() == "new" and listed(tmp_path) == [".out.partial-mine", "out"]
    (line,) = caplog.messages
    assert (
        "removed .out.partial-01234567, put .out.replaced-01234567 back, which a run that was killed had left" in line
    )
    left_by_a_dead_run(tmp_path / ".out.replaced-01234567", MODEL)  # beside a target that is whole
    with save_folder(out, overwrite=True) as folder:
        (folder / "config.json").write_text("{}")
    assert listed(tmp_path) == [".out.partial-mine", "out"]


def test_what_a_run_left_within_its_output_is_put_right_from_outside_too(tmp_path, caplog, monkeypatch):
    (tmp_path / "out").mkdir()
    left_by_a_dead_run(tmp_path / "out" / ".out.moving-01234567", MODEL)
    monkeypatch.chdir(tmp_path)
    with claimed("out"):
        pass
    assert (tmp_path / "out" / "config.json").exists() and not (tmp_path / "out" / ".out.moving-01234567").exists()
    (line,) = caplog.messages  # by the name that was given
    assert line.startswith("out: put .out.moving-01234567 in its place") and str(tmp_path) not in line


def test_a_living_runs_folders_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    partial = left_by_a_dead_run(tmp_path / ".out.partial-01234567", {"a": ""})
    temporary = left_by_a_dead_run(tmp_path / "optimum-moreau-undo-01234567", {"a": ""})
    others = left_by_a_dead_run(tmp_path / "optimum-moreau-results", {"a": ""})
    holders = [os.open(path, os.O_RDONLY) for path in (partial, temporary)]
    for holder in holders:
        fcntl.flock(holder, fcntl.LOCK_EX)
    write_text(tmp_path / "out", "")
    collect_temporary()
    assert partial.exists() and temporary.exists()
    for holder in holders:  # they die
        os.close(holder)
    write_text(tmp_path / "out", "")
    with temporary_folder("verify") as folder:
        assert folder.exists() and not temporary.exists()
    assert not partial.exists() and listed(tmp_path) == [others.name, "out"]


def test_every_temporary_folder_has_a_name_of_ours():
    """… so that it is collected; tempfile itself is used in one place."""
    package = Path(model_contents.__file__).parents[1]
    users = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"tempfile\.(mk|Temp|Named)|mkdtemp\(", path.read_text(encoding="utf-8"))
    ]
    assert users == []


# Where it lies


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A folder that says of itself that it is a mount point, which cannot be renamed or renamed onto."""
    path = tmp_path / "volume"
    path.mkdir()
    monkeypatch.setattr("os.path.ismount", lambda one: Path(one) == path)
    rename = os.rename

    def busy(self, target):
        if path in (Path(self), Path(target)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(self, target)
        return Path(target)

    monkeypatch.setattr(Path, "rename", busy)
    return path


def test_a_mount_point_is_filled_in_place(volume, place, command, unverified):
    (volume / "lost+found").mkdir()
    inode = volume.stat().st_ino
    assert command("prune", "base", "-o", "volume", *PLAIN)[0] == 0
    assert command("prune", "base", "-o", "volume", *PLAIN, "--ratio", "0.1")[0] == 2
    (volume / "NOTICE").write_text("of the model that goes")
    assert command("prune", "base", "-o", "volume", "--overwrite", *PLAIN, "--ratio", "0.1")[0] == 0
    assert "lost+found" in listed(volume) and "NOTICE" not in listed(volume) and volume.stat().st_ino == inode
    assert PruningPlan.load(volume) and not [name for name in listed(volume) + listed(place) if name.startswith(".")]


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_mount_point_is_filled_by_the_next_run_where_a_kill_stopped_it(volume, monkeypatch, stop):
    """No moment of it is a model that is half old: config.json goes first and comes last."""
    old = {"config.json": '{"model_type": "llama", "old": 1}', "model.safetensors": "old", "vocab.json": "old"}
    for name, data in old.items():
        (volume / name).write_text(data)

    class Kill(BaseException):
        pass

    calls = 0
    steps = {name: getattr(Path, name) for name in ("rename", "unlink")}

    def counted(name):
        def step(self, *arguments, **options):
            nonlocal calls
            if ".lock" not in self.name:
                calls += 1
                if calls == stop:
                    raise Kill
            return steps[name](self, *arguments, **options)

        return step

    with monkeypatch.context() as patch, pytest.raises(Kill):
        for name in steps:
            patch.setattr(Path, name, counted(name))
        with save_folder(volume, overwrite=True) as folder:
            for name, data in MODEL.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(data)
        raise Kill  # it took fewer steps
    if (volume / "config.json").exists():
        whole = "old" if "old" in (volume / "config.json").read_text() else "new"
        assert (volume / "model.safetensors").read_text() == whole
    with claimed(volume):
        pass
    names = {str(path.relative_to(volume)) for path in volume.rglob("*") if path.is_file()}
    assert names in (set(old), set(MODEL)) and not [name for name in listed(volume) if name.startswith(".")]


def test_the_working_folder_is_filled_and_stays_the_shells(place, command, unverified, monkeypatch):
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    inode = Path().stat().st_ino
    assert command("prune", "../base", "-o", ".", *PLAIN)[0] == 0
    assert command("prune", "../base", "-o", ".", "--overwrite", *PLAIN, "--ratio", "0.1")[0] == 0
    assert (place / "here").stat().st_ino == inode and Path("config.json").exists()
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_states_of_a_training_lie_where_its_output_is_made(place, command, unverified, monkeypatch):
    """… in a folder that is filled in place; the same command goes on from them, and nothing is left of them."""
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    before, again = listed(place), ("recover", "../pruned", "-o", ".", "--data", "../text.txt", *RECOVER)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MoreauPruner, "save_pretrained", interrupt)
        code, _, err = command(*again)
        assert code == 130, err
    assert (
        listed(place / "here") == [".here.recovery"] and last_state(Path(".here.recovery")) and listed(place) == before
    )
    code, _, err = command(*again)
    assert code == 0, err
    assert "adapter" in os.listdir() and not [name for name in os.listdir() if name.startswith(".")]
    assert listed(place) == before


STATES = {
    "work folder": ("recover", "pruned", "-o", "out", "--data", "records.json", "--work-dir", "file", *RECOVER),
    "default work folder": ("recover", "pruned", "-o", "o", "--data", "records.json", *RECOVER),
    "steps of prune": ("prune", "base", "-o", "out", "--checkpoint-dir", "file"),
    "steps of plan": ("plan", "base", "-o", "out.json", "--checkpoint-dir", "file"),
}


@pytest.mark.parametrize("arguments", STATES.values(), ids=STATES)
def test_a_file_in_the_place_of_states_is_refused_before_any_work(arguments, place, command, monkeypatch):
    for name in ("file", ".o.recovery"):
        (place / name).write_text("mine")
    monkeypatch.setattr("optimum_moreau.loading.loading.load_model", lambda *_, **__: pytest.fail("was loaded"))
    monkeypatch.setattr("optimum_moreau.pipeline.chain.load_model", lambda *_, **__: pytest.fail("was loaded"))
    monkeypatch.setattr("optimum_moreau.pruner.load_model", lambda *_, **__: pytest.fail("was loaded"))
    before = contents(place)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "") and re.search(r"(file|\.o\.recovery): is a file; give a folder\n$", err), err
    assert len(err.splitlines()) == 1 and contents(place) == before


def test_a_link_is_written_through_and_a_broken_one_refused(place, command, unverified):
    (place / "elsewhere").mkdir()
    (place / "link").symlink_to("elsewhere")
    (place / "broken").symlink_to("nowhere")
    (place / "self").symlink_to("self")
    assert command("prune", "base", "-o", "link", *PLAIN)[0] == 0
    assert (place / "link").is_symlink() and (place / "elsewhere" / "config.json").exists()
    for name in ("broken", "self"):
        code, _, err = command("prune", "base", "-o", name, *PLAIN)
        assert code == 2 and f"{name}: is a link to" in err and (place / name).is_symlink()
        assert command("plan", "base", "-o", name, *PLAIN)[0] == 2
    code, _, err = command("prune", "base", "-o", "n" * 250, *PLAIN)
    assert code == 2 and "too long a name" in err


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EXDEV], ids=["no exchange", "a folder of an image"])
def test_a_folder_that_cannot_be_exchanged_is_replaced_all_the_same(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, "no")

    monkeypatch.setattr("optimum_moreau.files.temporary.exchange", refuse)
    left_by_a_dead_run(tmp_path / "out", {**MODEL, "vocab.json": "old"})
    with save_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "config.json").write_text("{}")
    assert tree(tmp_path) == {"out/config.json": b"{}"} and listed(tmp_path) == ["out"]


FULL = ("100k", "128k", "134k", "144k", "152k")
ON_VOLUMES = """
import json, subprocess, sys
from pathlib import Path
import optimum_moreau.pruner
from optimum_moreau.cli import main
from optimum_moreau.saving.verification import Verification
optimum_moreau.pruner.verify = lambda *_, **__: Verification(0.0, 1)
volume, model, *sizes = sys.argv[1:]
for size in sizes:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", volume], check=True)
    runs = [[]] if size.endswith("k") else [["--ratio", "0.1"], ["--overwrite"]]
    common = ["prune", model, "-o", volume, "--criterion", "magnitude", "--preset", "plain"]
    codes = [main([*common, *flags]) for flags in runs]
    print(json.dumps([size, codes, sorted(path.name for path in Path(volume).iterdir())]))
    print("END", file=sys.stderr)
    subprocess.run(["umount", volume], check=True)
"""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory, tiny_folder):
    """Prunes onto file systems that are mounted for one process alone: size → codes, what is left, what was said."""
    path = tmp_path_factory.mktemp("volumes") / "volume"
    path.mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    command = ["unshare", "-m", sys.executable, "-c", ON_VOLUMES, path, tiny_folder, "16m", *FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = [
        [line for line in part.splitlines() if line and not line.startswith("INFO: ")]
        for part in done.stderr.split("END\n")
    ]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {size: (codes, left, words) for (size, codes, left), words in zip(found, said, strict=False)}


def test_a_real_volume_is_filled(volumes):
    codes, left, said = volumes["16m"]
    assert codes == [0, 0] and "config.json" in left and not [name for name in left if name.startswith(".volume")]
    assert said == []


@pytest.mark.parametrize("size", FULL)
def test_a_full_disk_is_one_line_and_leaves_nothing(size, volumes):
    codes, left, said = volumes[size]
    assert (codes, left, len(said)) == ([2], [], 1) and "No space left on device" in said[0], said
    assert "volume: " in said[0] and ".partial-" not in said[0] and "nothing was saved" in said[0]


# Small files


SMALL = {
    "plan": lambda path: PruningPlan("llama", {}).save(path),
    "scores": lambda path: UnitScores({"a": torch.ones(9999)}).save(path),
    "config": lambda path: MoreauPrunerConfig().save_pretrained(path.parent),
    "evaluation": lambda path: save_measurements([Measurement("before", "a", "perplexity", "b", 1.0)] * 99, path),
    "json": lambda path: write_json(path, ["a" * 9999]),
    "tensors": lambda path: write_tensors(path, {"a": torch.ones(9999)}),
}


@pytest.mark.parametrize("kind", SMALL)
def test_a_small_file_is_written_whole_or_not_at_all(kind, tmp_path):
    path = tmp_path / (CONFIG_NAME if kind == "config" else "file")
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(MoreauError, match=r"cannot be written \(.*(File too large|os error 27)"):
            SMALL[kind](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {path.name: b"old"}
    SMALL[kind](path)
    assert listed(tmp_path) == [path.name] and path.read_bytes() != b"old"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_file_is_written_by_the_one_writer():
    """… which writes it whole or not at all; children that do not know this package, and δ, apart."""
    package = Path(model_contents.__file__).parents[1]
    apart = {"files/writing.py", "saving/reload_process.py", "evaluation/speed/process.py", "envelope/state.py"}
    lines = [
        f"{path.relative_to(package).as_posix()}: {line.strip()}"
        for path in package.rglob("*.py")
        if path.relative_to(package).as_posix() not in apart
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\.write_(text|bytes)\(|[^_]save_file\(|json\.dump\(|\.savefig\((?!drawn|buffer)|open\(\"w", line)
        and "/proc/self" not in line
        and "sys.stdout" not in line  # what a child answers
    ]
    assert lines == [], lines


WRITERS = {
    "report": ("report", "pruned", "-o", "report.html", "--no-generate"),
    "plan": ("plan", "base", "-o", "plan.json", *PLAIN),
    "robustness": (
        "robustness", "base", "-o", "rob", "--criteria", "magnitude", "--perturbations", "bf16", "--ratio", "0.2"
    ),
    "recover": ("recover", "pruned", "-o", "out", "--data", "records.json", *RECOVER),
    "evaluate": ("evaluate", "pruned", "--text", "text.txt", "--max-segments", "2", "--save"),
}  # fmt: skip


@pytest.mark.parametrize("verb", WRITERS)
def test_a_disk_that_is_full_at_the_end_is_one_line_and_exit_2(verb, place, command, unverified):
    """A limit on the size of files stands for it: less than what is written last, or a state."""
    before = {path: data for path, data in contents(place).items()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        code, out, err = command(*WRITERS[verb])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (code, out) == (2, "") and len(err.splitlines()) == 1, err
    after = {path: data for path, data in contents(place).items() if not str(path).startswith(".out.recovery")}
    assert after == before and not [name for name in listed(place) if name.startswith(".") and "recovery" not in name]


def test_a_full_disk_in_a_library_is_one_line_too(command, monkeypatch, tiny_folder):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/cache")

    monkeypatch.setattr("optimum_moreau.cli.evaluate._measure", full)
    code, out, err = command("evaluate", tiny_folder, "--text", "any.txt")
    assert (code, out) == (2, "") and "/somewhere/cache: cannot be written (No space left on device); make room" in err


FROM_OUTSIDE = {
    "a disk that fails": (OSError(errno.EIO, "Input/output error"), "the system refuses (Input/output error)"),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), "files); raise the limit (ulimit -n)"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), "device); make room, or set TMPDIR"),
    "a mount that is gone": (OSError(errno.ENOTCONN, "Endpoint is not connected"), "is not connected); try again"),
    "a reset": (ConnectionResetError(errno.ECONNRESET, "Connection reset"), "(Connection reset); try again"),
    "a time-out": (TimeoutError("timed out"), "the connection failed (timed out); try again"),
    "a silent Hub": (httpx2.ReadTimeout("timed out"), "the Hub cannot be reached (timed out); try again"),
    "a library's words": (OSError("We couldn't connect.\nTry again."), "error: We couldn't connect."),
    "a file": (PermissionError(errno.EACCES, "Permission denied", "f"), "f: cannot be read or written (Permission"),
}


@pytest.mark.parametrize(("error", "words"), FROM_OUTSIDE.values(), ids=FROM_OUTSIDE)
def test_what_fails_outside_this_program_is_one_line(error, words, command, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("optimum_moreau.cli.evaluate._measure", fail)
    code, out, err = command("evaluate", "any", "--text", "any.txt")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and words in err, err


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), ValueError("odd"), KeyError("odd")])
def test_a_mistake_of_this_program_is_no_line(error, command, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("optimum_moreau.cli.evaluate._measure", fail)
    with pytest.raises(type(error)):
        command("evaluate", "any", "--text", "any.txt")


# Sizes that remove nothing


@pytest.mark.parametrize("verb", ["prune", "plan"])
@pytest.mark.parametrize(
    "size",
    [("--ratio", 0), ("--unit-ratio", 0), ("--unit-ratio", "0,0"), ("--ratio", 1e-6), ("--target-parameters", "9B")],
    ids=str,
)
def test_a_size_that_removes_nothing_is_refused(verb, size, command, tiny_folder, tmp_path):
    output = tmp_path / ("out" if verb == "prune" else "plan.json")
    code, out, err = command(verb, tiny_folder, "-o", output, *PLAIN, *size)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "save_pretrained" in err or "leaves nothing to prune" in err
    assert listed(tmp_path) == []


@pytest.mark.parametrize("size", [("--ratio", 0), ("--unit-ratio", 0)], ids=str)
def test_nothing_is_answered_by_asking_for_more(size, command, tiny_folder, tmp_path):
    _, _, err = command("prune", tiny_folder, "-o", tmp_path / "out", *PLAIN, *size)
    assert "give a ratio above 0" in err


COARSE = {
    "two heads": ({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}, "attention", "--ratio", 0.02),
    "layers": ({}, "layers", "--ratio", 0.02),
    "hidden": ({}, "hidden", "--ratio", 0.001),
    "channels": ({}, "mlp", "--unit-ratio", 0.005),
}


@pytest.mark.parametrize("budget", ["uniform", "search"])
@pytest.mark.parametrize("coarse", COARSE)
def test_a_share_less_than_any_unit_is_refused_before_scoring(
    coarse, budget, command, tmp_path, monkeypatch, tokenizer
):
    changes, targets, flag, value = COARSE[coarse]
    budget = budget if targets in ("attention", "mlp") else "uniform"
    tiny_model("llama", vocab_size=len(tokenizer), **changes).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr("optimum_moreau.run.scoring.score_in_rounds", lambda *_, **__: pytest.fail("was scored"))
    asked = (tmp_path / "base", *PLAIN, "--targets", targets, "--budget", budget)
    outputs = {"prune": tmp_path / "out", "plan": tmp_path / "plan.json"}
    for verb, output in outputs.items():
        for how in (("-o", output), ("--dry-run",)):
            code, out, err = command(verb, *asked, flag, value, *how)
            assert (code, out) == (2, "") and len(err.splitlines()) == 1, err
            found = re.search(
                r"the least that can go\D* is [\d.]+ % of the parameters \(([\d,]+)\), from \w+ (\S+) on", err
            )
            assert found and f"{flag[2:].replace('-', '_')[-5:]} {value} is less than any unit" in err, err
    assert listed(tmp_path) == ["base"]
    code, out, err = command("plan", *asked, flag, found[2], "--dry-run", "--json")  # what it says holds
    counts = json.loads(out)
    assert counts["parameters_before"] - counts["parameters_after"] == int(found[1].replace(",", ""))
    assert command("plan", *asked, flag, 0.99 * float(found[2]), "--dry-run")[0] == 2 or budget != "uniform"


@pytest.mark.parametrize("budget", ["uniform", "global", "zscore"])
@pytest.mark.parametrize("targets", ["attention", "mlp", "attention,mlp", "mlp,layers", "hidden,mlp"])
def test_what_is_refused_before_scoring_removes_nothing_by_any_scores(budget, targets):
    model = tiny_model("llama")
    shape, generator = model_shape(model), torch.Generator().manual_seed(0)
    refused = 0
    for size in ("pruning_ratio", "unit_ratio"):
        for value in (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.02, 0.03, 0.06, 0.1, 0.2):
            config = MoreauPrunerConfig(
                criterion="magnitude", targets=tuple(targets.split(",")), budget=budget, **{size: value}
            )
            config = config.resolve(model.config)
            little = removes_nothing(shape, config)
            refused += little
            for _ in range(4):
                values = {one.where: torch.rand(one.total, generator=generator) for one in shape.in_scope(config)}
                gone = removed_parameters(make_plan(UnitScores(values), shape, config), shape)
                assert not (little and gone) and (little or gone or budget != "uniform"), (size, value)
    assert refused


def test_a_mask_of_nothing_is_refused(command, tiny_folder, tmp_path):
    flags = ("--criterion", "magnitude", "--pattern", "unstructured", "--sparsity", 0)
    code, _, err = command("prune", tiny_folder, "-o", tmp_path / "out", *flags)
    assert code == 2 and "sparsity 0: removes nothing" in err and "save_pretrained" in err


def test_in_python_a_plan_of_ratio_0_stays_the_identity(tmp_path, unverified):
    model = tiny_model("llama")
    before = model.num_parameters()
    MoreauPruner(MoreauPrunerConfig(criterion="magnitude", pruning_ratio=0.0)).prune(model)
    assert model.num_parameters() == before


def test_files_are_added_with_the_one_that_names_the_result_last(tmp_path, monkeypatch):
    moved = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (moved.append(Path(to).name), replace(self, to))[1])
    with add_files(tmp_path / "out", "a.json") as folder:
        for name in ("b.png", "a.json", "c.svg"):
            (folder / name).write_text("")
    assert moved == ["b.png", "c.svg", "a.json"] and listed(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name", ["license.txt", "License.md", "COPYRIGHT", "use_policy.md", "acceptable_use_policy.md", "tokenizer.model"]
)
def test_what_is_carried_over_is_no_stranger(name, tmp_path, folders):
    assert model_contents.goes_along(name)
    folder = tmp_path / "model"
    shutil.copytree(folders["stock"], folder)
    (folder / name).write_text("mine")
    assert not model_contents.strangers(folder)
