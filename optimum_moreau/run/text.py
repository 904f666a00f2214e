"""The text that a caller gives a run, and the windows that scoring and compensation draw from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..config import MoreauPrunerConfig
from ..data.sources import DEFAULT_TEXT
from ..data.windows import CalibrationSet, check_positions, load_calibration
from ..scoring.scores import needs_text


@dataclass(frozen=True)
class GivenText:
    """The text of a run, as a caller gives it.

    Attributes:
        tokenizer: the model's.
        source: as for `load_calibration`; `None`: the text that ships.
        column: text column of a file of records.
    """

    tokenizer: PreTrainedTokenizerBase | None
    source: Any = None
    column: str | None = None

    def kept(self) -> GivenText:
        """The same; what an iterator gives is kept, so that it can be read twice."""
        return replace(self, source=list(self.source)) if isinstance(self.source, Iterator) else self

    def named(self) -> GivenText:
        """The same, with the text that ships by its name: what it is was said once."""
        return replace(self, source=DEFAULT_TEXT) if self.source is None else self

    def scored(self, model_config: PretrainedConfig, config: MoreauPrunerConfig) -> CalibrationSet | None:
        """The windows that scoring reads; `None` where it reads none.

        Raises:
            DataError: the text cannot serve.
        """
        return self.windows(model_config, config, config.calibration_samples) if needs_text(config) else None

    def fitted(self, model_config: PretrainedConfig, config: MoreauPrunerConfig) -> CalibrationSet | None:
        """The windows that compensation reads; `None` where there is none; errors as for `scored`."""
        step = config.compensation
        return self.windows(model_config, config, step.windows) if step.fits else None

    def windows(self, model_config: PretrainedConfig, config: MoreauPrunerConfig, samples: int) -> CalibrationSet:
        """So many windows, of the config's length and seed."""
        return load_calibration(
            self.source,
            self.tokenizer,
            samples=samples,
            sequence_length=config.sequence_length,
            seed=config.seed,
            column=self.column,
            vocab_size=model_config.vocab_size,
        )


def check_windows_fit(model_config: PretrainedConfig, config: MoreauPrunerConfig) -> None:
    """Where text is read, its windows must not be longer than the model's positions; errors as of `check_positions`."""
    if needs_text(config) or config.compensation.fits:
        check_positions(model_config, config.sequence_length)
