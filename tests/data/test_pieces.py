"""A text's ids piece by piece: those of the whole text, in little memory; windows of long texts."""

import random
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from optimum_moreau import perplexity
from optimum_moreau.data import tokens
from optimum_moreau.data import windows as calibration_module
from optimum_moreau.data.windows import load_calibration, tokenize
from optimum_moreau.evaluation import segment
from optimum_moreau.loading import load_tokenizer
from tests import warm
from tests.tiny import TEXT, tiny_model

LETTERS = [
    "a",
    "b",
    "ab",
    "The ",
    "quick ",
    " brown",
    "\n",
    "\n\n",
    "  ",
    "é",
    "日本",
    "🙂",
    "<s>",
    "0",
    "’s",
    "\t",
    "x" * 40,
]


def a_text(seed, characters):
    draw = random.Random(seed)
    words = [
        draw.choice(LETTERS) if draw.random() < 0.5 else draw.choice(TEXT.split()) + " " for _ in range(characters)
    ]
    return "".join(words)[:characters]


def whole(text, tokenizer):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def sentencepiece_like():
    """BPE over the whole text, without any split at white space, as LLaMA 2's: merges may cross words and lines."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    from tokenizers import trainers

    bpe.train_from_iterator([TEXT, "\n\n a \n b"], trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 400)
    monkeypatch.setattr(tokens, "_OVERLAP", 160)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["bytes", "whole text"])
def test_pieces_are_the_whole(kind, seed, small, tokenizer):
    tokenizer = tokenizer if kind == "bytes" else sentencepiece_like()
    text = a_text(seed, 6000)
    found = list(tokens.token_pieces(text, tokenizer))
    assert torch.cat(found).tolist() == whole(text, tokenizer) and len(found) > 5


@pytest.mark.parametrize(
    "text", ["a" * 5000, " " * 5000, "The quick " * 900 + "a" * 3000 + " brown fox" * 300], ids=len
)
def test_pieces_of_a_text_without_landmarks_are_the_whole(text, small, tokenizer):
    for one in (tokenizer, sentencepiece_like()):
        assert tokenize(text, one).tolist() == whole(text, one)


@pytest.mark.parametrize("folder", ["stories260K", "babyllama-char105", "wikitext-llama-5m"])
def test_pieces_of_a_real_text_are_the_whole(shared, folder, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 5000)
    text = (shared / "data" / "wikitext2.test.txt").read_text(encoding="utf-8")[:200_000]
    tokenizer = load_tokenizer(str(shared / "models" / folder))
    assert tokenize(text, tokenizer).tolist() == whole(text, tokenizer)


def test_segments_are_those_of_the_whole_text_and_no_more_is_read_than_they_need(tokenizer, small, monkeypatch):
    text = a_text(0, 6000)
    expected = torch.tensor(whole(text, tokenizer) + whole(TEXT, tokenizer))
    expected = expected[: len(expected) // 16 * 16].view(-1, 16)
    assert torch.equal(segment([text, TEXT], tokenizer, 16).ids, expected)
    given = []
    located = tokens._located
    monkeypatch.setattr(tokens, "_located", lambda *args: given.append(args[1:3]) or located(*args))
    assert torch.equal(segment([text, TEXT], tokenizer, 16, most=3).ids, expected[:3])
    assert len(given) <= 3
    model = tiny_model("llama", vocab_size=len(tokenizer))
    assert perplexity(model, tokenizer, [text], sequence_length=16, max_segments=3).segments == 3


def test_of_a_long_document_only_the_parts_that_give_windows_are_tokenised(tokenizer, monkeypatch):
    monkeypatch.setattr(calibration_module, "LONG", 2000)
    monkeypatch.setattr(calibration_module, "PIECE", 600)
    read = []
    monkeypatch.setattr(calibration_module, "tokenize", lambda text, one: read.append(text) or tokenize(text, one))
    text = "".join(f"{i} {TEXT}" for i in range(200))
    few = load_calibration([text], tokenizer, samples=3, sequence_length=16)
    assert len(read) == 3 and max(map(len, read)) < 1200
    assert torch.equal(few.tokens, load_calibration([text], tokenizer, samples=3, sequence_length=16).tokens)
    assert not torch.equal(
        few.tokens, load_calibration([text], tokenizer, samples=3, sequence_length=16, seed=1).tokens
    )
    assert few.distinct == 3 * 16
    read.clear()
    many = load_calibration([text, "short " * 30], tokenizer, samples=100, sequence_length=16)
    assert "".join(sorted(set(read), key=f"{text}|{'short ' * 30}".index)) == text + "short " * 30  # all of it, once
    assert len(read) < 60 and len(many.tokens) == 100 and many.distinct <= 100 * 16


MEASURE = """
import resource, sys
from transformers import PreTrainedTokenizerFast
from optimum_moreau import perplexity
from optimum_moreau.data.windows import load_calibration, tokenize
from optimum_moreau.evaluation.perplexity import segment
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
text = "".join(f"{i} The quick brown fox jumps over the lazy dog.\\n" for i in range(80_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_calibration([text], tokenizer, samples=500)
segment([text], tokenizer, 128)
print(len(text), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_a_long_text_takes_little_memory(tiny_folder):
    """Some 4 million characters; as one they took more than 600 MB."""
    done = warm.run([sys.executable, "-c", MEASURE, tiny_folder])
    assert done.returncode == 0, done.stderr
    characters, grown = map(int, done.stdout.split())
    assert characters > 4_000_000 and grown < 150e6
