"""Surgeon: a unit by what its loss costs the output of o_proj or down_proj, the others adjusted to make up for it.

The columns that stay are taken as a refit would leave them (compensation/refit.py), so that the choice knows of it. The
formulas are in least_squares/surgeon.py; XᵀX is that of the dense model, so that one pass serves every size and budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from .criterion import Criterion
from .papers import ZIP_LM

if TYPE_CHECKING:
    from .scoring_run import Scoring


@settings
class Surgeon(Criterion):
    """Structured optimal brain surgeon, in groups."""

    name = "surgeon"
    summary = "what the output loses when a unit goes and the others make up for it (structured brain surgeon)"
    paper = ZIP_LM
    needs = ("activations",)
    statistics = ("products",)
    sides = ("in",)
    masks = False

    damping: float = setting("λ, as a share of the mean of diag XᵀX", default=0.1, gt=0)
    group: int = setting("MLP channels that go before costs are renewed; heads go one by one", default=16, ge=1)

    def score(self, run: Scoring) -> None:
        """Emits each unit's cost in one place of its columns."""
        import torch

        from ..least_squares.surgeon import removal_costs
        from ..models.stream import LayerStream

        for streamed in LayerStream(run.model, run.batches, run.windows):
            blocks = [block for block in run.blocks if block.layer == streamed.index]
            found = streamed.gather([block.reader.module for block in blocks], self.statistics) if blocks else {}
            for block in blocks:
                name = block.weight_names()[block.reader]
                w, inputs = run.engine.weight(name).float(), found[block.reader.module]
                units = block.lines(block.reader, w.shape[1], w.device)
                assert inputs.products is not None  # asked for
                costs = removal_costs(inputs.products, w, units, damping=self.damping, group=self.group, where=name)
                elements = torch.zeros(w.shape, dtype=torch.float64, device=w.device)
                elements[0, units[:, 0]] = costs / inputs.tokens
                run.emit(name, elements)
