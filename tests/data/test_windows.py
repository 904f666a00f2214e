"""Windows: seeded, inside one document, unpadded, begun as the tokenizer begins a text; from every kind of source."""

import copy
import json
import logging

import datasets
import pytest
import torch

from optimum_moreau.data.sources import read_documents
from optimum_moreau.data.windows import load_calibration, text_prefix, tokenize
from optimum_moreau.errors import DataError
from optimum_moreau.evaluation.generations import generations
from optimum_moreau.loading import load_tokenizer
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

DOCUMENTS = [f"Document number {i}. {TEXT}" * 3 for i in range(6)]
SMALL = {"samples": 5, "sequence_length": 16}


def draw(source, tokenizer, **changes):
    return load_calibration(source, tokenizer, **{**SMALL, **changes})


def test_same_seed_same_tokens_another_seed_others(tokenizer):
    first = draw(DOCUMENTS, tokenizer, seed=1)
    assert torch.equal(first.tokens, draw(DOCUMENTS, tokenizer, seed=1).tokens)
    assert first.sha256 == draw(DOCUMENTS, tokenizer, seed=1).sha256
    assert first.sha256 != draw(DOCUMENTS, tokenizer, seed=2).sha256


@pytest.mark.parametrize("begins", [(), ("<s>",), ("</s>", "<s>")], ids=str)
def test_windows_lie_inside_one_document_behind_what_the_tokenizer_begins_a_text_with(begins):
    tokenizer = tiny_tokenizer(begins)
    first = text_prefix(tokenizer)
    assert first == tokenizer.convert_tokens_to_ids(list(begins)) == tokenizer("Text")["input_ids"][: len(begins)]
    tokens = draw(DOCUMENTS, tokenizer, samples=20).tokens
    assert tokens.shape == (20, 16)
    assert (tokens[:, : len(first)] == torch.tensor(first, dtype=torch.int64)).all()
    texts = ["," + ",".join(map(str, tokenize(text, tokenizer).tolist())) + "," for text in DOCUMENTS]
    for window in tokens[:, len(first) :].tolist():
        assert any("," + ",".join(map(str, window)) + "," in text for text in texts)


def test_a_window_of_a_chat_whose_template_writes_bos_has_one(bos_tokenizer):
    chatty = copy.deepcopy(bos_tokenizer)
    chatty.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    records = [{"messages": [{"role": "user", "content": "Hello there, you."}]}] * 3
    length = len(chatty("Hello there, you.</s>")["input_ids"])
    tokens = draw(records, chatty, sequence_length=length).tokens  # so that each window is a whole chat
    assert (tokens[:, 0] == chatty.bos_token_id).all() and (tokens == chatty.bos_token_id).sum() == len(tokens)
    assert chatty.decode(tokens[0]) == "<s>Hello there, you.</s>"


@pytest.mark.parametrize("folder", ["stories260K", "babyllama-char105", "wikitext-llama-5m"])
def test_windows_of_real_tokenizers_begin_as_their_texts_do(shared, folder, text):
    tokenizer = load_tokenizer(str(shared / "models" / folder))
    first = text_prefix(tokenizer)
    assert first == [token for token in tokenizer(text)["input_ids"][:1] if token == tokenizer.bos_token_id]
    tokens = draw([text], tokenizer).tokens
    assert (tokens == tokenizer.bos_token_id).sum() == len(first) * len(tokens)


def test_documents_too_short_for_a_window_are_skipped(tokenizer):
    tokens = draw(["short", DOCUMENTS[0], "x"], tokenizer).tokens
    assert len(tokens) == 5


def test_each_document_is_used_before_one_is_used_again(tokenizer):
    ids = torch.arange(6 * 16).view(6, 16)
    assert sorted(load_calibration(ids, samples=6, sequence_length=16).tokens[:, 0].tolist()) == list(range(0, 96, 16))


def write(path, kind):
    rows = [{"text": text, "label": i} for i, text in enumerate(DOCUMENTS)]
    if kind == "txt":
        path.write_text("".join(DOCUMENTS))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        table = datasets.Dataset.from_list(rows)
        table.to_csv(path) if kind == "csv" else table.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_file_type_of_records_gives_the_same_tokens(tmp_path, tokenizer, kind):
    found = draw(write(tmp_path / f"data.{kind}", kind), tokenizer)
    assert torch.equal(found.tokens, draw(DOCUMENTS, tokenizer).tokens)
    assert found.source == f"data.{kind}"


