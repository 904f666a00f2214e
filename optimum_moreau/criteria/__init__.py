"""Criteria: model + calibration batches → element scores, emitted weight by weight.

One file each: block_influence, gblm, lora, magnitude, moreau, random, ria, smoothgrad, sparsegpt, taylor, wanda.
Beside them: criterion.py, what a criterion is; scoring_run.py, what it is given; moreau_steps.py and lora_adapters.py,
what moreau.py and lora.py run; papers.py, where criteria, budgets and the like come from.
"""

from .criterion import Cost, Criterion, OfGradients

__all__ = ["Cost", "Criterion", "OfGradients"]
