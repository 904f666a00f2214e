"""Surgeon: a unit by what its loss costs, the others adjusted to make up for it (structured optimal brain surgeon).

The loss to second order, with a Hessian of Kronecker factors (K-FAC), x what flows into o_proj or down_proj, g the
gradient of the summed loss at its output:

    ΔL ≈ ½ tr(D·δW·H·δWᵀ)        H = E[x xᵀ] + λI        D = diag E[g²]        δW the surgeon's step, least for a unit

least_squares/surgeon.py has the step. The columns that stay are taken as a refit would leave them
(compensation/refit.py), so the choice knows of it, but for the weights of tokens and λ, which the refit finds for each
matrix. H is that of the dense model: one pass serves every size and budget.
With `weigh="outputs"` D = I: the error of the output, without gradients. With `weigh="loss"` costs are in nats, so that
units of all layers, heads and channels, are measured by one scale; D weighs the rows of W alone, and leaves the step as
it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from ..config.settings import setting, settings
from .criterion import Cost, Criterion
from .papers import ZIP_LM

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import MoreauPrunerConfig
    from .scoring_run import Scoring


@settings
class Surgeon(Criterion):
    """Structured optimal brain surgeon, in groups."""

    name = "surgeon"
    summary = "what the loss of a unit costs when the others make up for it (structured optimal brain surgeon)"
    paper = ZIP_LM
    needs = ("activations",)
    statistics = ("products",)
    sides = ("in",)
    masks = False

    damping: float = setting("λ, as a share of the mean of diag XᵀX", default=0.1, gt=0, symbol="λ")
    group: int = setting("MLP channels that go before costs are renewed; heads go one by one", default=16, ge=1)
    weigh: Literal["outputs", "loss"] = setting(
        "how outputs weigh: all alike, or by the loss's gradient there", default="outputs", symbol="D"
    )
    gradient_windows: int = setting("windows whose gradients weigh the outputs, with weigh 'loss'", default=32, ge=1)

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """One pass of gradients over some of the windows."""
        return Cost(passes=int(self.weigh == "loss"))

    def score(self, run: Scoring) -> None:
        """Emits each unit's cost in one place of its columns."""
        import torch

        from ..least_squares.surgeon import removal_costs
        from ..models.stream import LayerStream

        weights = self._weights(run) if self.weigh == "loss" else {}
        for streamed in LayerStream(run.model, run.batches, run.windows):
            blocks = [block for block in run.blocks if block.layer == streamed.index]
            found = streamed.gather([block.reader.module for block in blocks], self.statistics) if blocks else {}
            for block in blocks:
                name = block.weight_names()[block.reader]
                w, inputs = run.engine.weight(name).float(), found[block.reader.module]
                if name in weights:
                    w = w * weights[name].sqrt()[:, None]
                assert inputs.products is not None  # asked for
                h, units = inputs.products / inputs.tokens, block.lines(block.reader, w.shape[1], w.device)
                costs = removal_costs(h, w, units, damping=self.damping, group=self.group, where=name)
                elements = torch.zeros(w.shape, dtype=torch.float64, device=w.device)
                elements[0, units[:, 0]] = costs / 2
                run.emit(name, elements)

    def _weights(self, run: Scoring) -> dict[str, Tensor]:
        """The diagonal of D of each weight, float32 `(out,)`: the mean over tokens of g²."""
        import torch

        from ..distributed import add_up, processes
        from ..envelope import Micro

        windows = torch.cat(list(run.batches))[: math.ceil(self.gradient_windows / processes())]
        found: dict[str, Tensor] = {}

        def add(name: str, g: Tensor, x: Tensor, factor: float) -> None:
            squares = (g.float() * factor).square().sum(0)
            found[name] = found[name] + squares if name in found else squares

        for batch in windows.split(max(map(len, run.batches))):  # one at a time: no gradient is kept
            one = Micro(batch, 1.0, None, self.name)
            run.engine.run([one], lambda name, g, scale: None, everywhere=False, on_flow=add)
        tokens = torch.tensor(windows.numel(), dtype=torch.float64, device=next(iter(found.values())).device)
        add_up(tokens, *(found[name] for name in run.names))
        return {name: squares / float(tokens) for name, squares in found.items()}
