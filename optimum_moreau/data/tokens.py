"""Token ids: those that a caller gives, as tensors, lists or what a tokenizer gave; and a text's, piece by piece.

The tokenizers library holds more than a hundred bytes for each character of what it is given. A long text is therefore
given to it in pieces that overlap. Far from a piece's ends the tokens are those of the whole text; so where two pieces
agree on the tokens, and on their places, throughout the middle of the stretch that both cover, one goes on for the
other. Where they do not agree (a long run of one letter), the piece is made longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import DataError

PIECE = 1 << 16  # characters that are tokenised at once
_OVERLAP = 1 << 10  # characters that two pieces share
_AGREEMENT = 16  # tokens, at least, that they have to agree on
_Located = tuple[Tensor, Tensor]  # ids, and where in the text they begin and end


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Returns the ids of a text, int64 `(length,)`, without special tokens."""
    return torch.cat(list(token_pieces(text, tokenizer)))


def token_pieces(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    """Yields the ids of a text, int64 `(length,)` each; put together they are those of the whole text.

    A tokenizer that is not fast (tokenizers library) does not say where tokens lie, and is given the whole text.
    """
    if len(text) <= 2 * PIECE or not tokenizer.is_fast:
        yield _ids(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return
    start, size, begin = 0, PIECE, 0  # of the piece, its length, and its first token that is still to come
    here = _located(text, start, start + size, tokenizer)
    while (end := start + size) < len(text):
        then = end - _OVERLAP
        there = _located(text, then, then + PIECE, tokenizer)
        seam = _seam(here, there, then + _OVERLAP // 4, end - _OVERLAP // 4)
        if seam is None:
            size *= 2
            here = _located(text, start, start + size, tokenizer)
            continue
        yield here[0][begin : seam[0]]
        start, size, begin, here = then, PIECE, seam[1], there
    yield here[0][begin:]


def _ids(ids: Any) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device="cpu")


def _located(text: str, start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> _Located:
    """The ids of a stretch of the text, `(length,)`, and where in the text they begin and end, `(length, 2)`."""
    found = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return _ids(found["input_ids"]), _ids(found["offset_mapping"]).view(-1, 2) + start


def _seam(here: _Located, there: _Located, low: int, high: int) -> tuple[int, int] | None:
    """Which token of one piece, and of the next, is the first from `low` on; `None` if they differ before `high`."""
    limits = torch.tensor([low, high], dtype=torch.int64, device="cpu")
    begins = (places[:, 0].contiguous() for _, places in (here, there))
    (i, to), (j, more_to) = (torch.searchsorted(begin, limits).tolist() for begin in begins)
    agree = all(torch.equal(one[i:to], more[j:more_to]) for one, more in zip(here, there, strict=True))
    return (i, j) if agree and to - i >= _AGREEMENT else None


def token_documents(source: Any) -> list[Tensor] | None:
    """The documents of token ids, each `(length,)`; `None` where a source is of another kind.

    Args:
        source: a tensor or array `(documents, length)` or `(length,)`, a tokenizer's output, lists of numbers, or a
            list of such documents. What an attention mask leaves out is in no document, and parts two.

    Raises:
        DataError: they are no whole numbers, or of more than two dimensions.
    """
    if isinstance(source, Mapping) and "input_ids" in source:
        return _unpadded(source["input_ids"], source.get("attention_mask"))
    if isinstance(source, Sequence) and source and not isinstance(source, (str, bytes)):
        if all(type(item) is int for item in source):
            return _flat(source)
        parts = [token_documents(item) for item in source]
        return None if any(part is None for part in parts) else [one for part in parts for one in part or []]
    ids = isinstance(source, Tensor) or (type(source).__module__ == "numpy" and hasattr(source, "dtype"))
    return _flat(source) if ids else None


def _unpadded(ids: Any, mask: Any) -> list[Tensor]:
    """A tokenizer's ids, one document for every run that its attention mask lets through."""
    documents = token_documents(ids)
    if not documents:
        raise DataError("token ids: input_ids holds no whole numbers; pass what the tokenizer gave")
    if mask is None:
        return documents
    masks = token_documents(mask) or []
    if [len(one) for one in documents] != [len(one) for one in masks]:
        raise DataError("token ids: attention_mask is not of the shape of input_ids; pass what the tokenizer gave")
    found = []
    for document, own in zip(documents, masks, strict=True):
        places = own.nonzero().flatten()
        ends = (places.diff() != 1).nonzero().flatten() + 1
        found += [document[part] for part in places.tensor_split(ends) if len(part)]
    return found


def _flat(ids: Any) -> list[Tensor]:
    found = torch.as_tensor(ids, device="cpu")
    if found.dim() not in (1, 2) or found.is_floating_point() or found.is_complex() or not found.numel():
        advice = "pass integers, (length,) or (documents, length)"
        raise DataError(f"token ids: {tuple(found.shape)} of {found.dtype}; {advice}")
    return list(found.reshape(-1, found.shape[-1]).to(torch.int64))
