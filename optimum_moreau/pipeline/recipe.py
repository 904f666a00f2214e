"""`Recipe`: the whole chain in one YAML file: what to prune and how, what to tune it on, measure it on, publish it as.

What a recipe holds decides the result. How a machine gets there (device, folders to go on from, whether code that lies
beside the weights may run) is said on the command line only, and so is the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field

from ..config import SIZES, MoreauPrunerConfig
from ..config.flat import name_of
from ..config.recovery import RecoveryConfig
from ..config.settings import setting, settings, settings_of
from ..config.validation import Bos
from ..errors import CheckpointError, ConfigError
from ..files import read_yaml
from ..registry import METHODS, suggestion

T = TypeVar("T")


@settings
class RecoverStep:
    """What the pruned model is tuned on, and how; `config` holds the settings of the tuning."""

    data: str = setting(
        "records: instruction, input, output; or messages; or text; or hub:id[:config[:split[:column]]]",
        default=...,
        metavar="FILE",
    )
    output: str | None = setting("folder of the tuned model (default OUTPUT-recovered)", default=None, metavar="FOLDER")
    teacher: str | None = setting("the unpruned model, to learn from its logits as well", default=None, metavar="MODEL")
    config: RecoveryConfig = Field(default_factory=RecoveryConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns the step as one flat dictionary."""
        own = {name: value for name, value in vars(self).items() if name != "config"}
        return _without_none({**own, **self.config.to_dict()})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecoverStep:
        """Makes the step of a flat dictionary; raises ConfigError for an unknown name."""
        own = {one.name: values[one.name] for one in settings_of(cls) if one.name in values}
        if own.get("data") is None:
            raise ConfigError("recover: needs data, the records to tune on (--recover-data)")
        config = RecoveryConfig.from_dict({name: value for name, value in values.items() if name not in own})
        return _made(cls, {**own, "config": config}, "recover")