def test_a_text_file_is_one_document(tmp_path, tokenizer):
    assert read_documents(write(tmp_path / "data.txt", "txt")) == ["".join(DOCUMENTS)]


def test_a_dataset_and_a_column_by_name(tokenizer):
    rows = datasets.Dataset.from_dict({"title": ["t"] * 6, "story": DOCUMENTS})
    assert torch.equal(draw(rows, tokenizer, column="story").tokens, draw(DOCUMENTS, tokenizer).tokens)
    with pytest.raises(DataError, match=r"no text column 'stroy'. Did you mean 'story'.*title, story"):
        draw(rows, tokenizer, column="stroy")


def test_the_only_column_of_strings_needs_no_name(tokenizer):
    rows = datasets.Dataset.from_dict({"number": [1] * 6, "story": DOCUMENTS})
    assert torch.equal(draw(rows, tokenizer).tokens, draw(DOCUMENTS, tokenizer).tokens)


def test_a_hub_dataset_is_streamed_by_id_config_split_and_column(tmp_path, tokenizer, monkeypatch):
    """A folder stands for the repository: datasets reads both through the same loader."""
    (tmp_path / "repo").mkdir()
    write(tmp_path / "repo" / "train.jsonl", "jsonl")
    monkeypatch.chdir(tmp_path)
    documents = read_documents("hub:./repo:default:train:text")
    assert sorted(documents) == sorted(DOCUMENTS)
    assert draw("hub:./repo", tokenizer).source == "hub:./repo"
    with pytest.raises(DataError, match="cannot be loaded"):
        read_documents("hub:./nowhere")


def test_a_hub_dataset_is_evaluated_on_in_its_order(tmp_path, monkeypatch):
    (tmp_path / "repo").mkdir()
    write(tmp_path / "repo" / "train.jsonl", "jsonl")
    monkeypatch.chdir(tmp_path)
    assert read_documents("hub:./repo:default:train:text", seed=None) == DOCUMENTS
    monkeypatch.setattr("optimum_moreau.data.sources.HUB_EVALUATION_DOCUMENTS", 2)
    assert read_documents("hub:./repo:default:train:text", seed=None) == DOCUMENTS[:2]


def test_token_ids_are_taken_as_they_are():
    ids = torch.arange(64).view(2, 32)
    found = load_calibration(ids, samples=4, sequence_length=8, vocab_size=64).tokens
    assert all((window.diff() == 1).all() for window in found)


@pytest.mark.parametrize("bad", [70, -1])
def test_token_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(DataError, match=f"token id {bad} is outside the model's vocabulary of 64"):
        load_calibration(torch.full((2, 8), bad), samples=2, sequence_length=8, vocab_size=64)


def test_without_a_source_the_shipped_text_is_used_with_a_warning(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        found = load_calibration(None, tokenizer)
    assert found.tokens.shape == (10, 128)
    assert found.source == "optimum_moreau's own text"
    assert "no calibration text given" in caplog.text


def test_records_say_where_the_tokens_came_from(tokenizer):
    record = draw(DOCUMENTS, tokenizer, seed=3).to_dict()
    assert {key: record[key] for key in ("source", "seed", "samples", "sequence_length", "tokens")} == {
        "source": "list of strings",
        "seed": 3,
        "samples": 5,
        "sequence_length": 16,
        "tokens": 80,
    }
    assert len(record["sha256"]) == 64


@pytest.mark.parametrize("begins", [(), ("<s>",), ("</s>", "<s>")], ids=str)
def test_a_prompt_begins_as_the_tokenizer_begins_a_text_and_only_once(begins, monkeypatch):
    tokenizer = tiny_tokenizer(begins)
    model = tiny_model("llama", vocab_size=len(tokenizer))
    given = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **all: given.append(all["input_ids"][0].tolist()) or generate(**all))
    found = generations(model, tokenizer, ["The quick", "".join(begins) + "The quick"], new_tokens=3)
    assert given[0] == given[1] == tokenizer("The quick")["input_ids"] and found[0] == found[1]
