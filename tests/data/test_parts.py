"""Windows in parts that share no token of the text."""

import pytest
import torch
from torch.nn import functional
from transformers import BatchEncoding

from optimum_moreau.data.parts import parted
from optimum_moreau.data.windows import load_calibration
from optimum_moreau.errors import DataError


def drawn(documents, samples, seed=0):
    """Windows of documents of ids, as a tokenizer gives them."""
    longest = max(map(len, documents))
    padded = torch.stack([functional.pad(ids, (0, longest - len(ids))) for ids in documents])
    mask = torch.stack([(torch.arange(longest) < len(ids)).long() for ids in documents])
    read = BatchEncoding({"input_ids": padded, "attention_mask": mask})
    return load_calibration(read, samples=samples, sequence_length=16, seed=seed)


def tokens_in(windows):
    return set(windows.flatten().tolist())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("lengths", [(900,), (300, 500), (40,) * 20, (16, 700, 17), (130,)], ids=str)
def test_no_token_of_the_text_is_in_two_parts(lengths, seed):
    found = drawn(torch.arange(sum(lengths)).split(lengths), 40, seed)
    parts = parted(found.tokens, 8, found.places)
    a, b, out = (tokens_in(part) for part in (*parts.folds, parts.held_out))
    assert a and b and out
    assert not (a & b or a & out or b & out)
    every = {tuple(window) for window in found.tokens.tolist()}
    assert all(tuple(window) in every for part in (*parts.folds, parts.held_out) for window in part.tolist())
    assert parts.fitted == len(parts.folds[0]) + len(parts.folds[1])


def test_the_last_documents_are_held_out():
    found = drawn([torch.arange(100 * i, 100 * i + 40) for i in range(12)], 12)
    parts = parted(found.tokens, 3, found.places)
    assert torch.equal(parts.held_out, found.tokens[-3:])
    assert [len(fold) for fold in parts.folds] == [4, 5] and torch.equal(torch.cat(parts.folds), found.tokens[:-3])


@pytest.mark.parametrize(("windows", "asked", "kept"), [(24, 4, 4), (24, 16, 8), (4, 1, 1), (5, 9, 1)])
def test_no_more_than_a_third_is_held_out(windows, asked, kept):
    parts = parted(torch.arange(windows * 4).view(windows, 4), asked)
    assert (len(parts.held_out), parts.fitted) == (kept, windows - kept)


@pytest.mark.parametrize("windows", [1, 2])
def test_too_few_windows_are_refused_in_one_line(windows):
    with pytest.raises(DataError, match=r"^short.txt: .*windows of 4 tokens leave none to hold out.*'none'$") as error:
        parted(torch.zeros(windows, 4).long(), 1, name="short.txt")
    assert "\n" not in str(error.value)


def test_windows_that_all_overlap_are_refused():
    with pytest.raises(DataError, match="24 windows of 16 tokens leave none to hold out"):
        found = load_calibration(torch.arange(20), samples=24, sequence_length=16)
        parted(found.tokens, 8, found.places, found.source)
