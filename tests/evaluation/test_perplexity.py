"""Perplexity against its definition."""

import inspect
import math
import subprocess
import sys

import datasets
import pytest
import torch

from optimum_moreau import Perplexity, perplexity
from optimum_moreau.errors import ConfigError, DataError
from optimum_moreau.evaluation.generations import generations
from optimum_moreau.evaluation.perplexity import segment
from optimum_moreau.evaluation.robustness import robustness
from optimum_moreau.evaluation.study import Study
from optimum_moreau.evaluation.zero_shot import zero_shot
from optimum_moreau.pipeline.recipe import Recipe
from optimum_moreau.run.measuring import EvaluationText, measured_perplexity
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

TEXTS = [TEXT * 4, TEXT * 3]


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model("llama", vocab_size=len(tokenizer))


@torch.no_grad()
def by_hand(model, tokenizer, length, prefix=()):
    ids = [i for text in TEXTS for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    own, total, count = length - len(prefix), 0.0, 0
    for start in range(0, len(ids) - own + 1, own):
        window = torch.tensor([[*prefix, *ids[start : start + own]]])
        log_p = model(window).logits[0].double().log_softmax(-1)
        for position in range(max(len(prefix), 1), length):
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


@pytest.mark.parametrize("begins", [("<s>",), ("</s>", "<s>")], ids=str)
def test_a_segment_begins_as_the_tokenizer_begins_a_text_and_that_is_no_target(model, begins):
    """… the first token of the text is one, given BOS; the papers' protocol puts nothing there."""
    begun, length = tiny_tokenizer(begins), 16
    prefix = begun.convert_tokens_to_ids(list(begins))
    for bos, protocol, first in (("auto", f" after {' '.join(begins)}", prefix), ("paper", ", no BOS", [])):
        expected, count = by_hand(model, begun, length, first)
        found = perplexity(model, begun, TEXTS, sequence_length=length, bos=bos)
        assert found.perplexity == pytest.approx(expected, rel=1e-5)
        assert (found.tokens, found.segments) == (count, count // (length - max(len(first), 1)))
        assert found.protocol == f"16-token segments{protocol}"
    assert perplexity(model, begun, TEXTS, sequence_length=length).protocol.endswith(begins[-1])  # the default
    ids = segment(TEXTS, begun, length).ids
    assert ids[:, : len(prefix)].tolist() == [prefix] * len(ids)


def test_both_protocols_are_one_to_the_last_bit_where_the_tokenizer_adds_nothing(model, tokenizer):
    auto, paper = (perplexity(model, tokenizer, TEXTS, sequence_length=16, bos=bos) for bos in ("auto", "paper"))
    assert auto == paper and auto.protocol == "16-token segments, no BOS"


def test_a_chat_whose_template_writes_bos_gives_no_segment_with_two(bos_tokenizer):
    bos = bos_tokenizer.bos_token_id
    written = segment([f"<s>{text}" for text in TEXTS], bos_tokenizer, 16)
    assert torch.equal(written.ids, segment(TEXTS, bos_tokenizer, 16).ids)
    assert (written.ids == bos).sum() == len(written.ids)


def test_so_many_segments_are_the_first_of_all_and_the_protocol_says_so(bos_tokenizer):
    few = segment(TEXTS, bos_tokenizer, 16, 3)
    assert torch.equal(few.ids, segment(TEXTS, bos_tokenizer, 16).ids[:3])
    assert few.protocol == "16-token segments after <s>, the first 3"


def test_what_a_tokenizer_calls_its_bos_stays_on_one_line():
    strange = tiny_tokenizer(["<s>"])
    strange.convert_ids_to_tokens = lambda ids: ["\x1b[31m<s>\n"] * len(ids)
    assert segment(TEXTS, strange, 16).protocol == "16-token segments after [31m<s>"


def test_a_protocol_that_is_none_and_a_segment_without_a_target_are_refused(model, tokenizer):
    for measure in (
        lambda **bad: perplexity(model, tokenizer, TEXTS, sequence_length=16, **bad),
        lambda **bad: segment(TEXTS, tokenizer, 16, **bad),
        lambda **bad: EvaluationText(TEXTS, tokenizer, **bad),
        lambda **bad: EvaluationText(TEXTS, tokenizer).segments(16, **bad),
        lambda **bad: Study(model, tokenizer, TEXTS, TEXTS, **bad),
        lambda **bad: robustness(lambda: model, tokenizer, TEXTS, **bad),
        lambda **bad: Recipe.from_dict({"model": "a", "output": "b", **bad}),
    ):
        with pytest.raises(ConfigError, match=r"bos.*paper") as refused:
            measure(bos="papers")
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="2 is not a whole number ≥ 3: the tokenizer begins a text with 2 tokens"):
        segment(TEXTS, tiny_tokenizer(["</s>", "<s>"]), 2)
    with pytest.raises(ConfigError, match="1 is not a whole number ≥ 2"):
        segment(TEXTS, tokenizer, 1)


def test_a_text_is_measured_as_it_says_or_as_is_asked(model, bos_tokenizer):
    text = EvaluationText(TEXTS, bos_tokenizer, bos="paper")
    how = {"sequence_length": 16, "max_segments": 4}
    for one, given, bos in ((text, None, "paper"), (text, "auto", "auto"), (TEXTS, None, "auto")):
        one = EvaluationText.of(one, bos_tokenizer)
        found = measured_perplexity(model, one, "pruned", bos=given, **how)
        expected = perplexity(model, bos_tokenizer, TEXTS, bos=bos, **how)
        assert (found.value, found.protocol) == (expected.perplexity, expected.protocol)


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
