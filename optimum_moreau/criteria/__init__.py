"""Criteria: model + calibration batches → element scores, emitted weight by weight.

A file is a criterion, or a few of one kind, as registry.py lists them (block_influence.py is that of whole layers), but
for criterion.py, what a criterion is; scoring_run.py, what it is given; moreau_steps.py and lora_adapters.py, what
moreau.py and lora.py run; and papers.py, where methods of all kinds come from.
"""

from .criterion import Cost, Criterion, OfGradients

__all__ = ["Cost", "Criterion", "OfGradients"]
