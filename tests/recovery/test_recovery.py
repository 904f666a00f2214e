"""Recovery: what is learnt, that the merge is the adapter on the model, that nothing is lost, and what is saved."""

import copy
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, MoreauRecovery, RecoveryConfig, recover
from optimum_moreau.data.instructions import IGNORED, load_examples
from optimum_moreau.errors import CheckpointError, ConfigError, DataError, MoreauError, NonFiniteError
from optimum_moreau.recovery.training import distillation_loss, last_state
from tests import warm
from tests.recover_process import RECORDS
from tests.tiny import assert_same_state, contents, snapshot, tiny_model, tiny_tokenizer

WORKER = Path(__file__).parents[1] / "recover_process.py"
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUICK = {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "validation": 0.0}


@pytest.fixture
def model(tokenizer):
    return tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)


def learnt(example, tokenizer):
    return tokenizer.decode([label for label in example["labels"] if label != IGNORED])


# What is learnt


def test_of_an_instruction_the_answer_is_learnt_and_that_it_ends(bos_tokenizer):
    tokenizer = bos_tokenizer
    record = {"instruction": "Add {these}.", "input": "1, 2", "output": "It is 3."}
    data = load_examples([record], tokenizer, sequence_length=256)
    (example,) = data.train
    assert learnt(example, tokenizer) == "It is 3.</s>"
    text = tokenizer.decode(example["input_ids"])
    assert (
        text.startswith("<s>Below is an instruction") and "### Instruction:\nAdd {these}.\n\n### Input:\n1, 2\n" in text
    )
    assert [i for i, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORED] == [
        label for label in example["labels"] if label != IGNORED
    ]
    (whole,) = load_examples([record], tokenizer, sequence_length=256, loss_on="all").train
    assert learnt(whole, tokenizer) == text.removeprefix("<s>")
    (without,) = load_examples([{**record, "input": ""}], tokenizer, sequence_length=256).train
    assert "### Input" not in tokenizer.decode(without["input_ids"])


def test_of_a_chat_every_answer_is_learnt(tokenizer):
    chatty = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>")
    chatty.chat_template = CHAT
    messages = [("user", "hello"), ("assistant", "good day"), ("user", "and now"), ("assistant", "good bye")]
    record = {"messages": [{"role": role, "content": content} for role, content in messages]}
    (example,) = load_examples([record], chatty, sequence_length=256).train
    assert learnt(example, chatty) == "good day</s>good bye</s>"
    assert chatty.decode(example["input_ids"]) == chatty.apply_chat_template(record["messages"], tokenize=False)
    with pytest.raises(DataError, match="holds chat messages, and the tokenizer has no chat template"):
        load_examples([record], tokenizer, sequence_length=256)


def test_a_text_is_learnt_whole_in_pieces(bos_tokenizer, text):
    tokenizer = bos_tokenizer
    data = load_examples([text], tokenizer, sequence_length=32)
    ids = [token for example in data.train for token in example["labels"][1:]]
    assert (
        ids == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] or len(data.train) > 1
    )
    assert all(len(example["input_ids"]) <= 32 for example in data.train)
    assert sorted(ids) == sorted([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])


@pytest.mark.parametrize("begins", [(), ("<s>",), ("</s>", "<s>")], ids=str)
def test_a_record_begins_as_the_tokenizer_begins_a_text_and_only_once(begins, text):
    tokenizer = tiny_tokenizer(begins)
    first = tokenizer.convert_tokens_to_ids(list(begins))
    for written in ("", "".join(begins)):
        records = [{"text": written + text}, {"text": f"{written}short"}]
        for example in load_examples(records, tokenizer, sequence_length=32).train:
            ids = example["input_ids"]
            assert ids[: len(first)] == first and (not first or ids[len(first) : 2 * len(first)] != first)
            assert begins or 0 not in ids


def test_packed_records_fill_sequences_and_none_predicts_the_next(bos_tokenizer):
    tokenizer = bos_tokenizer
    apart = load_examples(RECORDS, tokenizer, sequence_length=512)
    packed = load_examples(RECORDS, tokenizer, sequence_length=512, packing=True)
    assert len(packed.train) < len(apart.train) / 2
    assert all(len(example["input_ids"]) <= 512 for example in packed.train)
    for key in ("input_ids", "labels"):
        joined = [[token for example in data.train for token in example[key]] for data in (packed, apart)]
        assert joined[0] == joined[1]
    bos = tokenizer.bos_token_id
    for example in packed.train:
        assert all(
            label == IGNORED for i, label in zip(example["input_ids"], example["labels"], strict=True) if i == bos
        )


