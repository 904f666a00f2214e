"""What the training of blocks adds to a compensation (compensation/blocks.py): operations and memory.

A block of P parameters is trained for T steps of t tokens, and N_w tokens are watched, before the first step and at
each CHECK-th one; θ, its gradient and Adam's two means are float32, the best state, one to compare with it and what was
there before have s bytes per number, as in the model:

    operations   Σ_blocks 2P·(3·t·T + N_w·(1 + ⌈T/CHECK⌉))      the gradient costs two forward passes
    memory       P·(4·4 + 3·s) of the largest block

These are upper bounds: training may end early. What one step's activations take stands beside, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..compensation.blocks import CHECK, WATCHED
from ..compensation.silence import reached
from ..compensation.train import Train
from ..config import MoreauPrunerConfig
from ..models.units import ModelShape, decoder_layers
from ..planning import PruningPlan


@dataclass(frozen=True)
class TrainingEstimate:
    """What the blocks of all layers take.

    Attributes:
        operations: floating-point operations, in float32.
        block_bytes: of the largest block while it is trained, without activations.
        step_tokens: tokens whose activations are held at once.
    """

    operations: float
    block_bytes: int
    step_tokens: int


def estimate_training(
    skeleton: PreTrainedModel, shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig
) -> TrainingEstimate | None:
    """Estimates it; `None` where nothing is trained.

    Args:
        skeleton: the model, on any device.
        shape: its shape.
        plan: what stays.
        config: resolved.
    """
    step = config.compensation
    if not isinstance(step, Train):
        return None
    windows = int(step.windows or 0)  # resolved
    at_once = max(1, step.batch_tokens // config.sequence_length)
    watched = max(1, round(WATCHED * windows)) * config.sequence_length
    trained = 3 * at_once * config.sequence_length * step.steps + watched * (1 + math.ceil(step.steps / CHECK))
    layers, operations, largest = decoder_layers(skeleton), 0.0, 0
    for index, blocks in reached(shape, plan).items():
        layer: Any = layers[index]
        together = [b for b in shape.blocks if b.layer == index] if blocks and shape.family.parallel else blocks
        sizes = [sum(layer.get_submodule(m).weight.numel() for m in {cut.module for cut in b.cuts}) for b in together]
        operations += 2.0 * sum(sizes) * trained
        largest = max([largest, *([sum(sizes)] if shape.family.parallel else sizes)])
    return TrainingEstimate(
        operations, largest * (4 * 4 + 3 * skeleton.dtype.itemsize), at_once * config.sequence_length
    )
