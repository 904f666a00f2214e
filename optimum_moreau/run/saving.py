"""What a run saves: the files of the model, the tokens that it is verified on, and its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import CheckpointError, ConfigError, UnsupportedModelError, first_line
from ..evaluation.records import Measurement
from ..loading import drop_foreign_code
from ..models.placement import is_offloaded, state_to_save
from ..models.units import size_of
from ..recovery import MoreauRecovery
from ..saving.contents import carry_over
from ..saving.older_readers import spell_for_older_readers
from ..saving.records import Records
from ..saving.verification import Verification
from .cutting import PruningResult

DTYPES = ("float32", "bfloat16", "float16")


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    revision: str | None,
    *,
    trust_remote_code: bool,
) -> tuple[str, ...]:
    """Writes weights, tokenizer and what lies beside the base; returns what was changed so that older readers read it.

    Args:
        model: the pruned model.
        tokenizer: its tokenizer, if there is one.
        folder: to write into.
        revision: of the base model.
        trust_remote_code: code that is not this package's may lie in the folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    model.save_pretrained(folder, state_dict=state_to_save(model))
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder)
    name = model.config.name_or_path
    carry_over(folder, name, tokenizer=getattr(tokenizer, "name_or_path", None), revision=revision)
    words = spell_for_older_readers(folder)
    drop_foreign_code(folder, trust_remote_code=trust_remote_code)
    return words


def check_castable(model: PreTrainedModel, dtype: str | None) -> None:
    """Refuses a dtype that a model cannot be saved in.

    Raises:
        ConfigError: it is none of `DTYPES`.
        UnsupportedModelError: the model is offloaded.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"save_dtype: '{dtype}' is none of {', '.join(DTYPES)}")
    if dtype is not None and is_offloaded(model):
        raise UnsupportedModelError("save_dtype: an offloaded model cannot be cast; load it in that dtype (--dtype)")


def cast(model: PreTrainedModel, result: PruningResult, dtype: str | None) -> PruningResult:
    """In place: the parameters in the dtype that they are saved in; the result, with what its summary says of it.

    Args:
        model: the pruned model; buffers that no checkpoint holds stay as they are.
        result: its result.
        dtype: one of `DTYPES`; `None`: as it is. Errors are those of `check_castable`.
    """
    check_castable(model, dtype)
    if dtype is None:
        return result
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    size, summary = size_of(model), result.summary
    before = round(summary.bytes_before * size[1] / summary.bytes_after)  # the base, if it were saved so
    return replace(result, summary=replace(summary, dtype=dtype, bytes_before=before, bytes_after=size[1]))


def tokens_to_verify(model: PreTrainedModel) -> Tensor:
    """Random ids, where no text was read: a reload must agree on any."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randint(model.config.vocab_size, (2, 64), generator=generator, dtype=torch.int64, device="cpu")


def checked(result: PruningResult, words: Sequence[str], verification: Verification, inputs: str) -> PruningResult:
    """The result, with what saving found in its summary.

    Args:
        result: of the run.
        words: what was changed for older readers.
        verification: what the reload showed.
        inputs: hash of what the model was made from.
    """
    summary = replace(
        result.summary,
        adjustments=tuple(dict.fromkeys((*result.summary.adjustments, *words))),
        verified_max_abs_difference=verification.max_abs_difference,
        inputs=inputs,
    )
    return replace(result, summary=summary)


def record(result: PruningResult, recovery: MoreauRecovery | None, measurements: Sequence[Measurement]) -> Records:
    """All that is on record of a run."""
    return Records(result.summary, result.plan, result.scores, recovery, tuple(measurements), result.sparsity)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise CheckpointError(f"the tokenizer cannot be written ({first_line(error)})") from error  # of tokenizers' own
