"""Token ids as a caller may give them: tensors, arrays, lists of numbers, what a tokenizer gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError


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
        raise DataError(
            f"token ids: {tuple(found.shape)} of {found.dtype}; pass integers, (length,) or (documents, length)"
        )
    return list(found.reshape(-1, found.shape[-1]).to(torch.int64))