def test_what_is_held_out_is_not_trained_on(tokenizer):
    data = load_examples(RECORDS, tokenizer, sequence_length=256, validation=0.25, seed=3)
    train, held_out = ({tuple(example["input_ids"]) for example in part} for part in (data.train, data.validation))
    assert len(held_out) == 6 and len(train) == 18 and not train & held_out


@pytest.mark.parametrize("kind", ["list", "dataset", "jsonl", "json"])
def test_sources_give_the_same_examples(kind, tokenizer, tmp_path):
    if kind in ("jsonl", "json"):
        source = tmp_path / f"data.{kind}"
        source.write_text("\n".join(map(json.dumps, RECORDS)) if kind == "jsonl" else json.dumps(RECORDS))
    else:
        source = RECORDS if kind == "list" else Dataset.from_list(RECORDS)
    found = load_examples(source, tokenizer, sequence_length=256)
    assert found.sha256 == load_examples(RECORDS, tokenizer, sequence_length=256).sha256


def test_the_distillation_loss_is_the_divergence_of_the_tempered_distributions():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[1, 2, IGNORED, 3, 4], [IGNORED, IGNORED, 1, 1, IGNORED]])
    expected = 0.0
    for window, position in ((0, 0), (0, 2), (0, 3), (1, 1), (1, 2)):
        p, q = ((x[window, position] / 3).softmax(0) for x in (teacher, student))
        expected += 9 * float((p * (p / q).log()).sum())
    assert float(distillation_loss(student, teacher, labels, 3.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(teacher, teacher, labels, 3.0)) == pytest.approx(0, abs=1e-6)


# Training and merging


def pruned_folder(family, tmp_path, tokenizer, tokens, **changes):
    model = tiny_model(family, vocab_size=len(tokenizer), max_position_embeddings=256, **changes)
    config = {"criterion": "taylor", "unit_ratio": 0.5, "calibration_samples": 4, "sequence_length": 8}
    pruner = MoreauPruner(MoreauPrunerConfig(**config), tokenizer=tokenizer)
    pruner.prune(model, tokens)
    model.save_pretrained(tmp_path / "pruned")
    return pruner, model, tmp_path / "pruned"


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma2"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_merged_model_is_the_adapter_on_the_pruned_one(family, tied, tokenizer, tokens, tmp_path):
    pruner, model, folder = pruned_folder(family, tmp_path, tokenizer, tokens, tie_word_embeddings=tied)
    before = snapshot(model)
    pruner.recover(RECORDS, RecoveryConfig(**{**QUICK, "learning_rate": 5e-3}))
    pruner._recovery.save(tmp_path)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    model.eval()
    with torch.no_grad():
        expected, found = adapted(input_ids=tokens).logits, model(input_ids=tokens).logits
        unchanged = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens).logits
    assert (found - expected).abs().max() <= 1e-5
    assert (found - unchanged).abs().max() > 1e-3
    after = snapshot(model)
    assert after[:-1] == before[:-1] and after[-1].keys() == before[-1].keys()  # the class, the config, the flags


def test_tuning_lowers_the_loss_it_trains(model, tokenizer):
    config = RecoveryConfig(**{**QUICK, "max_steps": 30})
    training = recover(model, tokenizer, RECORDS, config).summary.training
    assert training["last_loss"] < 0.8 * training["first_loss"]


def test_only_the_adapter_is_trained(model, tokenizer):
    recovery = MoreauRecovery(RecoveryConfig(**{**QUICK, "rank": 2}), tokenizer)
    linear = {name: w.clone() for name, w in model.state_dict().items()}
    summary = recovery.train(model, RECORDS)
    sizes = [sum(w.shape) for name, w in linear.items() if "_proj" in name]
    assert summary.trainable_parameters == 2 * sum(sizes)
    for name, w in model.state_dict().items():
        assert torch.equal(w, linear[name]) == ("_proj" not in name), name


def test_a_teacher_is_learnt_from(tokenizer):
    teacher = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)

    def distance(share):
        torch.manual_seed(1)
        student = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.5)
        config = RecoveryConfig(**{**QUICK, "max_steps": 25, "distillation": share})
        recover(student, tokenizer, RECORDS, config, teacher=teacher)
        ids = torch.tensor([load_examples(RECORDS[:1], tokenizer, sequence_length=256).train[0]["input_ids"]])
        with torch.no_grad():
            logits = [m(input_ids=ids).logits.double() for m in (student, teacher)]
        return float(distillation_loss(*logits, ids, 1.0)) / ids.shape[1]

    assert distance(1.0) < 0.8 * distance(0.0)


