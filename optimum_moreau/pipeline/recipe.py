"""`Recipe`: the whole chain in one YAML file: what to prune and how, what to tune it on, measure it on, publish it as.

What a recipe holds decides the result. How a machine gets there (device, folders to go on from, whether code that lies
beside the weights may run) is said on the command line only, and so is the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..config import SIZES, MoreauPrunerConfig
from ..config.recovery import RecoveryConfig
from ..errors import ConfigError
from ..files import read_yaml
from ..registry import suggestion

T = TypeVar("T")


@dataclass(frozen=True)
class RecoverStep:
    """What the pruned model is tuned on, and how.

    Attributes:
        data: records, as for `MoreauRecovery.train`.
        output: folder of the tuned model; default: the pruned one's name with `-recovered`.
        teacher: the unpruned model, to learn from its logits as well.
        config: the settings.
    """

    data: str
    output: str | None = None
    teacher: str | None = None
    config: RecoveryConfig = field(default_factory=RecoveryConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns the step as one flat dictionary."""
        named = {"data": self.data, "output": self.output, "teacher": self.teacher}
        return _without_none({**named, **self.config.to_dict()})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecoverStep:
        """Makes the step of a flat dictionary; raises ConfigError for an unknown name."""
        own = {name: values[name] for name in ("data", "output", "teacher") if name in values}
        if own.get("data") is None:
            raise ConfigError("recover: needs data, the records to tune on (--recover-data)")
        config = RecoveryConfig.from_dict({name: value for name, value in values.items() if name not in own})
        return _made(cls, {**own, "config": config}, "recover")


@dataclass(frozen=True)
class PushStep:
    """Where the result is published; the fields are those of `push_folder`, and `verify`: load it back from there."""

    repo: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    overwrite_card: bool = False
    verify: bool = False

    def options(self) -> dict[str, Any]:
        """How it is published: every field but `repo`."""
        return {name: value for name, value in vars(self).items() if name != "repo"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PushStep:
        """Makes the step of a dictionary; raises ConfigError for an unknown name."""
        if values.get("repo") is None:
            raise ConfigError("push: needs repo, namespace/name on the Hub (--push)")
        return _made(cls, values, "push")


@dataclass(frozen=True)
class Recipe:
    """The whole chain.

    Attributes:
        model: folder or Hub id of the base model.
        output: folder of the pruned model.
        revision: of the base model on the Hub.
        dtype: to load it in; `auto` is as saved.
        calibration: text to score on, as for `load_calibration`.
        calibration_column: its text column.
        evaluate: text whose perplexity is measured before pruning, after it, and after recovery.
        card_template: of the model card (jinja2).
        prune: what to prune and how; of a dictionary, what it leaves open is that of the preset `best`.
        recover: tune afterwards, if given.
        push: publish the last model, if given.
    """

    model: str
    output: str
    revision: str | None = None
    dtype: str = "auto"
    calibration: str | None = None
    calibration_column: str | None = None
    evaluate: str | None = None
    card_template: str | None = None
    prune: MoreauPrunerConfig = field(default_factory=MoreauPrunerConfig.best)
    recover: RecoverStep | None = None
    push: PushStep | None = None

    @property
    def recovered(self) -> str:
        """Folder of the tuned model."""
        named = self.recover.output if self.recover else None
        return named or f"{self.output.rstrip('/')}-recovered"

    def reads(self) -> list[str | None]:
        """What the chain reads: models and texts, each a path or a name on the Hub, or not given."""
        tuning = [self.recover.data, self.recover.teacher] if self.recover else []
        return [self.model, self.calibration, self.evaluate, self.card_template, *tuning]

    def with_full_paths(self) -> Recipe:
        """The same with `~` as the user's folder, which a shell does not see to within a file."""
        values = {key: _expanded(value) for key, value in self.to_dict().items()}
        if self.recover is not None:
            values["recover"] = {key: _expanded(value) for key, value in values["recover"].items()}
        return type(self).from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as a dictionary that YAML and JSON can hold; what is not set is left out."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        found["prune"] = _without_none(self.prune.to_dict(), deep=True)
        found["recover"] = None if self.recover is None else self.recover.to_dict()
        found["push"] = None if self.push is None else _without_none(vars(self.push))
        return _without_none(found)

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Reads a recipe's file; raises ConfigError where it cannot be one."""
        return cls.from_dict(read_recipe(path))

    def run(
        self,
        *,
        device: str | None = None,
        trust_remote_code: bool = False,
        overwrite: bool = False,
        checkpoint_dir: str | None = None,
    ) -> dict[str, Any]:
        """Runs what is not done yet, as `prune --config` does; arguments and result as in pipeline/chain.py."""
        from .chain import Means, run

        return run(self, Means(device, trust_remote_code, overwrite, checkpoint_dir))

    def to_yaml(self) -> str:
        """Returns the recipe as the file that `read_recipe` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Makes a recipe of a dictionary.

        Raises:
            ConfigError: an unknown or missing name, or a value that is not valid.
        """
        for name, flag in (("model", "MODEL"), ("output", "--output")):
            if values.get(name) is None:
                raise ConfigError(f"{name}: is missing; give it ({flag}) or a recipe that holds it (--config)")
        steps: dict[str, Any] = {"prune": MoreauPrunerConfig.best(**section(values, "prune"))}
        if values.get("recover") is not None:
            steps["recover"] = RecoverStep.from_dict(section(values, "recover"))
        if values.get("push") is not None:
            steps["push"] = PushStep.from_dict(section(values, "push"))
        return _made(cls, {**values, **steps}, "recipe")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Reads a recipe's file as a dictionary, for `Recipe.from_dict`.

    Raises:
        ConfigError: no such file, or not YAML.
    """
    if not Path(path).expanduser().is_file():
        raise ConfigError(f"{path}: no such recipe")
    found = read_yaml(path, "a recipe (`prune … --print-config` writes one)", ConfigError)
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is no recipe; `prune … --print-config` writes one")
    return found


def overridden(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe's file says, with what was given over it, section by section.

    Args:
        recipe: of the file.
        given: of the command line; a size in it replaces the file's, whichever of the four that is.
    """
    found = {**recipe, **given}
    for name in ("prune", "recover", "push"):
        if name in recipe and name in given:
            old = dict(section(recipe, name))
            if name == "prune" and any(size in given[name] for size in SIZES):
                old = {key: value for key, value in old.items() if key not in SIZES}
            found[name] = {**old, **given[name]}
    return found


def _made(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    known: dict[str, Any] = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown name '{name}'.{suggestion(name, known)}")
        wanted = str(known[name].type).split(" | ")
        if "bool" in wanted and not (isinstance(value, bool) or (value is None and "None" in wanted)):
            raise ConfigError(f"{where}: {name}: {value!r} is not true or false")
        if "str" in wanted and not (isinstance(value, str) or (value is None and "None" in wanted)):
            raise ConfigError(f"{where}: {name}: {value!r} is no text")
    return kind(**values)


def _expanded(value: Any) -> Any:
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One section of a recipe; raises ConfigError for what is no dictionary."""
    found = values.get(name) or {}
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{name}: {found!r:.40} is no dictionary of settings")
    return found


def _without_none(values: Mapping[str, Any], *, deep: bool = False) -> dict[str, Any]:
    found = {key: value for key, value in values.items() if value is not None}
    if not deep:
        return found
    return {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in found.items()}
