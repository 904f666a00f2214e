"""What a person may give: configs in short, token ids in several forms, text for a path, windows that are too long."""

import sys
import time

import datasets
import numpy as np
import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan, perplexity
from optimum_moreau.data.instructions import load_examples
from optimum_moreau.data.sources import content_hash, dataset_commit, read_documents
from optimum_moreau.data.windows import load_calibration, reading_bytes
from optimum_moreau.errors import ConfigError, DataError
from tests import warm
from tests.hub_client import environment
from tests.tiny import TEXT, assert_same_state, snapshot, tiny_model

# Configs


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("taylor", {"criterion": "taylor"}),
        ({"criterion": "magnitude", "pattern": "2:4"}, {"criterion": "magnitude", "pattern": "2:4"}),
        ({}, {}),
        (None, {}),
    ],
    ids=str,
)
def test_a_criterion_or_fields_are_over_the_preset_best(given, fields):
    assert MoreauPruner(given).config == MoreauPrunerConfig.best(**fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tailor", "unknown criterion 'tailor'. Did you mean 'taylor'"),
        ({"criterium": "taylor"}, "unknown field 'criterium'. Did you mean 'criterion'"),
        ({1: 2}, "unknown field '1'"),
        (5, "5 is no config; pass a MoreauPrunerConfig, a criterion's name, or a dictionary"),
        (MoreauPrunerConfig, "is no config"),
    ],
    ids=str,
)
def test_what_is_no_config_is_refused(given, message):
    with pytest.raises(ConfigError) as refused:
        MoreauPruner(given)
    assert message in str(refused.value) and "\n" not in str(refused.value)


# Token ids

ROWS = [list(range(i, i + 20)) for i in (3, 40, 90)]
PADDED = {
    "input_ids": [[0] * 4 + ROWS[0], ROWS[1] + [0] * 4],
    "attention_mask": [[0] * 4 + [1] * 20, [1] * 20 + [0] * 4],
}


def windows(source, tokenizer=None):
    return load_calibration(source, tokenizer, samples=6, sequence_length=8).tokens


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        [torch.tensor(row) for row in ROWS],
        np.array(ROWS),
        {"input_ids": ROWS},
        {"input_ids": torch.tensor(ROWS), "attention_mask": torch.ones(3, 20, dtype=torch.int64)},
        [{"input_ids": row, "attention_mask": [1] * 20} for row in ROWS],
        tuple(map(tuple, ROWS)),
    ],
    ids=lambda source: type(source).__name__,
)
def test_token_ids_are_token_ids_in_every_form(source):
    assert torch.equal(windows(source), windows(torch.tensor(ROWS)))


def test_a_flat_list_is_one_document():
    assert torch.equal(windows(ROWS[0]), windows(torch.tensor(ROWS[0])))


def test_what_a_tokenizer_gave_is_its_ids_without_padding(tokenizer):
    padding = type(tokenizer)(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    given = padding([TEXT, TEXT * 2], padding=True, return_tensors="pt")
    assert int((given["attention_mask"] == 0).sum()) > 0
    apart = [padding(text)["input_ids"] for text in (TEXT, TEXT * 2)]
    assert torch.equal(windows(given), windows(apart))
    assert not (windows(PADDED) == 0).any()
    holes = {"input_ids": [[5] * 10 + [6] * 10], "attention_mask": [[1] * 9 + [0] + [1] * 10]}
    assert all(len(window.unique()) == 1 for window in windows(holes))  # none reaches over the hole


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"text": [TEXT]}, "a dictionary is no text"),
        ({"train": datasets.Dataset.from_dict({"text": [TEXT]})}, "holds several splits (train)"),
        ({"input_ids": ROWS, "attention_mask": [[1]]}, "attention_mask is not of the shape of input_ids"),
        ({"input_ids": [[0.5] * 9]}, "input_ids holds no whole numbers"),
        ([TEXT, ROWS[0]], "a list must hold strings or records"),
        (5, "int: is no text"),
        (b"some bytes", "bytes: is no text"),
    ],
    ids=str,
)
def test_what_is_neither_text_nor_ids_is_refused(source, message, tokenizer):
    with pytest.raises(DataError) as refused:
        windows(source, tokenizer)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_where_text_is_read_token_ids_are_refused(tokenizer):
    given = tokenizer([TEXT])
    for read in (read_documents, lambda source: load_examples(source, tokenizer, sequence_length=16)):
        with pytest.raises(DataError, match="only calibration takes them"):
            read(given)


# A text that is given for a path

NO_PATHS = {"long": TEXT * 40, "lines": "One line.\nAnother.", "nul": "a\0b", "component": "x" * 300}


