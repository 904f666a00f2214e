"""Instructions, chats and plain text → token ids with labels.

Alpaca records are written with the template of Stanford Alpaca, as LLM-Pruner and MoreauPruner tune on them; chats with
the tokenizer's own template.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from ..templates import ChatTemplate
from .sources import Record, read_records, source_name, text_field, text_of
from .tokens import tokenize
from .windows import shuffled, text_prefix

logger = logging.getLogger(__name__)

IGNORED = -100  # label of a token without loss
_PROMPT = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n{given}### Response:\n"
)
_PAIRED = ", paired with an input that provides further context"
_SKIPPED = (
    "%s: %d of %d records are skipped: the answer begins behind the first %d tokens, or is empty (raise the sequence"
    " length, or learn from all tokens)"
)

Example = dict[str, list[int]]
Pieces = list[tuple[str, bool]]  # a record as pieces of text, each with whether it carries loss


@dataclass(frozen=True)
class TrainingData:
    """Examples, and where they come from.

    Attributes:
        train: `input_ids` and `labels` of each sequence.
        validation: the same, held out.
        source: name of the file or dataset, without folders.
        records: number of records read.
        skipped: records without a token to learn from.
        sha256: of all examples.
    """

    train: list[Example]
    validation: list[Example]
    source: str
    records: int
    skipped: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """What summary and card record; not the tokens."""
        counts = {"train_sequences": len(self.train), "validation_sequences": len(self.validation)}
        read = {"source": self.source, "records": self.records, "skipped": self.skipped}
        return {**read, **counts, "sha256": self.sha256}


def load_examples(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    loss_on: str = "answer",
    packing: bool = False,
    validation: float = 0.0,
    seed: int = 0,
) -> TrainingData:
    """Reads records and makes training sequences of them.

    Args:
        source: as for `load_calibration`: records with `instruction`, `input`, `output`; or with `messages`; or text.
        tokenizer: of the model.
        sequence_length: longer records are cut off there; plain text is cut into pieces of that length.
        loss_on: `answer` or `all`.
        packing: put several records into one sequence.
        validation: share of the records that is held out, at most 2000.
        seed: of the split.

    Raises:
        DataError: fields are missing, or nothing is left to learn from.
    """
    name = source_name(source)
    records, column = read_records(source, seed=seed)
    with ChatTemplate(tokenizer, name) as template:
        pieces_of, is_chat = _reader(records[0], name, column, template)
        prefix = [] if is_chat else text_prefix(tokenizer)
        eos = [] if is_chat or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        found = [
            list(_sequences(pieces_of(record, i), tokenizer, sequence_length, loss_on, (prefix, eos)))
            for i, record in enumerate(records)
        ]
    groups = [group for group in found if group]  # of each record: a text may make several sequences
    if not groups:
        raise DataError(
            f"{name}: none of its {len(records)} records has a token to learn from within {sequence_length} tokens;"
            " raise the sequence length, or learn from all tokens (loss_on='all')"
        )
    if skipped := len(records) - len(groups):
        logger.warning(_SKIPPED, name, skipped, len(records), sequence_length)
    parts = _parts(groups, validation, seed)
    if packing:
        parts = [list(_packed(part, sequence_length)) for part in parts]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return TrainingData(parts[0], parts[1], name, len(records), skipped, digest)


def _parts(groups: list[list[Example]], validation: float, seed: int) -> list[list[Example]]:
    """The examples to learn from, shuffled, and those that are held out; a record's stay together."""
    if len(groups) == 1:  # one long text: its pieces are what can be held out
        groups = [[example] for example in groups[0]]
    held_out = min(int(validation * len(groups)), 2000)
    groups = shuffled(groups, torch.Generator("cpu").manual_seed(seed))
    return [list(chain.from_iterable(part)) for part in (groups[held_out:], groups[:held_out])]


