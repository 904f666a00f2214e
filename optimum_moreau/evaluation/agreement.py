"""How much two runs of a criterion agree, and what that says of dtypes and calibration draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import ClassVar

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..files import Record

ROBUSTNESS_NAME = "robustness.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Agreement:
    """How much two runs agree, a mean over the calibration seeds (or over pairs of them).

    Attributes:
        criterion: what scored.
        ratio: what was asked to be removed.
        between: the two, e.g. `("bf16", "fp16")`, or `("draw", "draw")` of one model.
        of: what the draws are of: the model as loaded, or `samples:N`; empty otherwise.
        kept: Jaccard overlap of the units that stay.
        kept_deviation: its standard deviation over the pairs.
        removed: of the units that go.
        removed_deviation: its standard deviation.
        rank: Spearman correlation of the scores, a mean over blocks, each weighted by its units.
        pairs: number of pairs.
        layers: block → `kept`, `removed`, `rank`.
        perplexity: of each of the two, a mean over seeds; empty if no text was given.
        difference: Diff of the paper's tables: the absolute difference of those.
    """

    criterion: str
    ratio: float
    between: tuple[str, str]
    of: str
    kept: float
    kept_deviation: float
    removed: float
    removed_deviation: float
    rank: float
    pairs: int
    layers: Mapping[str, Mapping[str, float]]
    perplexity: tuple[float, float] | None = None
    difference: float | None = None

    @property
    def is_draw(self) -> bool:
        """Whether two calibration draws are compared."""
        return self.between == ("draw", "draw")

    @property
    def words(self) -> str:
        """What is compared."""
        return f"two calibration draws ({self.of})" if self.is_draw else " – ".join(self.between)

    @property
    def cells(self) -> tuple[str, str, str]:
        """Overlaps of kept and removed units and rank correlation, for a reader; a deviation needs two pairs."""
        kept, removed = (f" ± {one:.3f}" * (self.pairs > 1) for one in (self.kept_deviation, self.removed_deviation))
        return f"{self.kept:.3f}{kept}", f"{self.removed:.3f}{removed}", f"{self.rank:.3f}"

    @property
    def is_of_dtypes(self) -> bool:
        """Whether two dtypes are compared."""
        return set(self.between) <= set(DTYPES)


@dataclass(frozen=True)
class Robustness(Record):
    """What `robustness` found out about a model.

    Attributes:
        model: its name, without folders.
        fingerprint: of its weights, as in a plan.
        agreements: of its plans under small changes.
        verdicts: what these say, in words.
    """

    what: ClassVar[str] = "what `robustness` wrote"

    model: str
    fingerprint: str
    agreements: tuple[Agreement, ...]
    verdicts: tuple[str, ...] = ()


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, of two tensors `(n,)`; 1 if neither tells its entries apart, 0 if only one does."""
    alike = [bool((scores == scores[0]).all()) for scores in (first, second)]
    if any(alike):
        return float(all(alike))
    return round(float(spearmanr(first.numpy(), second.numpy()).statistic), 12)  # the same ranks give 1


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; 0 of one value."""
    return stdev(values) if len(values) > 1 else 0.0


def verdicts(agreements: Sequence[Agreement]) -> list[str]:
    """Says of each criterion and ratio whether another dtype or another calibration draw changes more of the choice.

    The draws are those of the model as it was loaded. Two overlaps within the sum of their deviations are called alike.
    """
    found = []
    for criterion, ratio in dict.fromkeys((one.criterion, one.ratio) for one in agreements):
        own = [one for one in agreements if (one.criterion, one.ratio) == (criterion, ratio)]
        dtypes = min((one for one in own if one.is_of_dtypes), key=lambda one: one.removed, default=None)
        draws = next((one for one in own if one.is_draw and not one.of.startswith("samples:")), None)
        if dtypes is None or draws is None:
            continue
        few = " (one pair of draws only)" if draws.pairs == 1 else ""
        what = "calibration draw" if draws.removed < dtypes.removed else "dtype"
        says = f"the {what} threatens the choice more{few}"
        if dtypes.removed == draws.removed == 1:
            says = "neither changes the choice"
        elif abs(dtypes.removed - draws.removed) <= dtypes.removed_deviation + draws.removed_deviation:
            says = "neither threatens the choice clearly more"
        found.append(
            f"{criterion}, {100 * ratio:g} %: of the units removed, {' and '.join(dtypes.between)} share"
            f" {dtypes.removed:.2f}, two calibration draws {draws.removed:.2f}: {says}"
        )
    return found
