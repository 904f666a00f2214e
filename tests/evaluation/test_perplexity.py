"""Perplexity against its definition."""

import inspect
import math
import subprocess
import sys

import datasets
import pytest
import torch

from optimum_moreau import Perplexity, perplexity
from optimum_moreau.errors import DataError
from optimum_moreau.evaluation.generations import generations
from optimum_moreau.evaluation.study import Study
from optimum_moreau.evaluation.zero_shot import zero_shot
from tests.tiny import TEXT, tiny_model

TEXTS = [TEXT * 4, TEXT * 3]


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model("llama", vocab_size=len(tokenizer))


@torch.no_grad()
def by_hand(model, tokenizer, length):
    ids = [i for text in TEXTS for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    total, count = 0.0, 0
    for start in range(0, len(ids) - length + 1, length):
        window = torch.tensor([ids[start : start + length]])
        log_p = model(window).logits[0].double().log_softmax(-1)
        for position in range(1, length):
            total -= float(log_p[position - 1, window[0, position]])
            count += 1
    return math.exp(total / count), count


@pytest.mark.parametrize("length", [8, 32])
def test_is_its_definition_whatever_the_batches(model, tokenizer, length):
    expected, count = by_hand(model, tokenizer, length)
    for batch_size in (1, 5):
        found = perplexity(model, tokenizer, TEXTS, sequence_length=length, batch_size=batch_size)
        assert found.perplexity == pytest.approx(expected, rel=1e-5)
        assert (found.tokens, found.segments) == (count, count // (length - 1))


def test_the_metric_alone_gives_the_same(model, tokenizer):
    found = Perplexity().compute(predictions=TEXTS, model=model, tokenizer=tokenizer, sequence_length=16)
    assert found == vars(perplexity(model, tokenizer, TEXTS, sequence_length=16))


def test_the_metric_reads_files_and_datasets(model, tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("".join(TEXTS))
    rows = datasets.Dataset.from_dict({"story": TEXTS})
    settings = {"model": model, "tokenizer": tokenizer, "sequence_length": 16}
    assert Perplexity().compute(text=tmp_path / "text.txt", **settings)["tokens"] > 0
    assert Perplexity().compute(text=rows, column="story", **settings) == Perplexity().compute(
        predictions=TEXTS, **settings
    )


WITHOUT = """
import sys
sys.modules["evaluate"] = None
from optimum_moreau import perplexity
from optimum_moreau.cli import main
assert main(["evaluate", sys.argv[1], "--text", sys.argv[2], "--seq-len", "16"]) == 0
try:
    from optimum_moreau import Perplexity
except ImportError as error:
    print(error)
"""


def test_without_the_library_only_the_metric_is_missed_and_says_so_in_a_line(tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 4)
    code = [sys.executable, "-c", WITHOUT, str(tiny_folder), str(tmp_path / "text.txt")]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured, missed = done.stdout.splitlines()
    assert measured.startswith("perplexity  ")
    assert missed.endswith("is not installed: pip install 'optimum-moreau[evaluate]'")


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tokenizer):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.lm_head.weight.data.zero_()
    assert perplexity(model, tokenizer, TEXTS, sequence_length=16).perplexity == pytest.approx(len(tokenizer), rel=1e-5)


def test_the_mode_is_left_as_it_was(model, tokenizer):
    model.train()
    perplexity(model, tokenizer, TEXTS, sequence_length=16)
    assert model.training


def test_text_shorter_than_a_segment_is_refused(model, tokenizer):
    with pytest.raises(DataError, match="one segment needs 128"):
        perplexity(model, tokenizer, ["too short"])


@pytest.mark.parametrize("measure", [perplexity, generations, zero_shot, Study])
def test_what_measures_takes_the_model_its_tokenizer_and_the_text_in_this_order(measure):
    assert [*inspect.signature(measure).parameters][:2] == ["model", "tokenizer"]
