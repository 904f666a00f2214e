"""SmoothGrad: first-order Taylor averaged over noisy passes (MoreauPruner, Section 5.1 and appendix E.2).

gradient      mean_i |∇f(w + z_i) ⊙ w|           f the mean loss over samples
importance    mean_i mean_n |∇f_n(w + z_i) ⊙ w|      f_n the loss on sample n; z_i is the same for all samples
"""

from __future__ import annotations

from tqdm import tqdm

from ..config import MoreauPrunerConfig
from ..envelope import MovedWeight, Noise
from .criterion import Cost, Criterion, Scoring, batches_per_pass
from .papers import MOREAU_PRUNER


def score(run: Scoring) -> None:
    """Emits |∇f(w + z) ⊙ w| / passes of every pass: importances, not gradients, are averaged over the passes.

    With `reduction="importance"`, |∇f_n(w + z) ⊙ w| / (passes · N) of every pass and sample.
    """
    c = run.config
    assert c.passes is not None  # resolved
    weight = 1 / c.passes
    bar = tqdm(range(c.passes), desc="noisy passes", leave=False, disable=run.engine.hides_progress)
    for i in bar:
        for part in run.parts():
            loss = run.gradient(
                part,
                lambda name, g, scale: run.emit_saliency(name, g, scale * weight),
                moved=_moved(run.noise(), i),
                label=f"pass {i + 1}",
            )
            bar.set_postfix(loss=f"{loss:.4f}")


def _moved(noise: Noise, i: int) -> MovedWeight:
    return lambda name, w, out: noise.moved(w, None, name, 0, i, out=out)


def _cost(config: MoreauPrunerConfig) -> Cost:
    if config.per_sample:
        return Cost(passes=config.passes or 0, noisy=True, batch=1)
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
    partial=lambda config: config.per_sample,
)