@pytest.mark.parametrize("kind", NO_PATHS)
def test_a_text_for_a_path_is_refused_in_one_line(kind, tokenizer):
    text, model = NO_PATHS[kind], tiny_model("llama", vocab_size=len(tokenizer))
    reads = [
        lambda: load_calibration(text, tokenizer),
        lambda: read_documents(text),
        lambda: perplexity(model, tokenizer, text),
        lambda: load_examples(text, tokenizer, sequence_length=16),
        lambda: MoreauPruner("wanda", tokenizer=tokenizer).prune(model, text),
        lambda: reading_bytes(text),
    ]
    for read in reads:
        with pytest.raises(DataError, match=r"a string is a path.*pass text itself in a list: \[text\]") as refused:
            read()
        assert "\n" not in str(refused.value)
    assert len(content_hash(text)) == 64


# Windows longer than the model's positions


def test_windows_longer_than_the_positions_are_refused_before_any_work(tokenizer, monkeypatch, tokens):
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=64)
    before = snapshot(model)
    monkeypatch.setattr("optimum_moreau.data.windows.read_documents", None)  # not even the text is read
    long = {"sequence_length": 65, "calibration_samples": 2, "compensation_samples": 2}
    settings = [
        {"criterion": "taylor"},
        {"criterion": "wanda", "pattern": "2:4"},
        {"criterion": "magnitude", "compensation": "refit"},
    ]
    message = r"sequence_length: 65 tokens are more than the model's 64 positions .*; give at most 64"
    for fields in settings:
        pruner = MoreauPruner(MoreauPrunerConfig(**fields, **long), tokenizer=tokenizer)
        for do in (pruner.prune, pruner.plan)[: 1 if "pattern" in fields or "compensation" in fields else 2]:
            with pytest.raises(ConfigError, match=message):
                do(model, [TEXT])
    with pytest.raises(ConfigError, match=message):
        perplexity(model, tokenizer, [TEXT], sequence_length=65)
    assert_same_state(model, before)
    MoreauPruner(MoreauPrunerConfig(criterion="magnitude", sequence_length=65)).plan(model)  # nothing is read


def test_a_plan_is_not_compensated_on_windows_that_are_too_long(tokenizer):
    plan, _ = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", unit_ratio=0.25)).plan(tiny_model("llama"))
    config = {**plan.config, "compensation": "refit", "sequence_length": 200}
    with pytest.raises(ConfigError, match="200 tokens are more than the model's 128 positions"):
        MoreauPruner(tokenizer=tokenizer).apply(
            tiny_model("llama"), PruningPlan.from_dict({**plan.to_dict(), "config": config}), [TEXT]
        )


def test_the_commands_refuse_windows_that_are_too_long(tiny_folder, tmp_path, command):
    (tmp_path / "text.txt").write_text(TEXT * 20)
    text = ("--calibration", tmp_path / "text.txt", "--seq-len", "129")
    calls = [
        ("prune", tiny_folder, *text, "-o", tmp_path / "out"),
        ("prune", tiny_folder, *text, "--dry-run", "-o", tmp_path / "out"),
        ("plan", tiny_folder, *text, "--dry-run"),
        ("evaluate", tiny_folder, "--text", tmp_path / "text.txt", "--seq-len", "129"),
    ]
    for call in calls:
        code, _, err = command(*call)
        assert code == 2 and err.count("\n") == 1 and "129 tokens are more than the model's 128 positions" in err, call
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_text_that_is_read(tiny_folder, tmp_path, command):
    (tmp_path / "text.txt").write_text(TEXT * 10)
    (tmp_path / "long.txt").write_text(TEXT * 100_000)
    peaks = {}
    for name in ("text", "long"):
        code, out, _ = command("plan", tiny_folder, "--calibration", tmp_path / f"{name}.txt", "--dry-run")
        assert code == 0
        peaks[name] = out
    assert "reading the text" in peaks["long"] and reading_bytes(tmp_path / "long.txt") > 80e6


# A dataset of the Hub that cannot be had


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_dataset_that_cannot_be_had_is_one_line_at_once(offline, tiny_folder, tmp_path):
    """The Hub is a port that nobody listens at."""
    nowhere = type("Nowhere", (), {"url": "http://127.0.0.1:9"})
    flags = {"HF_HUB_OFFLINE": offline, "HF_DATASETS_OFFLINE": offline}
    call = [sys.executable, "-m", "optimum_moreau", "prune", tiny_folder, "--calibration", "hub:nobody/nothing"]
    start = time.perf_counter()
    done = warm.run(
        [*call, "-o", tmp_path / "out"],
        env={**environment(nowhere, tmp_path / "home", None), **flags},
    )
    assert done.returncode == 2 and time.perf_counter() - start < 30  # the retries alone took 23 s
    *rest, last = done.stderr.splitlines()
    assert "hub:nobody/nothing: cannot be loaded (it is not in the cache, and the Hub cannot be reached)" in last
    assert not [line for line in rest if "Retry" in line or "retry" in line or "thrown" in line], done.stderr


def test_the_commit_of_a_dataset_is_none_where_the_hub_cannot_be_asked(monkeypatch):
    import httpx2
    from huggingface_hub import HfApi

    def fail(*args, **kwargs):
        raise httpx2.ConnectError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", fail)
    assert dataset_commit("hub:nobody/nothing") is None
