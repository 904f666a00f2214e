"""A text's token ids, piece by piece: the same as of the whole text at once, in a fraction of the memory.

The tokenizers library holds more than a hundred bytes for each character of what it is given. A text is therefore given
to it in pieces that overlap. Far from a piece's ends the tokens are those of the whole text; so where two pieces agree
on the tokens, and on their places, throughout the middle of the stretch that both cover, one goes on for the other.
Where they do not agree (a long run of one letter), the piece is made longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 16  # characters that are tokenised at once
_OVERLAP = 1 << 10  # characters that two pieces share
_AGREEMENT = 16  # tokens, at least, that they have to agree on


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Returns the ids of a text, int64 `(length,)`, without special tokens."""
    return torch.cat(list(token_pieces(text, tokenizer)))


def token_pieces(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    """Yields the ids of a text, int64 `(length,)` each; put together they are those of the whole text.

    Args:
        text: of any length.
        tokenizer: one that is not fast (tokenizers library) does not say where tokens lie, and is given the whole text.
    """
    if len(text) <= 2 * PIECE or not tokenizer.is_fast:
        yield _ids(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return
    start, size, begin = 0, PIECE, 0  # of the piece, its length, and its first token that is still to come
    ids, places = _located(text, start, start + size, tokenizer)
    while (end := start + size) < len(text):
        then = end - _OVERLAP
        more, more_places = _located(text, then, then + PIECE, tokenizer)
        seam = _seam(ids, places, more, more_places, then + _OVERLAP // 4, end - _OVERLAP // 4)
        if seam is None:
            size *= 2
            ids, places = _located(text, start, start + size, tokenizer)
            continue
        yield ids[begin : seam[0]]
        start, size, begin, ids, places = then, PIECE, seam[1], more, more_places
    yield ids[begin:]


def _ids(ids: Any) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device="cpu")


def _located(text: str, start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """The ids of a stretch of the text, `(length,)`, and where in the text they begin and end, `(length, 2)`."""
    found = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return _ids(found["input_ids"]), _ids(found["offset_mapping"]).view(-1, 2) + start


def _seam(
    ids: Tensor, places: Tensor, more: Tensor, more_places: Tensor, low: int, high: int
) -> tuple[int, int] | None:
    """Which token of one piece, and of the next, is the first from `low` on; `None` if they differ before `high`."""
    limits = torch.tensor([low, high], dtype=torch.int64, device="cpu")
    (i, to), (j, more_to) = (
        torch.searchsorted(one[:, 0].contiguous(), limits).tolist() for one in (places, more_places)
    )
    agree = torch.equal(ids[i:to], more[j:more_to]) and torch.equal(places[i:to], more_places[j:more_to])
    return (i, j) if agree and to - i >= _AGREEMENT else None
