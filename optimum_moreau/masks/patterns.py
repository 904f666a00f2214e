"""Which weights of a matrix stay, from their scores: anywhere, or n of every m consecutive inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.quantities import nearest_fewer
from ..errors import PlanError


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie.

    Attributes:
        kept: n of an n:m pattern; 0 for unstructured.
        of: m; 0 for unstructured.
    """

    kept: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads `unstructured`, or `2:4`, as a config has checked it."""
        if text == "unstructured":
            return cls()
        kept, _, of = text.partition(":")
        return cls(int(kept), int(of))

    @property
    def structured(self) -> bool:
        """Whether it is n:m."""
        return self.of > 0

    @property
    def sparsity(self) -> float:
        """Share of zeros that an n:m pattern has."""
        return 1 - self.kept / self.of

    def check(self, width: int, where: str) -> None:
        """Raises PlanError, naming the matrix, where its inputs are no multiple of m."""
        if self.structured and width % self.of:
            words = f"no multiple of {self.of}, so {self.kept}:{self.of} does not fit"
            advice = "use unstructured, another m, or other targets"
            raise PlanError(f"{where}: {width} inputs are {words}; {advice}")

    def holds(self, mask: Tensor) -> bool:
        """Whether at most n of every m consecutive inputs stay; always for unstructured."""
        if not self.structured:
            return True
        return bool((mask.view(len(mask), -1, self.of).sum(dim=-1) <= self.kept).all())


def keep_mask(scores: Tensor, pattern: Pattern, sparsity: float, group: str = "row") -> Tensor:
    """Returns which weights stay, bool `(out, in)`; of equal scores the later input stays.

    Args:
        scores: of one matrix, `(out, in)`; larger is more important.
        pattern: where zeros may lie; n:m decides in every m consecutive inputs, whatever the group.
        sparsity: share of zeros, of an unstructured pattern.
        group: weights that are compared: each `row`, or the whole `layer`.
    """
    if pattern.structured:
        return _small(scores.reshape(-1, pattern.of), pattern.of - pattern.kept).view_as(scores)
    lines = scores if group == "row" else scores.reshape(1, -1)
    return _large(lines, nearest_fewer(sparsity * lines.shape[1])).view_as(scores)


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Which weights stay, of every matrix, by one ranking of all, budget `global`: name → bool `(out, in)`."""
    line = torch.cat([matrix.flatten() for matrix in scores.values()])
    mask = keep_mask(line[None], Pattern(), sparsity, "row")[0]
    parts = mask.split([matrix.numel() for matrix in scores.values()])
    return {name: part.view_as(matrix) for (name, matrix), part in zip(scores.items(), parts, strict=True)}


def zeros_first(scores: Tensor, w: Tensor) -> Tensor:
    """Scores, none negative, under which the weights that are zero now go before all others, `(out, in)`."""
    return scores.masked_fill(w == 0, -1)


def _small(lines: Tensor, drop: int) -> Tensor:
    """All but the lowest of every line, by each entry's rank: the number of those below it, or equal and before it."""
    places = torch.arange(lines.shape[1], dtype=torch.int64, device=lines.device)
    rank = torch.zeros_like(lines, dtype=torch.int16)
    for place in range(lines.shape[1]):
        other = lines[:, place : place + 1]
        rank += (other < lines) | ((other == lines) & (place < places))
    return rank >= drop


def _large(lines: Tensor, drop: int) -> Tensor:
    """The mask of long lines, by the highest value that goes; sorted only where several entries have that value."""
    if not drop:
        return torch.ones_like(lines, dtype=torch.bool)
    mask = lines > lines.kthvalue(drop, dim=1, keepdim=True).values
    tied = mask.sum(dim=1) != lines.shape[1] - drop
    if tied.any():
        order = lines[tied].argsort(dim=1, stable=True)
        mask[tied] = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :drop], False)
    return mask
