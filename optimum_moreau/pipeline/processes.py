"""One command run as several processes, by torchrun or `accelerate launch`: each scores its part of the samples.

What the command writes is apart from what it reads, and claimed from the start, by the first of them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import ConfigError


def launched() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def announce(room: str) -> None:
    """Lets the first process say what a room of this package tells at INFO."""
    if is_first():
        logging.getLogger(f"optimum_moreau.{room}").setLevel(logging.INFO)


def join(device: str | None) -> str | None:
    """Joins the processes that were launched together; returns this one's device: alone, that which is asked for."""
    if launched() == 1:
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


@contextmanager
def reserved(outputs: Sequence[str | Path | None], inputs: Iterable[str | Path | None] = ()) -> Iterator[None]:
    """Refuses outputs that coincide with inputs, and claims them for the block; arguments as for `check_apart`.

    Raises:
        ConfigError: an output is, holds or lies in an input, or another output.
        CheckpointError: another run writes one of them, or nothing can be written there.
    """
    from ..saving import check_apart, claimed

    check_apart(outputs, inputs)
    with ExitStack() as stack:
        for output in outputs if is_first() else ():
            if output is not None:
                stack.enter_context(claimed(output))
        yield
