"""Sizes that remove nothing: refused by the commands, which would save the base again as if it were pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import MoreauPrunerConfig

_INSTEAD = (
    "removes nothing, and the result would be the base again; ask for less to stay, or, to only save a model anew, call"
    " its own save_pretrained in Python"
)


def check_removes(config: MoreauPrunerConfig) -> None:
    """Refuses, before anything is loaded, a share that is nothing; what is left is compared with the model later.

    Raises:
        ConfigError: names the size.
    """
    if config.masks:
        if config.sparsity == 0:
            raise ConfigError(f"sparsity 0: {_INSTEAD}")
        return
    if config.pruning_ratio == 0:
        raise ConfigError(f"pruning_ratio 0 (--ratio): {_INSTEAD}")
    if config.unit_ratio in (0, (0,) * len(config.targets)):
        raise ConfigError(f"unit_ratio 0: {_INSTEAD}")


def check_removed(parameters: int) -> None:
    """Refuses a plan, or a result, that removes no parameter: the size asked for is less than any unit.

    Args:
        parameters: that go.

    Raises:
        ConfigError: there are none.
    """
    if not parameters:
        raise ConfigError(f"the size asked for is less than any unit in scope: that {_INSTEAD}")
