"""SmoothGrad: first-order Taylor averaged over noisy passes (MoreauPruner, Section 5.1 and appendix E.2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from ..config import MoreauPrunerConfig
from ..envelope import Micro, Noise
from .criterion import Cost, Criterion, Scoring, batches_per_pass
from .papers import MOREAU_PRUNER


def score(run: Scoring) -> None:
    """Emits |∇f(w + z) ⊙ w| / passes of every pass: importances, not gradients, are averaged over the passes."""
    c = run.config
    assert c.passes is not None  # resolved
    weight = 1 / c.passes
    bar = tqdm(range(c.passes), desc="noisy passes", leave=False, disable=run.engine.hides_progress)
    for i in bar:
        moved = _moved(run.noise(), i)
        micros = [Micro(batch, share, moved, f"pass {i + 1}") for batch, share in run.shared_batches()]
        loss = run.engine.run(micros, lambda name, g, scale: run.emit_saliency(name, g, scale * weight))
        bar.set_postfix(loss=f"{loss:.4f}")


def _moved(noise: Noise, i: int) -> Callable[[str, Tensor, Tensor], Tensor]:
    return lambda name, w, out: noise.moved(w, None, name, 0, i, out=out)


def _cost(config: MoreauPrunerConfig) -> Cost:
    batches = batches_per_pass(config)
    return Cost(passes=config.passes or 0, floats=1 if batches > 1 else 0, noisy=True)


SMOOTHGRAD = Criterion(
    name="smoothgrad",
    summary="|g(w+z)⊙w| averaged over noisy passes",
    paper=MOREAU_PRUNER,
    score=score,
    needs=("gradients",),
    defaults={"sigma": 0.05, "passes": 100},
    cost=_cost,
)
