"""Units that are not heard for a while: as good as removed, and the model is left as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .units import Block


@contextmanager
def silent(units: Iterable[tuple[nn.Module, Block, Sequence[int] | Tensor]]) -> Iterator[None]:
    """Within the block, what some units hand to o_proj or down_proj is zero; they speak through nothing else.

    Args:
        units: a decoder layer, one of its blocks, and which of the block's units fall silent.
    """
    with ExitStack() as stack:
        for layer, block, own in units:
            reader: Any = layer.get_submodule(block.reader.module)
            columns = block.lines(block.reader, reader.weight.shape[1])[own].flatten()

            def silence(module: nn.Module, args: tuple[Any, ...], columns: Tensor = columns) -> tuple[Any, ...]:
                return (args[0].index_fill(-1, columns.to(args[0].device), 0), *args[1:])

            stack.callback(reader.register_forward_pre_hook(silence).remove)
        yield
