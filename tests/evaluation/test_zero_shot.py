"""Zero-shot tasks through lm-eval: against an independent count, and on the shared files."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from optimum_moreau.data.sources import content_hash
from optimum_moreau.errors import ConfigError, DataError
from optimum_moreau.evaluation.records import load_measurements
from optimum_moreau.evaluation.zero_shot import METRICS, find_tasks, metric_of, zero_shot
from optimum_moreau.loading import load_model, load_tokenizer

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

QUESTIONS = [
    {"question": f"Which number comes after {i}?", "choices": [str(i + 1), f"{i} apples and more", "x"], "label": i % 3}
    for i in range(12)
]
BLANKS = [
    {
        "contexts": [f"The {a} saw the {b}", f"The {b} saw the {a}"],
        "continuation": f" run {i} times.",
        "label": i % 2,
        "id": i,
    }
    for i, (a, b) in enumerate([("cat", "dog"), ("sun", "moon"), ("boy", "girl"), ("car", "bus")] * 3)
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of two made tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("numbers", QUESTIONS), ("openbookqa_made", QUESTIONS), ("blanks", BLANKS)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(str(tiny_folder), device="cpu"), load_tokenizer(str(tiny_folder))


def log_likelihood(model, tokenizer, context, continuation):
    """log p(continuation | context), as lm-eval splits the two: by the tokens of the whole and of the context."""
    whole = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    given = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_p[i - 1, whole[i]].item() for i in range(given, len(whole)))


def test_accuracy_is_that_of_an_independent_count(model, tasks):
    found = zero_shot(*model, ["numbers", "openbookqa_made", "blanks"], task_path=tasks)
    right = {"numbers": 0, "openbookqa_made": 0, "blanks": 0}
    for row in QUESTIONS:
        scores = [log_likelihood(*model, row["question"], f" {choice}") for choice in row["choices"]]
        per_byte = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        right["numbers"] += scores.index(max(scores)) == row["label"]
        right["openbookqa_made"] += per_byte.index(max(per_byte)) == row["label"]
    for row in BLANKS:
        scores = [log_likelihood(*model, context, row["continuation"]) for context in row["contexts"]]
        right["blanks"] += scores.index(max(scores)) == row["label"]
    assert {one.task: round(one.value * one.samples) for one in found.tasks} == right
    assert [one.metric for one in found.tasks] == ["acc", "acc_norm", "acc"]
    assert found.average == pytest.approx(sum(right.values()) / 36)


def test_the_standard_errors_are_those_of_means_of_zeros_and_ones(model, tasks):
    (one, two) = zero_shot(*model, ["numbers", "blanks"], task_path=tasks).tasks
    for found in (one, two):
        p, n = found.value, found.samples
        assert found.stderr == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5) and n == 12
    average = zero_shot(*model, ["numbers", "blanks"], task_path=tasks).stderr
    assert average == pytest.approx((one.stderr**2 + two.stderr**2) ** 0.5 / 2)


def test_a_limit_takes_the_first_questions_and_the_model_stays_as_it_was(model, tasks):
    model[0].train()
    (found,) = zero_shot(*model, ["numbers"], task_path=tasks, limit=5).tasks
    assert found.samples == 5 and model[0].training
    model[0].eval()


def test_the_papers_tasks_have_the_papers_metrics():
    assert len(METRICS) == 7
    assert [metric_of(name) for name in ("hellaswag_2k", "boolq", "mine")] == ["acc_norm", "acc", "acc"]


@pytest.mark.parametrize("name", [name if name != "hellaswag" else "hellaswag_2k" for name in METRICS])
def test_the_shared_tasks_run(name, shared):
    folder = str(shared / "models" / "stories260K")
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    (found,) = zero_shot(model, tokenizer, [name], task_path=shared / "data" / "tasks", limit=8).tasks
    assert found.samples == 8 and 0 <= found.value <= 1 and found.metric == metric_of(name)


def test_the_verb_prints_texts_and_tasks(command, tiny_folder, tasks, tmp_path, text):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(text)
    texts = ("--text", tmp_path / "a.txt", "--text", tmp_path / "b.txt", "--seq-len", "32")
    flags = ("--tasks", "numbers,blanks", "--task-path", tasks, "--limit", "4")
    code, out, err = command("evaluate", tiny_folder, *texts, *flags, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert [one["text"] for one in found["texts"]] == ["a.txt", "b.txt"]
    assert found["texts"][0]["protocol"] == "32-token segments, no BOS" and len(found["tasks"]) == 2
    _, out, _ = command("evaluate", tiny_folder, *flags)
    assert out.splitlines()[-1].startswith("average") and "± " in out and "acc" in out


def test_saved_accuracies_are_on_the_card_as_accuracies(command, folders, tiny_folder, tasks, tmp_path):
    folder = shutil.copytree(folders["stock"], tmp_path / "pruned")
    flags = ("--tasks", "numbers,openbookqa_made", "--task-path", tasks, "--limit", "4", "--baseline", tiny_folder)
    code, out, err = command("evaluate", folder, *flags, "--save", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    measured = load_measurements(folder / "evaluation.json")
    assert [(one.stage, *one.what) for one in measured] == [
        (stage, task, metric, "zero-shot, 4 questions")
        for stage in ("before", "pruned")
        for task, metric in (("numbers", "acc"), ("openbookqa_made", "acc_norm"))
    ]
    assert [one.value for one in measured] == [one["value"] for one in (*found["baseline"]["tasks"], *found["tasks"])]
    assert measured[0].sha256 == content_hash(tasks / "numbers.jsonl")
    result = ModelCard.load(folder / "README.md").data.eval_results[1]
    assert (result.task_type, result.dataset_type, result.metric_type) == (
        "multiple-choice",
        "openbookqa_made",
        "accuracy",
    )
    assert result.metric_name == "acc_norm, zero-shot, 4 questions" and 0 <= result.metric_value <= 1
    _, out, _ = command("evaluate", folder, *flags)
    assert "\nbase: tiny-llama\n" in out and " points  (numbers, zero-shot, 4 questions)" in out


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("nubmers", None, "holds no task 'nubmers' (.yaml or .jsonl). Did you mean 'numbers'?"),
        ("odd", [{"prompt": "a", "answer": "b"}], "odd.jsonl: line 1: has the fields answer, prompt; needed are"),
        ("damaged", "not json", "damaged.jsonl: line 1: cannot be read as a question: not JSON"),
    ],
)
def test_task_files_that_cannot_serve_are_refused(task, rows, message, command, tiny_folder, tasks):
    if rows is not None:
        (tasks / f"{task}.jsonl").write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    code, out, err = command("evaluate", tiny_folder, "--tasks", task, "--task-path", tasks)
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1, err


ONE = {"question": "a", "choices": ["b", "c", "d"], "label": 0}
BLANK = {"contexts": ["a", "b"], "continuation": " c", "label": 0}
# what stands in the second line of a file, and what is said of it
LINES = {
    "broken": ('{"question": "a", "cho', "line 2: cannot be read as a question: not JSON"),
    "not a dictionary": ("[1, 2]", "line 2: cannot be read as a question: [1, 2] is no dictionary"),
    "deep": ("[" * 10**5, "line 2: cannot be read as a question: "),
    "long": ({**ONE, "question": "x" * 2**20}, "line 2: cannot be read as a question: more than 1,048,576 bytes"),
    "not text": (b'{"question": "\xff"}', "line 2: cannot be read as a question: not JSON"),
    "a field gone": ({"question": "a", "label": 0}, "line 2: has the fields label, question; needed are question, ch"),
    "of the other kind": (BLANK, "line 2: has the fields contexts, continuation, label; needed are question, choices"),
    "label too high": ({**ONE, "label": 3}, "line 2: label 3 names none of its 3 choices; they count from 0 to 2"),
    "label below zero": ({**ONE, "label": -1}, "line 2: label -1 names none"),
    "label of no choice": ({**ONE, "label": "zz"}, "line 2: label 'zz' names none of its 3 choices"),
    "label a truth": ({**ONE, "label": True}, "line 2: label True names none"),
    "label not whole": ({**ONE, "label": 1.0}, "line 2: label 1.0 names none"),
    "label nothing": ({**ONE, "label": None}, "line 2: label None names none"),
    "labels of two kinds": ({**ONE, "label": "b"}, "line 2: label 'b' is of another kind than in its first line"),
    "choices a word": ({**ONE, "choices": "abc"}, "line 2: choices 'abc' is no list of two or more texts"),
    "one choice": ({**ONE, "choices": ["b"]}, "line 2: choices ['b'] is no list of two or more texts"),
    "an empty choice": ({**ONE, "choices": ["b", ""]}, "line 2: choices ['b', ''] is no list of"),
    "choices numbers": ({**ONE, "choices": [1, 2]}, "line 2: choices [1, 2] is no list of two or more texts"),
    "question a number": ({**ONE, "question": 5}, "line 2: question is 5, no text"),
}


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES)
def test_every_line_of_a_task_file_is_checked(line, message, command, tiny_folder, tmp_path):
    data = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    (tmp_path / "mine.jsonl").write_bytes(json.dumps(ONE).encode() + b"\n" + data + b"\n")
    code, out, err = command("evaluate", tiny_folder, "--tasks", "mine", "--task-path", tmp_path)
    assert (code, out) == (2, "") and f"mine.jsonl: {message}" in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 2}, "label 2 names none of its 2 contexts; they count from 0 to 1"),
        ({"label": "a"}, "label 'a' names none of its 2 contexts"),
        ({"contexts": "ab"}, "contexts 'ab' is no list of two or more texts"),
        ({"continuation": ""}, "continuation is '', no text"),
    ],
    ids=str,
)
def test_every_line_with_a_blank_is_checked(changes, message, tmp_path):
    (tmp_path / "mine.jsonl").write_text(f"{json.dumps(BLANK)}\n\n{json.dumps(BLANK | changes)}")
    with pytest.raises(DataError, match=re.escape(f"mine.jsonl: line 3: {message}")):
        find_tasks(["mine"], tmp_path)


def test_a_label_may_be_the_text_of_a_choice(model, tasks, tmp_path):
    rows = [{**row, "label": row["choices"][row["label"]]} for row in QUESTIONS]
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (by_text,) = zero_shot(*model, ["numbers"], task_path=tmp_path).tasks
    (by_number,) = zero_shot(*model, ["numbers"], task_path=tasks).tasks
    assert by_text == by_number


def test_fields_that_lm_eval_does_not_read_may_stop_it_in_one_line(command, tiny_folder, tmp_path):
    rows = [{**ONE, "id": 5}, {**ONE, "id": {"a": [1]}}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = command("evaluate", tiny_folder, "--tasks", "mine", "--task-path", tmp_path)
    assert (code, len(err.splitlines())) in ((0, 0), (2, 1)) and "Traceback" not in err, err


def test_what_is_missing_is_named(model, tasks, tmp_path, monkeypatch, command, tiny_folder):
    with pytest.raises(DataError, match="no such folder of task files"):
        zero_shot(*model, ["numbers"], task_path=tmp_path / "nowhere")
    assert "--text: give a text" in command("evaluate", tiny_folder)[2]
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'optimum-moreau\[eval\]'"):
        zero_shot(*model, ["numbers"], task_path=tasks)
