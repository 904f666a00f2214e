"""Nothing that is read from a file decides whether code runs: not in a command, nor in a process that it starts."""

import json
import logging
import shutil

import pytest
import torch

from optimum_moreau import MoreauPruner, RecoveryConfig
from optimum_moreau.errors import CheckpointError
from optimum_moreau.loading import code_may_run, drop_foreign_code, load_config, load_model, load_tokenizer
from optimum_moreau.loading.trust import MODELING_FILE
from optimum_moreau.modeling import auto_map
from optimum_moreau.saving.hub import Published, verify_published
from optimum_moreau.saving.verification import verify

EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(LlamaConfig): pass
class E(LlamaForCausalLM): config_class = C
class T(PreTrainedTokenizerFast): pass
"""
FORMS = ("evil.{}", "someone/model--evil.{}", "{folder}--evil.{}", "../elsewhere--evil.{}")
TRAIN = {"max_steps": 1, "batch_size": 2, "validation": 0, "sequence_length": 64}
RECORDS = [{"text": f"A small text, number {i}."} for i in range(8)]


def write_json(path, **changes):
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(values | changes))


def poison(folder, form, marker):
    """Puts code that leaves a marker beside a model, and names it wherever a load might look."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    for place in (folder, elsewhere):
        (place / "evil.py").write_text(EVIL.format(marker=str(marker)))
        (place / "custom_generate").mkdir(exist_ok=True)
        (place / "custom_generate" / "generate.py").write_text(EVIL.format(marker=str(marker)) + "generate = print\n")
    named = {
        name: form.format(kind, folder=elsewhere)
        for name, kind in {"AutoConfig": "C", "AutoModel": "E", "AutoModelForCausalLM": "E"}.items()
    }
    write_json(folder / "config.json", auto_map=named, some_tower={"auto_map": named})
    reference = form.format("T", folder=elsewhere)
    write_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [reference, reference]})


@pytest.fixture(scope="module")
def made(tiny_folder, folders, tmp_path_factory):
    """Pruned models of a stock and of the own type, and the base of both."""
    return {"base": tiny_folder, **folders}


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


@pytest.fixture
def poisoned(made, tmp_path, marker):
    """Makes a copy of a model with foreign code: kind, form of the reference → folder."""

    def make(kind, form):
        folder = tmp_path / f"poisoned-{kind}"
        shutil.copytree(made[kind], folder)
        poison(folder, form, marker)
        return folder

    return make


