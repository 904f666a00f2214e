"""Checks 2:4 masks with PyTorch's semi-structured tensors: two of every four weights, and where they lay.

On CUDA of compute capability 8.0 and above these are the tensors that its sparse kernels multiply; elsewhere PyTorch
refuses them, but what packs them for CUTLASS is plain tensor operations, which run on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (  # not public; tried with torch 2.13
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from transformers import PreTrainedModel

from ..errors import PlanError
from ..models.placement import parameter_values
from .summary import SparsitySummary

ROWS, COLUMNS = 32, 64  # PyTorch takes 16-bit matrices of multiples of these


def check_semi_structured(model: PreTrainedModel, summary: SparsitySummary) -> int:
    """Packs every masked matrix, in 16 bits, and unpacks it: what comes back must be what it was.

    Args:
        model: masked, on any device; float32 weights are rounded to bfloat16 for it.
        summary: of the mask; 2:4, or another pattern that 2:4 holds.

    Returns:
        Number of matrices checked; those of a shape that PyTorch does not take (ROWS, COLUMNS) are left out.

    Raises:
        PlanError: names a matrix that has more than two weights among four.
    """
    checked = 0
    for one in summary.matrices:
        w = parameter_values(model, f"model.{one.name}.weight")
        w = w if w.dtype in (torch.float16, torch.bfloat16) else w.bfloat16()
        if w.shape[0] % ROWS or w.shape[1] % COLUMNS:
            continue
        if not torch.equal(packed_and_back(w), w):
            raise PlanError(f"{one.name}: more than two of four weights stay somewhere; mask it by 2:4")
        checked += 1
    return checked


def packed_and_back(w: Tensor) -> Tensor:
    """A 16-bit matrix `(out, in)` after packing; it differs where more than two of four weights were not zero."""
    if w.is_cuda and torch.cuda.get_device_capability(w.device) >= (8, 0):
        return torch.sparse.to_sparse_semi_structured(w.contiguous()).to_dense()
    return sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(w.contiguous()))
