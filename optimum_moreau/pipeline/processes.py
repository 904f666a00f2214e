"""One command run as several processes, by torchrun or `accelerate launch`: each scores its part of the samples."""

from __future__ import annotations

import logging
import os
import sys

from ..errors import ConfigError


def join(device: str | None) -> str | None:
    """Joins the processes that were launched together; returns this one's device.

    Args:
        device: the one asked for, if any; a process alone takes it.

    Raises:
        ConfigError: a device that all processes would share.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device: '{device}' would be shared by all processes; leave it out, each takes its own")
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    logger = logging.getLogger(__name__)
    logger.setLevel(logging.INFO)  # some launchers start one process where several were asked for
    if is_first():
        logger.info("%d processes, each scores its part of the calibration windows", state.num_processes)
    return str(state.device)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def leave() -> None:
    """Ends what `join` began."""
    if "accelerate" in sys.modules:
        from accelerate import PartialState

        if PartialState._shared_state:
            PartialState().destroy_process_group()
