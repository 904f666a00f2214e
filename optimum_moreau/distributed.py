"""Several processes that work on one model, and randomness that depends on no order and no number of them.

Processes are launched together (torchrun, `accelerate launch`), and each takes its share of the windows.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


def processes() -> int:
    """How many work together; 1: this one alone."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_distributed() -> bool:
    """Whether several processes work together."""
    return processes() > 1


def rank() -> int:
    """Which of the processes this one is, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if is_distributed() else 0


def share(windows: Tensor) -> Tensor:
    """The windows of this process: every n-th."""
    return windows[rank() :: processes()] if is_distributed() else windows


def add_up(*tensors: Tensor) -> None:
    """In place: each tensor becomes the sum of what every process has in it."""
    import torch.distributed as dist

    if is_distributed():
        for tensor in tensors:
            dist.all_reduce(tensor)


def of_first(value: T) -> T:
    """What the first process has, so that every one goes on with the same."""
    import torch.distributed as dist

    if not is_distributed():
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def seed_of(*parts: object) -> int:
    """A seed of 56 bits, of a seed and what it is for: sha256 over `seed/name`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU, of (seed, name)."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_of(seed, name))
