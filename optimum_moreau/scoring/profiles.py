"""What is measured of layers and units beside the scores, and its place among them.

Budgets measure what they read (budgets/), each under `budget.NAME`. What protects outliers is R_u, the root mean
square of what a unit hands to o_proj or down_proj. A unit is an outlier where R_u is more than M times the mean R of
its block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..criteria.block_influence import block_influence
from ..errors import DataError, PlanError
from ..models.placement import prepare_offloaded
from ..models.stream import LayerStream
from ..models.units import Block, ModelShape, decoder_layers

PROFILES = ("budget.", "protect.")  # what a profile's name begins with


@dataclass(frozen=True)
class Measuring:
    """What a budget measures on.

    Attributes:
        model: a causal language model in `scoring_mode`.
        shape: its shape.
        tokens: calibration windows of all processes, `(samples, length)`.
        batches: those of this process.
        scores: of the units.
        config: resolved.
    """

    model: PreTrainedModel
    shape: ModelShape
    tokens: Tensor
    batches: list[Tensor]
    scores: Mapping[str, Tensor]
    config: MoreauPrunerConfig


def measures(config: MoreauPrunerConfig) -> bool:
    """Whether the budget of units measures the layers."""
    units = not config.masks and not {"attention", "mlp"}.isdisjoint(config.targets)
    return units and config.budget.measured


def measures_outliers(config: MoreauPrunerConfig) -> bool:
    """Whether it is measured what units hand on."""
    return config.budget.protect_outliers is not None


def profile_name(budget: str, block: Block | None = None) -> str:
    """Under which a profile lies among the scores: `budget.cosine`, `budget.search.layers.3.mlp`."""
    return f"budget.{budget}" + (f".{block.where}" if block else "")


def profile_of(values: Mapping[str, Tensor], budget: str, block: Block | None = None, size: int = 0) -> list[float]:
    """Reads what was measured, of `search` for a block; at least so many entries.

    Raises:
        PlanError: it was not measured with these scores, or of a model of fewer layers.
    """
    found = values.get(profile_name(budget, block))
    if found is None or len(found) < size:
        where = f" of {block.where}" if block else ""
        raise PlanError(
            f"budget: what '{budget}' reads{where} was not measured with these scores; score the model again with"
            f" budget '{budget}' and this scope (without --from-scores)"
        )
    return found.tolist()


def unit_flows(
    model: PreTrainedModel, blocks: Sequence[Block], batches: Sequence[Tensor], windows: int
) -> dict[str, Tensor]:
    """Measures what every unit of heads and MLP channels hands on, in one forward pass of a model in `scoring_mode`.

    The batches are token ids of this process, `(windows, length)`; `windows` counts those of all processes.

    Returns:
        `protect.layers.3.mlp` → R, float64 tensor `(units,)` on CPU.
    """
    found = {}
    for streamed in LayerStream(model, batches, windows):
        own = {block.reader.module: block for block in blocks if block.layer == streamed.index}
        if not own:
            continue
        inputs = streamed.gather(list(own), ("squares",))
        for module, block in own.items():
            squares = inputs[module].squares
            assert squares is not None  # asked for
            mean = squares.double().cpu() * inputs[module].samples / inputs[module].tokens  # (in,)
            found[f"protect.{block.where}"] = mean[block.lines(block.reader, len(mean))].mean(dim=1).sqrt()
    return found


def is_outlier(values: Mapping[str, Tensor], block: Block, times: float) -> Tensor:
    """Which units of a block hand on more than M times the mean, `(units,)`; none of those removed before (−∞).

    Raises:
        PlanError: what they hand on was not measured with these scores.
    """
    flow = values.get(f"protect.{block.where}")
    if flow is None or len(flow) != block.total:
        raise PlanError(
            f"protect_outliers: what units of {block.where} hand on was not measured with these scores; score the model"
            " again with protect_outliers and this scope (without --from-scores)"
        )
    there = ~values[block.where].isneginf()
    return there & (flow > times * flow[there].mean())


def probes(total: int, levels: int = 4) -> tuple[int, ...]:
    """Of how many silent units of a block the loss is measured, ascending; at least one unit always speaks.

    One, two, … of so many equal parts; of a block of no more units than parts every number. So the number of these
    tells what they are: `probes(total, n + 1)`.
    """
    if total <= levels:
        return tuple(range(1, total))
    return tuple(sorted({max(round(total * part / levels), 1) for part in range(1, levels)}))


def of_layers(values: Mapping[str, Tensor], budget: str, blocks: Sequence[Block]) -> list[float]:
    """What was measured of the layer of each block; errors as for `profile_of`."""
    layers = [block.layer or 0 for block in blocks]
    profile = profile_of(values, budget, size=max(layers) + 1)
    return [profile[layer] for layer in layers]


def layer_influence(model: PreTrainedModel, tokens: Tensor, config: MoreauPrunerConfig) -> Tensor:
    """Block influence of every layer, float64 `(layers,)`."""
    found = block_influence(model, decoder_layers(model), tokens.split(config.batch_size or len(tokens)))
    prepare_offloaded(model)  # accelerate's passes untie what is tied
    return found


def check_text(config: MoreauPrunerConfig, tokens: Tensor | None) -> None:
    """Raises DataError where something reads text, beside the criterion, and there is none."""
    reads = {
        f"budget '{config.budget.name}'": measures(config),
        "protect_outliers": measures_outliers(config),
        "layer_criterion 'block-influence'": config.by_influence,
    }
    for what, needed in reads.items():
        if tokens is None and needed:
            raise DataError(f"{what} reads calibration text; give some")
