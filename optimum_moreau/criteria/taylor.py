"""Taylor expansion of the loss when a weight is set to zero, as in LLM-Pruner (Section 3.2; MoreauPruner, Eq. 3).

first    Σ|W ⊙ g|                 g = ∇ of the mean loss
second   Σ|W² ⊙ h|                h = mean_n g_n², the diagonal Fisher estimate of the Hessian, g_n of one sample
mixed    Σ|W ⊙ g − ½ W² ⊙ h|
vector   |Σ W ⊙ g|                the sign is kept inside each matrix of a unit
"""

from __future__ import annotations

import math

import torch

from ..config import MoreauPrunerConfig
from ..envelope import LossGradient, Tensors
from .criterion import Cost, Criterion, ElementScores, Scoring

PAPER = "https://arxiv.org/abs/2305.11627"


def score_first(run: Scoring) -> ElementScores:
    """Yields |W ⊙ g|."""
    return run.saliency(run.loss_gradient()(run.weights(), at="taylor"))


def score_vector(run: Scoring) -> ElementScores:
    """Yields W ⊙ g with its sign."""
    g = run.loss_gradient()(run.weights(), at="taylor-vector")
    return run.by_block(lambda name, w: w * g[name])


def score_second(run: Scoring) -> ElementScores:
    """Yields |W² ⊙ h|."""
    _, h = _moments(run)
    return run.by_block(lambda name, w: w.square() * h[name])


def score_mixed(run: Scoring) -> ElementScores:
    """Yields |W ⊙ g − ½ W² ⊙ h|."""
    g, h = _moments(run)
    return run.by_block(lambda name, w: (w * g[name] - 0.5 * w.square() * h[name]).abs_())


def _moments(run: Scoring) -> tuple[Tensors, Tensors]:
    """Returns g and h = mean_n g_n² in float32; the samples pass one by one whatever the batch size."""
    samples = [sample for batch in run.batches for sample in batch.split(1)]
    weights = run.weights()
    g = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    h = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    for share, gradients in LossGradient(run.model, samples).per_batch(weights, at=run.config.criterion):
        for name, g_n in gradients.items():
            g_n = g_n.float()  # fp32: squared gradients underflow in fp16
            g[name].add_(g_n, alpha=share)
            h[name].addcmul_(g_n, g_n, value=share)
    return g, h


def _one_pass(config: MoreauPrunerConfig) -> Cost:
    batches = math.ceil(config.calibration_samples / (config.batch_size or config.calibration_samples))
    return Cost(passes=1, floats=1 if batches > 1 else 0)  # several batches are summed up


def _moments_cost(config: MoreauPrunerConfig) -> Cost:
    return Cost(passes=1, floats=2, batch=1)


TAYLOR = Criterion(
    name="taylor",
    summary="first-order Taylor, Σ|W⊙g| (LLM-Pruner)",
    paper=PAPER,
    score=score_first,
    needs=("gradients",),
    cost=_one_pass,
)
TAYLOR_SECOND = Criterion(
    name="taylor-second",
    summary="second-order Taylor, Σ|W²⊙h|",
    paper=PAPER,
    score=score_second,
    needs=("gradients",),
    cost=_moments_cost,
)
TAYLOR_MIXED = Criterion(
    name="taylor-mixed",
    summary="both orders, Σ|W⊙g − ½W²⊙h|",
    paper=PAPER,
    score=score_mixed,
    needs=("gradients",),
    cost=_moments_cost,
)
TAYLOR_VECTOR = Criterion(
    name="taylor-vector",
    summary="first order with signs, |ΣW⊙g|",
    paper=PAPER,
    score=score_vector,
    needs=("gradients",),
    cost=_one_pass,
    signed=True,
)