def test_the_best_state_is_kept_where_training_stops_early(model, tokenizer):
    config = RecoveryConfig(
        **{**QUICK, "max_steps": 60, "validation": 0.25, "patience": 2, "save_steps": 1, "learning_rate": 0.3}
    )
    training = recover(model, tokenizer, RECORDS, config).summary.training
    assert training["steps"] < 60


def test_a_killed_recovery_goes_on_to_the_same_adapter(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(folder):
        environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[1])}
        return warm.start([sys.executable, "-P", WORKER, folder], folder, env=environment)

    for folder in (whole, killed):
        folder.mkdir()
    (killed / "slow").touch()
    runs = [start(whole), start(killed)]
    deadline = time.monotonic() + 200
    while last_state(killed / "work") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    runs[1].kill()
    runs[1].join()
    assert last_state(killed / "work") is not None and not (killed / "adapter").exists()
    (killed / "slow").unlink()
    for run, folder in ((runs[0], whole), (start(killed), killed)):
        done = warm.finished(run, folder, timeout=200)
        assert done.returncode == 0, done.stderr
    found, expected = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (killed, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_run_that_ended_and_was_not_saved_learns_no_more(tokenizer, tmp_path):
    def run():
        model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
        recovery = recover(model, tokenizer, RECORDS, RecoveryConfig(**QUICK), work_dir=tmp_path / "work")
        return recovery.summary.training, recovery.adapter.weights

    (first, before), (second, after) = run(), run()
    assert second["steps"] == first["steps"] == 4 and second["last_loss"] == first["last_loss"]
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_first_of_few_steps_learns_too(model, tokenizer):
    before = snapshot(model)
    training = recover(model, tokenizer, RECORDS, RecoveryConfig(**{**QUICK, "max_steps": 1})).summary.training
    assert training["steps"] == 1
    with pytest.raises(AssertionError):
        assert_same_state(model, before)
    longer = recover(model, tokenizer, RECORDS, RecoveryConfig(**{**QUICK, "max_steps": 3})).summary.training
    assert longer["last_loss"] != longer["first_loss"]


# What is saved


def test_a_recovered_model_is_saved_with_its_adapter_and_names_no_folder(tokenizer, tokens, tmp_path):
    pruner, _, _ = pruned_folder("llama", tmp_path, tokenizer, tokens)
    pruner.recover(RECORDS, RecoveryConfig(**QUICK), work_dir=tmp_path / "work")
    assert pruner.save_pretrained(tmp_path / "out").max_abs_difference <= 1e-5
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "recovery_summary.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in files)
    for name in files:
        if name.endswith((".json", ".md")):
            assert str(tmp_path) not in (tmp_path / "out" / name).read_text(), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tuned with LoRA afterwards" in card and "## How it was tuned" in card and "`learning_rate` | 0.01" in card
    again = MoreauPruner.from_pretrained(tmp_path / "out")
    assert again._result.plan == pruner._result.plan


def test_what_was_recovered_is_loaded_with_its_adapter(tokenizer, tokens, tmp_path):
    pruner, _, _ = pruned_folder("llama", tmp_path, tokenizer, tokens)
    pruner.recover(RECORDS, RecoveryConfig(**QUICK))
    pruner.save_pretrained(tmp_path / "out")
    MoreauPruner.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    for name in ("README.md", "pruning_plan.json", "recovery_summary.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    first, second = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("out", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# An adapter trained elsewhere


@pytest.fixture(scope="module")
def trained(tokenizer, tokens, tmp_path_factory):
    """A folder with a pruned model and an adapter trained on it, and the weights with it merged."""
    folder = tmp_path_factory.mktemp("trained")
    pruner, model, _ = pruned_folder("llama", folder, tokenizer, tokens)
    pruner.save_pretrained(folder / "saved")
    pruner.recover(RECORDS, RecoveryConfig(**QUICK))
    pruner._recovery.save(folder)
    return folder, model.state_dict()


@pytest.fixture
def adapted(trained, tmp_path):
    """A copy of the two folders, and the merged weights."""
    folder, merged = trained
    for name in ("saved", "adapter"):
        shutil.copytree(folder / name, tmp_path / name)
    return tmp_path / "saved", tmp_path / "adapter", merged


def test_an_adapter_trained_elsewhere_is_merged(adapted, command, tmp_path):
    folder, adapter, merged = adapted
    pruner = MoreauPruner.from_pretrained(folder)
    pruner.merge_adapter(adapter)
    for name, weight in merged.items():
        assert torch.allclose(pruner._model.state_dict()[name], weight, atol=1e-6), name
    assert not hasattr(pruner._model, "peft_config")
    code, out, err = command("recover", folder, "--adapter", adapter, "-o", tmp_path / "out")
    assert code == 0 and "adapter     adapter," in out, err
    assert "trained elsewhere, `adapter`, was merged" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_for_another_base_is_refused(adapted, tiny_folder, tokenizer, tmp_path):
    folder, adapter, _ = adapted
    dense = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    other = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256, num_hidden_layers=1)
    same_shapes = MoreauPruner.from_pretrained(folder)._model
    with torch.no_grad():
        same_shapes.model.embed_tokens.weight.neg_()
    for model, message in (
        (dense, r"model\.layers\.\d\.\S+ has \d+ (in|out)puts there, \d+ in this model; .*\(before pruning\?\)"),
        (other, "it was trained on another model"),
        (same_shapes, "trained on other weights of the same shapes"),
    ):
        before = snapshot(model)
        with pytest.raises(CheckpointError, match=message):
            MoreauRecovery(tokenizer=tokenizer).merge(model, adapter)
        assert_same_state(model, before)
        assert not any("lora" in name for name, _ in model.named_modules())


def changed(folder, change):
    """Changes the tensors of an adapter's file."""
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def with_config(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: changed(f, lambda w: w[f"{Q}A.weight"].fill_(float("nan"))),
            r"A\.weight is not finite",
        ),
        (lambda f: changed(f, lambda w: w.pop(f"{Q}B.weight")), r"q_proj\.lora_B\.weight is missing in the adapter"),
        (lambda f: changed(f, lambda w: w.clear()), "is missing in the adapter"),
        (
            lambda f: changed(f, lambda w: w.update({"a.modules_to_save": torch.ones(2)})),
            "is no LoRA of a linear layer",
        ),
        (lambda f: with_config(f, r=4), "cannot be put on this model"),
        (lambda f: with_config(f, target_modules=["nope"]), "cannot be put on this model"),
    ],
    ids=["nan", "half a pair", "empty", "other kind", "rank", "targets"],
)
def test_an_adapter_that_is_not_whole_leaves_the_model_as_it_was(damage, message, adapted, tokenizer):
    folder, adapter, _ = adapted
    model = MoreauPruner.from_pretrained(folder)._model
    before, requires = snapshot(model), {name: p.requires_grad for name, p in model.named_parameters()}
    damage(adapter)
    with pytest.raises(CheckpointError, match=message):
        MoreauRecovery(tokenizer=tokenizer).merge(model, adapter)
    assert_same_state(model, before)
    assert requires == {name: p.requires_grad for name, p in model.named_parameters()}


