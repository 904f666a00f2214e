"""What budgets measure of the layers, beside the scores of their units (`budgets/spread.py` makes shares of it).

cosine   c_l = E_t [ x_t · y_t / (‖x_t‖ ‖y_t‖) ], of layer l's input x and output y: 1 − block influence
owl      D_l, the share of the layer's weights whose |W|·√A is more than M times their mean (OWL); M = 5
search   Δ_b(n), by how much the calibration loss grows while the n lowest-scored units of block b alone are silent,
         for n about a quarter, a half, and three quarters of them (`probes`)

The attention and the MLP of a layer are searched as two blocks. A search takes one forward pass over the calibration
text, the first 64 to 128 windows of each process (`search_windows`; all, where there are fewer), for the model as it
is, and one for each block in scope and each n; it begins at the block's layer, with the hidden states that one pass
more has brought there. Of L layers all in scope these are 2 + 3·(L + 1) whole passes (`search_passes`). A search knows
nothing of how blocks act together.

Beside a budget, what protects outliers: R_u, the root mean square of what a unit hands to o_proj or down_proj. A unit
is an outlier where R_u is more than M times the mean R of its block.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..errors import DataError, NonFiniteError, PlanError
from ..models.placement import loaded
from ..models.stream import LayerStream, StreamedLayer
from ..models.units import Block, ModelShape, decoder_layers

logger = logging.getLogger(__name__)

MEASURED = ("cosine", "owl", "search")  # the budgets that read calibration text
PROFILES = ("budget.", "protect.")  # what a profile's name begins with
OUTLIER = 5.0  # M
# Windows that a search reads, of each process: at most 128, and so many that it takes 2,560 forward passes of one
# window, but not fewer than 64. With the preset's 400 windows of scoring these are 2,960, as dear as 987 forward and
# backward; from 12 layers on, all in scope, 64 windows take more.
SEARCH_WINDOWS = (64, 128)
WINDOW_PASSES = 2560


def measures(config: MoreauPrunerConfig) -> bool:
    """Whether the budget of units measures the layers."""
    units = not config.masks and not {"attention", "mlp"}.isdisjoint(config.targets)
    return units and config.budget in MEASURED


def measures_outliers(config: MoreauPrunerConfig) -> bool:
    """Whether units are measured that hand on far more than the others of their block."""
    return config.protect_outliers is not None


def profile_name(budget: str, block: Block | None = None) -> str:
    """Under which a profile lies among the scores: `budget.cosine`, `budget.search.layers.3.mlp`."""
    return f"budget.{budget}" + (f".{block.where}" if block else "")


def profile_of(values: Mapping[str, Tensor], budget: str, block: Block | None = None, size: int = 0) -> list[float]:
    """Reads what was measured.

    Args:
        values: of `UnitScores`.
        budget: of MEASURED.
        block: of `search`.
        size: the least number of entries there must be.

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


def outlier_share(matrices: Sequence[Tensor]) -> float:
    """D of one layer: the share of the entries of some matrices that are more than M times the mean of all."""
    size = sum(matrix.numel() for matrix in matrices)
    mean = sum(float(matrix.sum(dtype=torch.float64)) for matrix in matrices) / size
    return sum(int((matrix > OUTLIER * mean).sum()) for matrix in matrices) / size


def outliers(model: PreTrainedModel, shape: ModelShape, batches: Sequence[Tensor], windows: int) -> Tensor:
    """Measures D of every layer, over all of its matrices, in one forward pass.

    Args:
        model: a causal language model in `scoring_mode`.
        shape: its shape.
        batches: token ids of this process, each `(windows, length)`.
        windows: of all processes.

    Returns:
        float64 tensor `(layers,)` on CPU.
    """
    found = []
    for streamed in LayerStream(model, batches, windows):
        cuts = (cut for block in shape.blocks if block.layer == streamed.index for cut in block.cuts)
        names = list(dict.fromkeys(cut.module for cut in cuts))  # a fused matrix once
        inputs = streamed.gather(names, ("squares",))
        found.append(outlier_share([_flow(streamed.layer, name, inputs[name].squares) for name in names]))
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def _flow(layer: nn.Module, name: str, squares: Tensor | None) -> Tensor:
    """|W|·√A, `(out, in)`."""
    assert squares is not None  # asked for
    return loaded(layer.get_submodule(name), "weight").float().abs() * squares.sqrt()


