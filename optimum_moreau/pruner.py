"""`MoreauPruner`: score, plan, cut, save."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .config import MoreauPrunerConfig
from .data.windows import CalibrationSet
from .errors import ConfigError, MoreauError
from .evaluation.records import Measurement
from .files.temporary import temporary_folder
from .loading import load_config, load_model, load_tokenizer
from .models.undisturbed import undisturbed
from .planning import PruningPlan
from .recovery import MoreauRecovery, RecoveryConfig, RecoverySummary
from .run.applying import check_applies
from .run.configs import config_meant, config_to_apply
from .run.cutting import PruningResult, cut
from .run.masking import mask, prepared_mask
from .run.measuring import measured_perplexity
from .run.saving import checked, record, tokens_to_verify, write_model
from .run.scoring import planned, prepared, scored
from .run.text import GivenText, check_windows_fit
from .run.warnings import mask_on_record, warn_of_mask, warn_of_other_text, warn_of_pruned
from .saving import check_apart, save_folder
from .saving.hub import Published, push_folder
from .saving.records import Records
from .saving.verification import Verification, verify
from .scoring.scores import UnitScores
from .surgery.apply import check_prunable


class MoreauPruner:
    """Prunes a causal language model of the LLaMA family in place, and saves what it made.

    Args:
        config: what to prune and how: a config; or a criterion's name, or a dictionary of fields, over the preset
            `best`; default `MoreauPrunerConfig.best()`.
        tokenizer: the model's tokenizer; needed for text, and saved with the model.
        revision: of the base model, for the record.
        trust_remote_code: the model was loaded so: the process that verifies what is saved may run its code too.
        **settings: of the config, in its place or over its dictionary: `MoreauPruner(pruning_ratio=0.2)`.

    Raises:
        ConfigError: the config is of another type, or a field of it is not valid.
    """

    def __init__(
        self,
        config: MoreauPrunerConfig | str | Mapping[str, Any] | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> None:
        self.config = config_meant(config, settings)
        # without a config nobody asked to compensate for a plan by hand
        self._of_bare_plans = MoreauPrunerConfig() if config is None and not settings else self.config
        self.tokenizer = tokenizer
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self._model: PreTrainedModel | None = None
        self._result: PruningResult | None = None
        self._recovery: MoreauRecovery | None = None
        self.measurements: list[Measurement] = []
        self._tokens: Tensor | None = None  # that a saved checkpoint is verified on

    @undisturbed()
    def plan(
        self,
        model: PreTrainedModel,
        calibration: Any = None,
        *,
        calibration_column: str | None = None,
        checkpoint_dir: str | Path | None = None,
    ) -> tuple[PruningPlan, UnitScores]:
        """Scores the model's units and decides which stay; the model is not changed.

        Args:
            model: the model to score.
            calibration: text, file, dataset or tokens, as for `load_calibration`; by default a small text that ships.
            calibration_column: text column of a file of records.
            checkpoint_dir: folder that keeps every Moreau step; a run that was killed goes on from it to the same plan.

        Returns:
            The plan, and the scores it was made from.

        Raises:
            MoreauError: of the kind that names the mistake (errors.py).
        """
        if self.config.masks:
            raise ConfigError(f"pattern '{self.config.mask.pattern}': a mask has no plan of units; use prune")
        job = prepared(model, self.config, GivenText(self.tokenizer, calibration, calibration_column))
        self._tokens = job.tokens
        folder = None if checkpoint_dir is None else Path(checkpoint_dir).expanduser()
        scores = scored(job, revision=self.revision, checkpoint=folder)
        return planned(job, scores), scores

    @undisturbed()
    def prune(
        self,
        model: PreTrainedModel,
        calibration: Any = None,
        *,
        calibration_column: str | None = None,
        checkpoint_dir: str | Path | None = None,
    ) -> PruningResult:
        """In place: removes the least important units, or masks single weights; arguments and errors as for `plan`.

        On an error the model is unchanged. A model that was pruned before is pruned further, with a warning.
        """
        start = time.perf_counter()
        if self.config.masks:
            if checkpoint_dir is not None:
                raise ConfigError("checkpoint_dir: masks are made without steps to keep; leave it out")
            warn_of_mask(self._mask_of(model), None)
            job = prepared_mask(model, self.config, GivenText(self.tokenizer, calibration, calibration_column))
            self._tokens = job.tokens
            return self._done(model, mask(job, self.revision, start))
        given = GivenText(self.tokenizer, calibration, calibration_column).kept()
        check_prunable(model)
        warn_of_pruned(model)
        check_windows_fit(model.config, self.config)
        text = given.fitted(model.config, self.config)
        source = given.source if text is None else given.named().source
        plan, scores = self.plan(model, source, calibration_column=calibration_column, checkpoint_dir=checkpoint_dir)
        warn_of_mask(self._mask_of(model), self.config.compensation)
        return self._done(model, cut(model, plan, scores, text, start))

    @undisturbed()
    def apply(
        self,
        model: PreTrainedModel,
        plan: PruningPlan,
        calibration: Any = None,
        *,
        calibration_column: str | None = None,
        export: str | None = None,
    ) -> PruningResult:
        """In place: applies a plan made before to a fresh copy of its base model.

        Args:
            model: the base model.
            plan: the plan; where it carries no config (written by hand), the one given to this pruner is recorded, or
                `MoreauPrunerConfig()`.
            calibration: text that its compensation reads, if it has one; as for `plan`, but not by default.
            calibration_column: text column of a file of records.
            export: `auto`, `stock` or `custom`, instead of the plan's own.

        Raises:
            PlanError: the plan is for another model.
            ExportError: no stock class holds the shapes.
            DataError: the plan is to be compensated for, and no text is given.
        """
        start = time.perf_counter()
        check_prunable(model)
        config = config_to_apply(plan, lambda: self._of_bare_plans.resolve(model.config), export)
        self._tokens = None
        given = GivenText(self.tokenizer, calibration, calibration_column).kept()
        check_applies(model, plan, config, given)
        warn_of_pruned(model)
        text = given.fitted(model.config, config)
        if text is not None:
            warn_of_other_text(given, model.config, config, plan)
        warn_of_mask(self._mask_of(model), None if self.config.masks else config.compensation)
        return self._done(model, cut(model, replace(plan, config=config.to_dict()), None, text, start))

    @classmethod
    @undisturbed()
    def from_pretrained(
        cls, folder: str | Path, *, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False
    ) -> MoreauPruner:
        """Loads what `save_pretrained` wrote, to go on with it: recover, evaluate, save, push.

        Args:
            folder: of a pruned model.
            dtype: `auto` (as saved), `float32`, `bfloat16` or `float16`.
            device: torch device, or `auto`; default: cuda where there is one.
            trust_remote_code: run modeling code that lies beside the weights.

        Raises:
            CheckpointError: it is not such a folder.
        """
        load_config(str(folder), trust_remote_code=trust_remote_code)  # whether there is a model at all
        found = Records.load(Path(folder).expanduser())
        tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
        config, revision = MoreauPrunerConfig.from_dict(found.plan.config), found.plan.revision
        pruner = cls(config, tokenizer=tokenizer, revision=revision, trust_remote_code=trust_remote_code)
        pruner._model = load_model(str(folder), dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        pruner._result = PruningResult(found.summary, found.plan, found.scores, found.sparsity)
        pruner._recovery, pruner.measurements = found.recovery, list(found.measurements)
        return pruner

    @undisturbed()
    def recover(
        self,
        data: Any,
        config: RecoveryConfig | None = None,
        *,
        teacher: PreTrainedModel | None = None,
        work_dir: str | Path | None = None,
        training_arguments: Mapping[str, Any] | None = None,
    ) -> RecoverySummary:
        """In place: tunes the pruned model with LoRA and merges the adapter; arguments as for `MoreauRecovery.train`.

        Raises:
            MoreauError: nothing was pruned yet, or of the kind that names the mistake (errors.py).
        """
        model = self._pruned("recover")
        recovery = MoreauRecovery(config or RecoveryConfig(), self.tokenizer, self._is_masked)
        recovery.train(model, data, teacher=teacher, work_dir=work_dir, training_arguments=training_arguments)
        return self._recovered(recovery)

    @undisturbed()
    def merge_adapter(self, folder: str | Path) -> RecoverySummary:
        """In place: merges a LoRA adapter that was trained elsewhere on the pruned model, as peft saved it.

        Raises:
            CheckpointError: no adapter there, or one for another model.
            MoreauError: nothing was pruned yet.
        """
        recovery = MoreauRecovery(tokenizer=self.tokenizer, keep_zeros=self._is_masked)
        recovery.merge(self._pruned("merge_adapter"), folder)
        return self._recovered(recovery)

    @undisturbed()
    def evaluate(
        self, text: Any, model: PreTrainedModel | None = None, *, sequence_length: int = 128, **settings: Any
    ) -> float:
        """Measures the perplexity on a text, for the record and the card; other settings as for `perplexity`.

        Args:
            text: a file, `hub:` name, strings or a dataset.
            model: before `prune`: the model to be pruned; otherwise the pruned one is measured.
            sequence_length: tokens per segment.
            **settings: as for `perplexity`.

        Raises:
            MoreauError: neither a model nor a pruned one; no tokenizer; or of the text (errors.py).
        """
        measured = model or self._model
        if measured is None or self.tokenizer is None:
            raise MoreauError("evaluate: needs a model (or prune one first) and a tokenizer")
        stage = "before" if model is not None else "pruned" if self._recovery is None else "recovered"
        found = measured_perplexity(measured, self.tokenizer, text, stage, sequence_length=sequence_length, **settings)
        self.measurements.append(found)
        return found.value

    @undisturbed()
    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        overwrite: bool = False,
        card_template: str | Path | None = None,
        inputs: str = "",
    ) -> Verification:
        """Writes the pruned model, tokenizer, plan, scores, config, summary and card; verified by a reload.

        All or nothing: the files are written beside the target and verified there; then the folder takes its place.

        Args:
            save_directory: folder to write.
            overwrite: replace a folder that holds a model and nothing else.
            card_template: of the card, instead of the one that ships (jinja2).
            inputs: hash of what the model was made from, by which a chain recognises its work; for the summary.

        Raises:
            CheckpointError: the folder may not or cannot be written, or does not load back as it was.
            ConfigError: it is, holds or lies in the folder that the model was loaded from, or holds the template.
            MoreauError: nothing was pruned yet.
        """
        if self._model is None or self._result is None:
            raise MoreauError("save_pretrained: nothing was pruned yet; call prune or apply first")
        check_apart([save_directory], [self._model.config.name_or_path, card_template])
        with save_folder(save_directory, overwrite=overwrite) as folder:
            save = {"trust_remote_code": self.trust_remote_code}
            words = write_model(self._model, self.tokenizer, folder, self.revision, **save)
            tokens = tokens_to_verify(self._model) if self._tokens is None else self._tokens
            verification = verify(self._model, folder, tokens, **save)
            result = checked(self._result, words, verification, inputs)
            record(result, self._recovery, self.measurements).save(folder, card_template)
        return verification

    def push_to_hub(self, repo_id: str, *, save_directory: str | Path | None = None, **options: Any) -> Published:
        """Publishes the pruned model: saves it, verified, and pushes the folder in one commit.

        Args:
            repo_id: `namespace/name` on the Hub.
            save_directory: folder that `save_pretrained` wrote; default: a temporary one is written.
            **options: of `push_folder`, as `private`, `revision`, `commit_message`, `token` and `dry_run`.

        Raises:
            MoreauError: nothing was pruned yet; of the save; or a HubError, which says what the Hub refused.
        """
        if save_directory is not None:
            return push_folder(save_directory, repo_id, **options)
        with temporary_folder("push") as work:
            self.save_pretrained(work / "model")
            return push_folder(work / "model", repo_id, **options)

    def _pruned(self, what: str) -> PreTrainedModel:
        if self._model is None:
            raise MoreauError(f"{what}: nothing was pruned yet; call prune, apply or from_pretrained first")
        return self._model

    @property
    def _is_masked(self) -> bool:
        return self._result is not None and self._result.sparsity is not None

    def _mask_of(self, model: PreTrainedModel) -> str | None:
        """The pattern of the mask that a model has by the record of its folder, or of this pruner; `None`: none."""
        if self._model is model and self._result is not None and self._result.sparsity is not None:
            return self._result.sparsity.pattern
        return mask_on_record(model)

    def _recovered(self, recovery: MoreauRecovery) -> RecoverySummary:
        """Keeps a recovery that went well; the one before it, if any, stays on record."""
        assert recovery.summary is not None
        if self._recovery is not None and self._recovery.summary is not None:
            recovery.summary = replace(recovery.summary, earlier=self._recovery.summary.to_dict())
        self._recovery = recovery
        return recovery.summary

    def read_calibration(
        self, model_config: PretrainedConfig, calibration: Any = None, *, calibration_column: str | None = None
    ) -> CalibrationSet | None:
        """Reads the calibration windows, as `plan` does; `None` where the criterion reads none.

        Args:
            model_config: of the model to be pruned.
            calibration: as for `plan`.
            calibration_column: text column of a file of records.

        Raises:
            DataError: the text cannot serve.
        """
        return GivenText(self.tokenizer, calibration, calibration_column).scored(model_config, self.config)

    def _done(self, model: PreTrainedModel, result: PruningResult) -> PruningResult:
        self._recovery, self._model, self._result = None, model, result
        return result