def test_an_adapter_on_tied_embeddings_is_refused(tokenizer, tmp_path):
    model = tiny_model("llama", vocab_size=len(tokenizer), tie_word_embeddings=True)
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj", "lm_head"]))
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(CheckpointError, match="lm_head is tied to the embeddings"):
        MoreauRecovery(tokenizer=tokenizer).merge(model, tmp_path / "adapter")


def test_a_merged_adapter_names_no_folder_and_no_folder_is_removed(adapted, command, tmp_path):
    folder, adapter, _ = adapted
    with_config(adapter, base_model_name_or_path="/home/someone/pruned")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    flags = ("--adapter", adapter, "-o", tmp_path / "out")
    code, _, err = command("recover", folder, *flags, "--work-dir", tmp_path / "mine")
    assert code == 2 and "--work-dir: is for the states of a training" in err
    assert command("recover", folder, *flags)[0] == 0
    assert (tmp_path / "mine" / "file").exists()
    saved = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "pruned"


def test_a_second_tuning_keeps_the_record_of_the_first(adapted, tokenizer, tmp_path):
    pruner = MoreauPruner.from_pretrained(adapted[0])
    pruner.merge_adapter(adapted[1])
    pruner.recover(RECORDS, RecoveryConfig(**QUICK))
    pruner.save_pretrained(tmp_path / "twice")
    summary = json.loads((tmp_path / "twice" / "recovery_summary.json").read_text())
    assert summary["training"]["steps"] == 4 and summary["earlier"]["data"]["source"] == "adapter"
    assert "It had been tuned before, on `adapter`" in (tmp_path / "twice" / "README.md").read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds no adapter"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "cannot be read as an adapter"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read as an adapter"),
        (lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "only LoRA is merged"),
    ],
    ids=["no weights", "weights", "config", "kind"],
)
def test_what_is_no_adapter_is_refused(damage, message, adapted, command, tmp_path):
    folder, adapter, _ = adapted
    damage(adapter)
    code, out, err = command("recover", folder, "--adapter", adapter, "-o", tmp_path / "out")
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "out").exists()