@settings
class PushStep:
    """Where the result is published, and how: the arguments of `push_folder`, and `verify`."""

    repo: str = setting("namespace/name on the Hub; made where it is missing", default=..., metavar="REPO")
    private: bool | None = setting("where the repository is made: private", default=None)
    revision: str | None = setting("branch, made where it is missing", default=None, metavar="BRANCH")
    create_pr: bool = setting("as a pull request", default=False)
    commit_message: str | None = setting("of the commit", default=None, metavar="TEXT")
    overwrite_card: bool = setting("replace the card there, instead of merging", default=False)
    verify: bool = setting(
        "download it again into an empty cache, compare, and load it in a fresh process", default=False
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PushStep:
        """Makes the step of a dictionary; raises ConfigError for an unknown name."""
        if values.get("repo") is None:
            raise ConfigError("push: needs repo, namespace/name on the Hub (--push)")
        return _made(cls, values, "push")

    def publish(self, folder: str, *, trust_remote_code: bool = False, dry_run: bool = False) -> dict[str, Any]:
        """Publishes a folder, and checks what is there if so asked, or says what would be sent; returns what was."""
        from ..saving import hub

        verify = self.verify and not dry_run
        if verify:  # before anything is sent; torch is needed for this alone
            from ..loading import code_may_run

            hub.files_to_push(folder)
            try:
                code_may_run(folder, trust_remote_code)
            except CheckpointError as error:
                raise CheckpointError(f"{folder}: cannot be verified: {error}") from error
        how = {name: value for name, value in vars(self).items() if name not in ("repo", "verify")}
        published = hub.push_folder(folder, self.repo, **how, dry_run=dry_run)
        if verify:
            hub.verify_published(published, folder, trust_remote_code=trust_remote_code)
        return {
            "repo": published.repo_id,
            "files": published.files,
            "commit_message": published.commit_message,
            "sent": not dry_run,
            "commit": published.commit,
            "changed": published.changed,
            "url": published.url,
            "verified": verify,
        }


@settings
class Recipe:
    """The whole chain; of `prune`, what a dictionary leaves open is that of the preset `best`."""

    model: str = setting("folder or Hub id of the base model", default=...)
    output: str = setting("folder of the pruned model", default=...)
    revision: str | None = setting("of the base model on the Hub", default=None)
    dtype: str = setting("to load it in; `auto` is as saved", default="auto")
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = setting(
        "to save the results in; default: as it was loaded", default=None
    )
    calibration: str | None = setting("text to score on, as for `load_calibration`", default=None)
    calibration_column: str | None = setting("its text column", default=None)
    evaluate: str | None = setting(
        "text whose perplexity is measured before pruning, after it, and after recovery", default=None
    )
    bos: Bos = setting(
        "`auto`: a segment of that text begins as the tokenizer begins a text; `paper`: without BOS", default="auto"
    )
    card_template: str | None = setting("of the model card (jinja2)", default=None)
    prune: MoreauPrunerConfig = Field(default_factory=MoreauPrunerConfig.best)
    recover: RecoverStep | None = setting("tune afterwards, if given", default=None)
    push: PushStep | None = setting("publish the last model, if given", default=None)

    @property
    def recovered(self) -> str:
        """Folder of the tuned model."""
        named = self.recover.output if self.recover else None
        return named or f"{self.output.rstrip('/')}-recovered"

    @property
    def folders(self) -> dict[str, str]:
        """Step → the folder that it makes."""
        return {"prune": self.output, "recover": self.recovered}

    def reads(self) -> list[str | None]:
        """What the chain reads: models and texts, each a path or a name on the Hub, or not given."""
        tuning = [self.recover.data, self.recover.teacher] if self.recover else []
        return [self.model, self.calibration, self.evaluate, self.card_template, *tuning]

    def with_full_paths(self) -> Recipe:
        """The recipe with `~` as the user's folder, which a shell does not see to within a file."""
        values = {key: _expanded(value) for key, value in self.to_dict().items()}
        if self.recover is not None:
            values["recover"] = {key: _expanded(value) for key, value in values["recover"].items()}
        return type(self).from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as a dictionary that YAML and JSON can hold; what is not set is left out."""
        recover, push = self.recover and self.recover.to_dict(), self.push and vars(self.push)
        return _without_none({**vars(self), "prune": self.prune.to_dict(), "recover": recover, "push": push})

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
        """Makes a recipe of a dictionary; raises ConfigError for an unknown or missing name, or a value not valid."""
        for name, flag in (("model", "MODEL"), ("output", "--output")):
            if values.get(name) is None:
                raise ConfigError(f"{name}: is missing; give it ({flag}) or a recipe that holds it (--config)")
        steps: dict[str, Any] = {"prune": MoreauPrunerConfig.best(**section(values, "prune"))}
        for name, kind in (("recover", RecoverStep), ("push", PushStep)):
            if values.get(name) is not None:
                steps[name] = kind.from_dict(section(values, name))
        return _made(cls, {**values, **steps}, "recipe")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Reads a recipe's file as a dictionary, for `Recipe.from_dict`; raises ConfigError for no file, or no YAML."""
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
            given = {**given, name: _without_chosen(given[name], old) if name == "prune" else given[name]}
            if name == "prune" and any(size in given[name] for size in SIZES):
                old = {key: value for key, value in old.items() if key not in SIZES}
            found[name] = {**old, **given[name]}
    return found


def _without_chosen(given: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, without methods that the file has chosen already: it may have settings of them."""
    chosen = {field for field in METHODS if field in old and given.get(field) == name_of(old[field])}
    return {name: value for name, value in given.items() if name not in chosen}


def _made(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    known = [one.name for one in settings_of(kind)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}: unknown name '{name}'.{suggestion(name, known)}")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _expanded(value: Any) -> Any:
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One section of a recipe; raises ConfigError for what is no dictionary."""
    found = values.get(name) or {}
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{name}: {found!r:.40} is no dictionary of settings")
    return found


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    known = ((key, value) for key, value in values.items() if value is not None)
    return {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in known}