def unit_flows(
    model: PreTrainedModel, blocks: Sequence[Block], batches: Sequence[Tensor], windows: int
) -> dict[str, Tensor]:
    """Measures what every unit hands on, in one forward pass.

    Args:
        model: a causal language model in `scoring_mode`.
        blocks: of heads and MLP channels.
        batches: token ids of this process, each `(windows, length)`.
        windows: of all processes.

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


def probes(total: int) -> tuple[int, ...]:
    """Of how many silent units of a block the loss is measured, ascending; at least one unit always speaks."""
    return tuple(sorted({max(round(total * quarters / 4), 1) for quarters in (1, 2, 3)} & set(range(1, total))))


def search_passes(blocks: Iterable[Block], depth: int) -> int:
    """Forward passes over the calibration text that a search takes; from layer l of L on it is 1 − l/L of one."""
    layers = ((len(probes(block.total)), depth - (block.layer or 0)) for block in blocks)
    return 2 + math.ceil(sum(times * behind for times, behind in layers) / depth)


def search_windows(passes: int) -> int:
    """Windows that a search of so many passes reads, of each process: fewer in deeper models, so that it stays cheap.

    Args:
        passes: of `search_passes`.
    """
    least, most = SEARCH_WINDOWS
    return min(max(WINDOW_PASSES // passes, least), most)


def search(
    model: PreTrainedModel, blocks: Sequence[Block], scores: Mapping[str, Tensor], batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Measures Δ_b(n) of every block; nothing is written to the model, the units' outputs are zeroed on their way.

    Args:
        model: a causal language model in `scoring_mode`.
        blocks: of heads and MLP channels.
        scores: of their units; the lowest are silent first, protected or not.
        batches: token ids of this process, each `(windows, length)`.

    Returns:
        Profile name → float64 tensor `(probes,)` on CPU.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    depth = len(decoder_layers(model))
    passes = search_passes(blocks, depth)
    batches = list(torch.cat(list(batches))[: search_windows(passes)].split(max(len(batch) for batch in batches)))
    windows = sum(len(batch) for batch in batches)
    logger.info("budget 'search': %d forward passes over %d windows", passes, windows)
    stream = LayerStream(model, batches, windows)
    dense, found = None, {}
    for streamed in tqdm(stream, "search", depth, leave=False, disable=None):
        if dense is None:
            dense = _loss(stream, streamed, batches, "the model as it is")
        for block in (block for block in blocks if block.layer == streamed.index):
            order = torch.argsort(scores[block.where], stable=True)
            losses = []
            for count in probes(block.total):
                with _silent(streamed.layer, block, order[:count]):
                    loss = _loss(stream, streamed, batches, f"{block.where} without {count} units")
                losses.append(loss - dense)
            found[profile_name("search", block)] = torch.tensor(losses, dtype=torch.float64, device="cpu")
    return found


@contextmanager
def _silent(layer: nn.Module, block: Block, units: Tensor) -> Iterator[None]:
    """Within the block, what some units hand to o_proj or down_proj is zero: as good as removed."""
    reader: Any = layer.get_submodule(block.reader.module)
    columns = block.lines(block.reader, reader.weight.shape[1])[units].flatten()

    def silence(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].index_fill(-1, columns.to(args[0].device), 0), *args[1:])

    handle = reader.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def _loss(stream: LayerStream, streamed: StreamedLayer, batches: Sequence[Tensor], what: str) -> float:
    """Mean next-token loss over the tokens of all processes, of the model from a layer on."""
    total = torch.zeros(2, dtype=torch.float64, device="cpu")  # loss, tokens
    for batch, logits in zip(batches, stream.logits(streamed), strict=True):
        for ids, scores in zip(batch, logits, strict=True):  # one window in float32 at a time
            labels = ids[1:].to(logits.device)
            loss = nn.functional.cross_entropy(scores[:-1].float(), labels, reduction="sum")
            total += torch.tensor([loss.item(), labels.numel()], dtype=torch.float64, device="cpu")
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        total = total.to(logits.device)
        dist.all_reduce(total)
    mean = float(total[0] / total[1])
    if not math.isfinite(mean):
        raise NonFiniteError(f"budget 'search': the loss of {what} is {mean}; check the model's weights")
    return mean


def check_text(config: MoreauPrunerConfig, tokens: Tensor | None) -> None:
    """Raises DataError where the budget or the protection reads text and there is none."""
    if tokens is None and measures(config):
        raise DataError(f"budget '{config.budget}' reads calibration text; give some")
    if tokens is None and measures_outliers(config):
        raise DataError("protect_outliers reads calibration text; give some")