def test_an_adapter_leaves_nothing_to_train(command):
    code, _, err = command("recover", "folder", "--adapter", "a", "--max-steps", "3", "-o", "out")
    assert code == 2 and "--adapter: is trained already; leave --max-steps out" in err
    code, _, err = command("recover", "folder", "-o", "out")
    assert code == 2 and "--data: give the records to tune on" in err


# Bad input


@pytest.mark.parametrize(
    ("records", "changes", "message"),
    [
        ([{"question": "a", "reply": "b"}], {}, r"fields question, reply; needed are instruction, \(input,\) output"),
        ([{"instruction": "a", "output": ""}], {}, r"none of its 1 records has a token to learn from"),
        ([{"instruction": "a " * 200, "output": "b"}], {"sequence_length": 64}, r"within 64 tokens; raise"),
        ([], {}, "holds no text"),
    ],
    ids=["fields", "no answer", "too long", "empty"],
)
def test_records_that_cannot_serve_are_refused(model, tokenizer, records, changes, message):
    tokenizer_eos, before = tokenizer.eos_token, snapshot(model)
    config = RecoveryConfig(**{**QUICK, **changes})
    if "no answer" in message or "token to learn from" in message:
        tokenizer = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, bos_token="<s>")
    with pytest.raises(DataError, match=message):
        MoreauRecovery(config, tokenizer).train(model, records)
    assert_same_state(model, before)
    assert tokenizer_eos == "</s>"


def test_what_does_not_fit_the_model_is_refused(model, tokenizer):
    with pytest.raises(ConfigError, match="sequence_length: 512 is more than the model's 256 positions"):
        recover(model, tokenizer, RECORDS, RecoveryConfig(sequence_length=512))
    with pytest.raises(ConfigError, match="teacher: has a vocabulary of 64"):
        recover(model, tokenizer, RECORDS, teacher=tiny_model("llama"))
    with pytest.raises(MoreauError, match="recover: nothing was pruned yet"):
        MoreauPruner(tokenizer=tokenizer).recover(RECORDS)
    with pytest.raises(ConfigError, match=r"training arguments: .*no_such_argument"):
        recover(model, tokenizer, RECORDS, training_arguments={"no_such_argument": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank: 0 is not a whole number ≥ 1"),
        ({"learning_rate": -1.0}, "learning_rate: -1.0 is not a number > 0"),
        ({"validation": 1.0}, r"validation: 1.0 is not a share in \[0, 1\)"),
        ({"loss_on": "some"}, "loss_on: unknown value 'some'. Known: answer, all"),
        ({"patience": 1, "validation": 0.0}, "patience: needs a validation share > 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        RecoveryConfig(**changes)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(model, tokenizer, tmp_path):
    before = snapshot(model)
    calls = []

    def poison(module, args, output):
        calls.append(0)
        return output * float("nan") if len(calls) > 6 else output

    handle = model.lm_head.register_forward_hook(poison)
    config = RecoveryConfig(**{**QUICK, "save_steps": 1})
    with pytest.raises(NonFiniteError, match=r"step 4: the loss is nan; the state of step 3 is kept; lower"):
        MoreauRecovery(config, tokenizer).train(model, RECORDS, work_dir=tmp_path / "work")
    handle.remove()
    assert last_state(tmp_path / "work").name == "checkpoint-3"
    assert_same_state(model, before)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_the_work_folder_of_another_run_is_refused(model, tokenizer, tmp_path):
    MoreauRecovery(RecoveryConfig(**QUICK), tokenizer).train(model, RECORDS, work_dir=tmp_path / "work")
    with pytest.raises(CheckpointError, match="holds the state of another recovery"):
        MoreauRecovery(RecoveryConfig(**{**QUICK, "rank": 4}), tokenizer).train(
            model, RECORDS, work_dir=tmp_path / "work"
        )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    before = contents(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="is not a recovery's work folder, and not empty"):
        MoreauRecovery(RecoveryConfig(**QUICK), tokenizer).train(model, RECORDS, work_dir=tmp_path / "mine")
    assert contents(tmp_path / "mine") == before
