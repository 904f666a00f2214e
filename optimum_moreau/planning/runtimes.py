"""What the engines that load a pruned model want of its shapes, from their documentation; loading there was not run.

vLLM splits every layer over `tensor_parallel` devices: the heads and the MLP's channels must divide evenly, and the KV
heads must divide evenly or be fewer, so that each is copied evenly (vLLM, QKVParallelLinear). transformers' own tensor
parallelism splits the KV heads without copies. llama.cpp quantises rows of 32 or 256 numbers: what a matrix reads must
be a multiple of 32 for any quantised type, of 256 for the K-quants (`multiple_of=256`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..config import MoreauPrunerConfig
from ..errors import PlanError
from ..models.units import Block, ModelShape

QUANTISED_ROW = 32


@dataclass(frozen=True)
class LegalCounts:
    """How many units of a block may go.

    Attributes:
        multiple_of: the MLP's channels that stay are a multiple of this, and the hidden ones.
        engine: that must load the result.
        devices: over which the engine splits every layer.
        hidden: the hidden size that the number of heads must divide; `None`: any number will do.
        heads: the number that must divide the hidden size; 1: any size will do.
    """

    multiple_of: int = 1
    engine: str = "transformers"
    devices: int = 1
    hidden: int | None = None
    heads: int = 1

    @classmethod
    def of(cls, shape: ModelShape, config: MoreauPrunerConfig) -> LegalCounts:
        """The rules of a config for a model, whose hidden size is the one that is left."""
        width = shape.hidden.total if shape.hidden is not None else 0
        heads = {block.total * block.n_rep for block in shape.of("attention")}
        stock = config.export == "stock" and shape.heads_divide_hidden
        # where heads go too, their number is not known yet, and the Mistral class takes any
        stays = "attention" not in config.targets or shape.heads_divide_hidden
        fixed = shape.family.heads_divide_hidden and len(heads) == 1 and stays
        return cls(
            config.multiple_of,
            config.runtime,
            config.tensor_parallel,
            width if stock and width else None,
            heads.pop() if fixed else 1,
        )

    def step(self, kind: str) -> int:
        """What stays, of channels, is a multiple of this."""
        row = QUANTISED_ROW if self.engine == "llama.cpp" else 1
        return {
            "hidden": math.lcm(self.multiple_of, self.heads, row),
            "mlp": math.lcm(self.multiple_of, self.devices, row),
        }.get(kind, 1)

    def removable(self, block: Block) -> Sequence[int]:
        """Returns the numbers of units that may go, ascending; at least one unit always stays.

        Raises:
            PlanError: none is legal; says what would be.
        """
        if block.kind == "attention":
            return self._removable_groups(block)
        step = self.step(block.kind)
        if step > block.total:
            raise PlanError(
                f"{block.where}: no multiple of {step} can be kept of its {block.total} channels"
                f" ({self.reason(block.kind)}); lower multiple_of or tensor_parallel, or choose another runtime"
            )
        return range(block.total % step, block.total - step + 1, step)

    def reason(self, kind: str) -> str:
        """The rule in force for a kind, in words; empty if any number will do."""
        if kind == "attention":
            split = f"{self.engine} splits heads over tensor_parallel={self.devices}" if self.devices > 1 else ""
            divide = f"the heads must divide the hidden size {self.hidden}" if self.hidden else ""
            return "; ".join(filter(None, (split, divide)))
        if self.step(kind) == 1:
            return ""
        parts = {
            f"multiple_of {self.multiple_of}": self.multiple_of > 1,
            f"the config wants a multiple of its {self.heads} heads": kind == "hidden" and self.heads > 1,
            f"tensor_parallel {self.devices}": kind == "mlp" and self.devices > 1,
            f"llama.cpp quantises rows of {QUANTISED_ROW}": self.engine == "llama.cpp",
        }
        return ", ".join(words for words, applies in parts.items() if applies)

    def splits(self, block: Block, kept: int) -> bool:
        """Whether the engine can split what stays of a block over its devices."""
        if block.kind == "attention":
            return _split(kept, block.n_rep, self.devices, self.engine)
        return kept % self.devices == 0

    def check(self, kept: Mapping[Block, int]) -> None:
        """Refuses what stays of a model where the engine could not split it, cut or not.

        Raises:
            PlanError: names the first block that the engine could not split.
        """
        for block, count in kept.items():
            if not self.splits(block, count):
                heads = f"{count * block.n_rep} heads in {count} KV groups"
                raise PlanError(
                    f"{block.where}: {heads if block.kind == 'attention' else f'{count} channels'} cannot be split over"
                    f" tensor_parallel={self.devices}; add '{block.kind}' to the targets, or choose another number"
                )

    def _removable_groups(self, block: Block) -> Sequence[int]:
        legal = [block.total - kept for kept in range(block.total, 0, -1) if self._splits(kept, block.n_rep)]
        if not legal:
            feasible = [n for n in range(1, 65) if any(_split(k, block.n_rep, n, self.engine) for k in _up_to(block))]
            raise PlanError(
                f"{block.where}: no number of its {block.total} KV groups of {block.n_rep} heads can be taken:"
                f" {self.reason('attention')}; tensor_parallel may be {', '.join(map(str, feasible))}"
            )
        return legal

    def _splits(self, kept: int, n_rep: int) -> bool:
        divides = self.hidden is None or self.hidden % (kept * n_rep) == 0
        return divides and _split(kept, n_rep, self.devices, self.engine)


def _up_to(block: Block) -> range:
    return range(1, block.total + 1)


def _split(groups: int, n_rep: int, devices: int, engine: str) -> bool:
    copied = engine == "vllm" and devices % groups == 0
    return groups * n_rep % devices == 0 and (groups % devices == 0 or copied)
