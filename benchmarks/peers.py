"""Other packages that prune a model without training, as their documentation does it; rows of a study name them.

Each takes MLP channels of all layers alone, as many of every layer, so that the share of all parameters is the one that
this package's rows are asked for. They are no part of this package and lie in a folder of their own:

    pip install --no-deps --target ~/.cache/optimum-moreau/peers optipfair==0.4.2 torch-pruning==1.6.1
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from optimum_moreau.errors import ConfigError, MoreauError, first_line

FOLDER = Path("~/.cache/optimum-moreau/peers").expanduser()
BATCH = 8  # windows of a batch of optipfair, whose norms are summed over batches


@dataclass(frozen=True)
class Peer:
    """A package that prunes.

    Attributes:
        package: as pip calls it, with the version.
        module: its name in Python.
        cut: in place, from model, windows, channels to take of each MLP, and of how many.
    """

    package: str
    module: str
    cut: Callable[[PreTrainedModel, Tensor, int, int], Any]

    def there(self, folder: Path = FOLDER) -> bool:
        """Whether it can be imported, be it from that folder."""
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.append(str(folder))  # last: what it shares with this environment comes from here
        return find_spec(self.module) is not None


def cut_by(peer: Peer, model: PreTrainedModel, tokens: Tensor, ratio: float) -> None:
    """In place: removes a share of all parameters, by channels of MLPs.

    Args:
        peer: which package.
        model: the model.
        tokens: calibration windows `(samples, length)`.
        ratio: the share.

    Raises:
        ConfigError: all MLPs together are too few.
        MoreauError: the package fails.
    """
    total, (hidden, width) = (
        sum(p.numel() for p in model.parameters()),
        model.model.layers[0].mlp.down_proj.weight.shape,
    )
    taken = round(ratio * total / (3 * hidden * len(model.model.layers)))  # channels of each layer
    if taken >= width:
        raise ConfigError(f"{peer.package}: {taken} of {width} channels of every MLP make {ratio:.0%}; ask for less")
    try:
        peer.cut(model, tokens.to(model.device), taken, width)
    except Exception as error:  # whatever another package raises
        raise MoreauError(f"{peer.package}: {type(error).__name__}: {first_line(error)}") from error
    model.config.intermediate_size = width - taken


def _optipfair(model: PreTrainedModel, tokens: Tensor, taken: int, width: int) -> None:
    """Its data-driven pruning: range of the weights times the norm of what flows in, `dataloader` of `prune_model`."""
    logging.getLogger().addHandler(logging.NullHandler())  # else it sets up the root logger as it is imported
    from optipfair import prune_model

    percent = 100 * (taken + 0.5) / width  # it rounds down
    batches = DataLoader([{"input_ids": window} for window in tokens], batch_size=BATCH)
    prune_model(
        model, neuron_selection_method="MAW", pruning_percentage=percent, dataloader=batches, show_progress=False
    )


def _torch_pruning(model: PreTrainedModel, tokens: Tensor, taken: int, width: int) -> None:
    """Its Taylor importance, Σ|w·∂L/∂w| over a group, of the mean loss of all windows; each layer by itself."""
    import torch_pruning

    others = [one for name, one in model.named_modules() if isinstance(one, (nn.Linear, nn.Embedding))
              and not name.endswith(("gate_proj", "up_proj"))]  # fmt: skip
    cached, model.config.use_cache = model.config.use_cache, False  # it follows tensors, and a cache is none
    importance = torch_pruning.importance.GroupTaylorImportance()
    ratio = (taken - 0.5) / width  # it rounds what stays down
    asked = {"pruning_ratio": ratio, "ignored_layers": others, "root_module_types": [nn.Linear]}
    try:
        with warnings.catch_warnings(action="ignore"):  # of the norms, which stay as they are
            pruner = torch_pruning.pruner.BasePruner(model, tokens[:1], importance, **asked)
        for window in tokens.split(1):
            (model(input_ids=window, labels=window).loss / len(tokens)).backward()
        pruner.step()
    finally:
        model.config.use_cache = cached
        model.zero_grad(set_to_none=True)


PEERS: Mapping[str, Peer] = {
    "optipfair": Peer("optipfair==0.4.2", "optipfair", _optipfair),
    "torch-pruning": Peer("torch-pruning==1.6.1", "torch_pruning", _torch_pruning),
}