@pytest.fixture
def files(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return tmp_path


@pytest.mark.parametrize(("kind", "form"), [("stock", FORMS[2]), ("stock", FORMS[3]), ("own", FORMS[2])])
def test_a_folder_that_names_code_is_saved_and_verified_without_it(
    poisoned, marker, kind, form, text, tmp_path, caplog
):
    folder = poisoned(kind, form)
    pruner = MoreauPruner.from_pretrained(folder)
    pruner.recover(RECORDS, RecoveryConfig(**TRAIN))
    with caplog.at_level(logging.WARNING, "optimum_moreau"):
        pruner.save_pretrained(tmp_path / "out")
    assert not marker.exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("auto_map") == (None if kind == "stock" else auto_map("moreau_llama"))
    assert "evil" not in "".join(file.read_text() for file in (tmp_path / "out").glob("*config.json"))
    assert "evil" in caplog.text and "is left out" in caplog.text
    assert {file.name for file in (tmp_path / "out").rglob("*.py")} == (
        {MODELING_FILE.name} if kind == "own" else set()
    )


SCORING = "--criteria magnitude --mlp-layers 0:3 --attention-layers 0:3"
PLAIN = "--preset plain --criterion magnitude --unit-ratio 0.5"
TUNING = "--data records.jsonl --max-steps 1 --batch-size 2 --validation 0 --seq-len 64"
CHAIN = "--recover-data records.jsonl --recover-max-steps 1 --recover-batch-size 2 --recover-seq-len 64"
MEASURED = "--evaluate text.txt --max-segments 2"
VERBS = {
    "prune": f"prune {{folder}} -o {{out}} {PLAIN}",
    "mask": "prune {folder} -o {out} --preset plain --criterion magnitude --pattern 2:4",
    "chain": f"prune {{folder}} -o {{out}} {PLAIN} {CHAIN}",
    "plan": f"plan {{folder}} -o {{out}}.json {PLAIN}",
    "dry run": f"plan {{folder}} --dry-run {PLAIN}",
    "apply": "apply {plan} {folder} -o {out}",
    "recover": f"recover {{folder}} -o {{out}} {TUNING}",
    "teacher": f"recover {{pruned}} -o {{out}} {TUNING} --teacher {{folder}}",
    "evaluate": "evaluate {folder} --text text.txt --max-segments 2",
    "baseline": "evaluate {pruned} --text text.txt --max-segments 2 --baseline {folder}",
    "report": "report {folder} -o {out}.html --new-tokens 2",
    "robustness": f"robustness {{folder}} -o {{out}} {SCORING} --perturbations bf16 --ratio 0.1",
    "insight": f"insight {{folder}} -o {{out}} {SCORING} --figures layers --ratio 0.1 --layers 1 {MEASURED}",
}
OF_BASE = ("apply", "teacher", "baseline")
CASES = [(verb, kind) for verb in VERBS for kind in ("stock", "own") if not (verb in OF_BASE and kind == "own")]


@pytest.mark.parametrize(("verb", "kind"), CASES)
def test_no_verb_runs_code_that_a_model_names(
    verb, kind, made, poisoned, marker, files, command, unverified, monkeypatch
):
    if verb in ("report", "robustness", "insight"):
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(files)
    for number, form in enumerate(FORMS):
        folder = poisoned("base" if verb in OF_BASE else kind, form)
        written = files / f"out-{number}"
        names = {"folder": folder, "pruned": made["stock"], "plan": made["stock"] / "pruning_plan.json", "out": written}
        code, _, err = command(*VERBS[verb].format(**names).split())
        assert code == 0, err
        assert not marker.exists(), form
        assert "evil" not in "".join(file.read_text() for file in written.glob("*config.json"))
        shutil.rmtree(folder)


def test_fresh_processes_that_measure_run_no_code_either(poisoned, marker, command):
    folder = poisoned("own", FORMS[2])
    one = ("--batch-sizes", "1", "--prompt-tokens", "4", "--new-tokens", "2", "--rounds", "1", "--repeats", "1")
    code, _, err = command("benchmark", folder, "--no-save", *one)
    assert code == 0, err
    assert not marker.exists()


def test_the_users_word_reaches_the_process_that_verifies(poisoned, marker, tmp_path):
    """With it the code runs, also there: what it saves is the user's own."""
    pruner = MoreauPruner.from_pretrained(poisoned("stock", FORMS[0]), trust_remote_code=True)
    assert marker.exists()
    pruner.recover(RECORDS, RecoveryConfig(**TRAIN))
    marker.unlink()
    assert pruner.save_pretrained(tmp_path / "out").max_abs_difference == 0
    assert marker.exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"].keys() >= {"AutoConfig", "AutoModelForCausalLM"}
    assert set(config["auto_map"].values()) <= {"evil.C", "evil.E"}
    assert (tmp_path / "out" / "evil.py").is_file()


# The file that travels with an own type


def change(name, text):
    def damage(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(((folder / name).read_text() if (folder / name).is_file() else "") + text)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("modeling_moreau.py", "\n"), "modeling_moreau.py is not the file of this version"),
        (lambda folder: (folder / "modeling_moreau.py").unlink(), "modeling_moreau.py is not the file"),
        (change("custom_generate/generate.py", "generate = print"), "custom_generate/generate.py is code"),
        (lambda folder: write_json(folder / "config.json", auto_map={"AutoConfig": "evil.C"}), "names code"),
        (
            lambda folder: write_json(
                folder / "config.json",
                auto_map={key: f"someone/model--{name}" for key, name in auto_map("moreau_llama").items()},
            ),
            "names code that is not this package's",
        ),
        (lambda folder: write_json(folder / "adapter_config.json", peft_type="LORA"), "holds an adapter"),
        (
            lambda folder: write_json(folder / "config.json", configuration_files=["config.4.0.0.json"]),
            "stands for another config",
        ),
        (lambda folder: (folder / "config.4.0.0.json").write_text("{}"), "config.4.0.0.json stands for another config"),
        (
            lambda folder: (folder / "custom_generate").symlink_to(folder.parent, target_is_directory=True),
            "custom_generate is a link to a folder",
        ),
    ],
    ids=[
        "changed",
        "missing",
        "other code",
        "other class",
        "other repository",
        "adapter",
        "configs",
        "config",
        "link",
    ],
)
def test_only_the_packaged_file_runs_without_the_users_word(made, tmp_path, damage, message, command, monkeypatch):
    folder = tmp_path / "own"
    shutil.copytree(made["own"], folder)
    assert code_may_run(folder, False)
    damage(folder)
    monkeypatch.setattr("optimum_moreau.saving.verification.subprocess", None)  # nothing is started
    with pytest.raises(CheckpointError, match=message):
        verify(load_model(str(made["own"])), folder, torch.arange(8)[None])
    monkeypatch.setattr("optimum_moreau.saving.hub.push_folder", None)  # nothing is sent
    code, _, err = command("push", folder, "me/model", "--verify")
    assert code == 2 and message in err