def _reader(
    first: Record, name: str, column: str | None, template: ChatTemplate
) -> tuple[Callable[[Record, int], Pieces], bool]:
    """The function that writes a record of this kind, and its index, as pieces; and whether it is a chat."""
    if column is None and "messages" in first:
        return lambda record, i: _chat(_messages(record, i, name), template, name), True
    if column is None and {"instruction", "output"} <= first.keys():
        return lambda record, i: _alpaca(record, i, name), False
    if column is None and "text" not in first:
        strings = [key for key, value in first.items() if isinstance(value, str)]
        if len(strings) != 1:
            raise DataError(
                f"{name}: its records have the fields {', '.join(first)}; needed are instruction, (input,) output; or"
                " messages; or text"
            )
    key = text_field([first], name, column)
    return lambda record, i: [(text_of(record, key, i, name), True)], False


def _alpaca(record: Record, index: int, name: str) -> Pieces:
    instruction, given, output = (text_of(record, key, index, name) for key in ("instruction", "input", "output"))
    paired, given = (_PAIRED, f"### Input:\n{given}\n\n") if given else ("", "")
    return [(_PROMPT.format(paired=paired, instruction=instruction, given=given), False), (output, True)]


def _messages(record: Record, index: int, name: str) -> Sequence[Record]:
    """The messages of a record; refuses what is no list of dictionaries with text."""
    found = record.get("messages")
    if not isinstance(found, Sequence) or not all(isinstance(one, Mapping) for one in found) or isinstance(found, str):
        raise DataError(f"{name}: record {index + 1}: 'messages' is no list of dictionaries with role and content")
    for one, key in product(found, ("role", "content")):
        text_of(one, key, index, name)
    return found


def _chat(messages: Sequence[Record], template: ChatTemplate, name: str) -> Pieces:
    """The chat in pieces: what leads to an answer, the answer, and so on."""
    whole, pieces, done = template.text(messages), [], 0
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        start = len(template.text(messages[:i], answer_follows=True))
        so_far = template.text(messages[: i + 1])
        if not done <= start <= len(so_far) or not whole.startswith(so_far):
            raise DataError(f"{name}: the chat template rewrites earlier turns; learn from all tokens as plain text")
        pieces += [(whole[done:start], False), (whole[start : len(so_far)], True)]
        done = len(so_far)
    return [*pieces, (whole[done:], False)] if done < len(whole) else pieces


def _sequences(
    pieces: Pieces, tokenizer: PreTrainedTokenizerBase, length: int, loss_on: str, ends: tuple[list[int], list[int]]
) -> Iterator[Example]:
    """Token ids and labels of a record: what the tokenizer begins a text with, once; its pieces; EOS.

    A plain text makes as many sequences as it fills, another record one. A chat's template writes both `ends` itself.
    """
    (prefix, eos), ids, labels = ends, list[int](), list[int]()
    for text, answer in pieces:
        found = tokenize(text, tokenizer).tolist()
        ids += found
        labels += found if answer or loss_on == "all" else [IGNORED] * len(found)
    if prefix and ids[: len(prefix)] == prefix:  # the text itself begins so
        ids, labels = ids[len(prefix) :], labels[len(prefix) :]
    ids, labels, step = ids + eos, labels + eos, length - len(prefix)
    for start in range(0, len(ids), step) if len(pieces) == 1 else (0,):
        tokens, learnt = ids[start : start + step], labels[start : start + step]
        example = {"input_ids": prefix + tokens, "labels": [IGNORED] * len(prefix) + learnt}
        if any(label != IGNORED for label in example["labels"][1:]):
            yield example


def _packed(examples: list[Example], length: int) -> Iterator[Example]:
    """Records one after the other, at most `length` tokens at once; none predicts the first token of the next."""
    ids, labels = list[int](), list[int]()
    for example in examples:
        if ids and len(ids) + len(example["input_ids"]) > length:
            yield {"input_ids": ids, "labels": labels}
            ids, labels = [], []
        ids, labels = ids + example["input_ids"], [*labels, IGNORED, *example["labels"][1:]]
    if ids:
        yield {"input_ids": ids, "labels": labels}