@pytest.mark.parametrize("kind", ["stock", "own"])
@pytest.mark.parametrize("trust", [False, True])
def test_what_was_published_is_verified_as_the_user_says(made, poisoned, monkeypatch, kind, trust):
    folder = poisoned("stock", FORMS[1]) if kind == "stock" else made["own"]
    asked = []
    monkeypatch.setattr("optimum_moreau.saving.hub.snapshot_download", lambda *args, **options: str(folder))
    monkeypatch.setattr(
        "optimum_moreau.saving.verification.reload_logits",
        lambda name, tokens, work, *, remote_code, **options: asked.append(remote_code) or tokens,
    )
    sent = {file.name: 0 for file in folder.iterdir() if file.is_file()}
    verify_published(Published("me/model", "", "c0ffee", sent, True), folder, trust_remote_code=trust)
    assert asked == [trust or kind == "own"] * 2


# Other ways to name code


def test_a_kernel_of_the_hub_is_code(made, tmp_path):
    folder = tmp_path / "kernel"
    shutil.copytree(made["base"], folder)
    write_json(folder / "config.json", attn_implementation="someone/kernel")
    with pytest.raises(CheckpointError, match="asks for code of the Hub"):
        load_config(str(folder))
    assert load_config(str(folder), trust_remote_code=True)._attn_implementation == "someone/kernel"


def test_an_adapter_beside_the_weights_is_not_loaded(made, tmp_path):
    folder = tmp_path / "adapted"
    shutil.copytree(made["base"], folder)
    write_json(folder / "adapter_config.json", peft_type="LORA", megatron_config={}, megatron_core="evil")
    with pytest.raises(CheckpointError, match="holds an adapter beside the weights"):
        load_model(str(folder))


def test_nobody_is_asked_on_the_terminal(poisoned, monkeypatch):
    """Without a word, transformers asks; so a tokenizer is never loaded without one."""
    folder = poisoned("base", FORMS[0])
    write_json(folder / "tokenizer_config.json", tokenizer_class="T")
    write_json(folder / "config.json", model_type="t")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match="custom code"):
        load_tokenizer(str(folder))


def test_a_task_file_of_lm_eval_is_code(made, tmp_path, marker, command):
    pytest.importorskip("lm_eval")
    rows = [{"question": f"{i} and 1 is", "choices": ["a", "b"], "label": 0} for i in range(2)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef f(doc): return ''\n")
    (tmp_path / "evil.yaml").write_text("task: evil\ndataset_path: json\ndoc_to_text: !function evil.f\n")
    touch = f"!!python/object/apply:os.system ['touch {marker}']"
    (tmp_path / "other.yaml").write_text(f"task: other\nx: {touch}\n")
    for task in ("evil", "other"):
        code, _, err = command("evaluate", made["base"], "--tasks", task, "--task-path", tmp_path)
        assert code == 2 and f"{task}.yaml: lm-eval runs the code that such a file names" in err
    code, _, err = command("evaluate", made["base"], "--tasks", "plain", "--task-path", tmp_path)
    assert code == 0, err
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    ['{"auto_map": {"AutoConfig": "evil.C"}, "x": 1e999}', '["evil.C"]', "[" * 10**5, '{"a": "\\ud800"}', "{"],
    ids=lambda text: text[:8],
)
def test_a_config_that_cannot_be_read_is_not_kept_with_what_it_may_name(text, tmp_path):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: cannot be read as a config: ") as error:
        drop_foreign_code(tmp_path, trust_remote_code=False)
    assert "\n" not in str(error.value)
