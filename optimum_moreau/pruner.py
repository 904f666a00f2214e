"""`MoreauPruner`: score, plan, cut, save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import MoreauPrunerConfig, config_meant
from .data.windows import CalibrationText
from .errors import ConfigError, MoreauError
from .evaluation.records import Measurement
from .files.temporary import temporary_folder
from .loading import load_config, load_model, load_tokenizer
from .models.undisturbed import undisturbed
from .planning import PruningPlan
from .recovery import MoreauRecovery, RecoveryConfig, RecoverySummary
from .run.cutting import PruningResult, applied, pruned
from .run.made import ElementScores
from .run.measuring import EvaluationText, measured_perplexity
from .run.run import Run
from .run.saving import cast, checked, record, tokens_to_verify, write_model
from .run.scoring import planned, scored_elements
from .run.warnings import warn_of_earlier, warn_of_other_text
from .saving import check_apart, save_folder
from .saving.hub import Published, push_folder
from .saving.records import Records
from .saving.verification import Verification, verify
from .scoring.scores import UnitScores


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
        self.tokenizer, self.revision, self.trust_remote_code = tokenizer, revision, trust_remote_code
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
        scores: UnitScores | None = None,
        checkpoint_dir: str | Path | None = None,
    ) -> tuple[PruningPlan, UnitScores]:
        """Scores the model's units and decides which stay; the model is not changed.

        Args:
            model: the model to score.
            calibration: text, file, dataset or tokens, as for `load_calibration`; by default a small text that ships.
            calibration_column: text column of a file of records.
            scores: of this model, made before by the same criterion on the same text: nothing is scored again.
            checkpoint_dir: folder that keeps Moreau steps, and of `prune` adjusted layers, to go on after a kill.

        Returns:
            The plan, and the scores it was made from.

        Raises:
            MoreauError: of the kind that names the mistake (errors.py).
        """
        given: Any = {"calibration_column": calibration_column, "scores": scores, "checkpoint_dir": checkpoint_dir}
        made = planned(self.prepare(model, calibration, **given, cut=False))
        return made.plan, made.scores

    @undisturbed()
    def prune(
        self,
        model: PreTrainedModel,
        calibration: Any = None,
        *,
        calibration_column: str | None = None,
        scores: UnitScores | ElementScores | None = None,
        checkpoint_dir: str | Path | None = None,
    ) -> PruningResult:
        """In place: removes the least important units, or masks single weights; arguments and errors as for `plan`.

        On an error the model is unchanged. A model that was pruned before is pruned further, with a warning. `scores`
        are what `plan` returned, or, for a mask, `element_scores`.
        """
        given: Any = {"calibration_column": calibration_column, "scores": scores, "checkpoint_dir": checkpoint_dir}
        return self.prune_prepared(self.prepare(model, calibration, **given))

    @undisturbed()
    def prepare(
        self,
        model: PreTrainedModel,
        calibration: Any = None,
        *,
        calibration_column: str | None = None,
        scores: UnitScores | ElementScores | None = None,
        checkpoint_dir: str | Path | None = None,
        cut: bool = True,
        check: Any = None,
    ) -> Run:
        """Checks, and reads the text, before anything takes long; arguments and errors as for `prune`.

        It returns what `prune_prepared` takes. With `cut=False` the model is only to be planned for. `check` may refuse
        more, of the shape that sizes are counted on and the resolved config, before the text is read.
        """
        if self.config.masks and not cut:
            raise ConfigError(f"pattern '{self.config.mask.pattern}': a mask has no plan of units; use prune")
        text = CalibrationText.of(calibration, self.tokenizer, calibration_column)
        known: Any = {"made": scores, "checkpoint": checkpoint_dir, "revision": self.revision}
        run = Run.prepare(model, self.config, text, cut=cut, check=check, **known)
        self._tokens = run.tokens
        if cut:
            warn_of_earlier(run, self._result if self._model is model else None)
        return run

    @undisturbed()
    def prune_prepared(self, run: Run) -> PruningResult:
        """In place: prunes what `prepare` checked and read; errors as for `prune`."""
        return self._done(run, pruned(run))

    @undisturbed()
    def element_scores(
        self, model: PreTrainedModel, calibration: Any = None, *, calibration_column: str | None = None
    ) -> ElementScores:
        """Scores every weight that a mask may take; arguments and errors as for `plan`.

        For several masks by the same scores: what it returns is what `prune(…, scores=…)` takes. It has no values where
        a criterion scores each layer as the masked ones before it leave it.
        """
        return scored_elements(self.prepare(model, calibration, calibration_column=calibration_column))

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
            PlanError, ExportError: the plan is for another model; no stock class holds the shapes.
            DataError: the plan is to be compensated for, and no text is given.
        """
        self._tokens, text = None, CalibrationText.of(calibration, self.tokenizer, calibration_column)
        run = Run.to_apply(model, plan, text, otherwise=self._of_bare_plans, export=export)
        warn_of_earlier(run, self._result if self._model is model else None)
        if run.fitted is not None:
            warn_of_other_text(text, plan)
        return self._done(run, applied(run, plan))

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
        model, recovery = self._recovering("recover", config)
        recovery.train(model, data, teacher=teacher, work_dir=work_dir, training_arguments=training_arguments)
        return self._recovered(recovery)

    @undisturbed()
    def merge_adapter(self, folder: str | Path) -> RecoverySummary:
        """In place: merges a LoRA adapter that was trained elsewhere on the pruned model, as peft saved it.

        Raises:
            CheckpointError: no adapter there, or one for another model.
            MoreauError: nothing was pruned yet.
        """
        model, recovery = self._recovering("merge_adapter")
        recovery.merge(model, folder)
        return self._recovered(recovery)

    @undisturbed()
    def evaluate(self, model: Any = None, text: Any = None, *, column: str | None = None, **settings: Any) -> float:
        """Measures the perplexity on a text, for the record and the card.

        Args:
            model: before `prune`, the model to be pruned; without one, `evaluate(text)`, the pruned one is measured.
            text: a file, `hub:` name, strings or a dataset.
            column: text column of records.
            **settings: `sequence_length`, `batch_size`, `max_segments` and `bos` of `perplexity`.

        Raises:
            MoreauError: neither a model nor a pruned one; no tokenizer; or of the text (errors.py).
        """
        if text is None:
            model, text = None, model
        measured = self._model if model is None else model
        if not isinstance(measured, PreTrainedModel) or self.tokenizer is None or text is None:
            raise MoreauError("evaluate: needs a transformers model (or prune one first), a text and a tokenizer")
        stage = "before" if measured is model else "pruned" if self._recovery is None else "recovered"
        text = EvaluationText.of(text, self.tokenizer, column)
        self.measurements.append(measured_perplexity(measured, text, stage, **settings))
        return self.measurements[-1].value

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
            MoreauError: nothing was pruned yet; or the folder is, holds or lies in that of the base, or the template's.
        """
        model, made = self._pruned("save_pretrained")
        check_apart([save_directory], [model.config.name_or_path, card_template])
        with save_folder(save_directory, overwrite=overwrite) as folder:
            trust = self.trust_remote_code
            words = write_model(model, self.tokenizer, folder, self.revision, trust_remote_code=trust)
            tokens = tokens_to_verify(model) if self._tokens is None else self._tokens
            verification = verify(model, folder, tokens, trust_remote_code=trust)
            result = checked(made, words, verification, inputs)
            record(result, self._recovery, self.measurements).save(folder, card_template)
        return verification

    def cast(self, dtype: str | None) -> None:
        """In place: the pruned model in `float32`, `bfloat16` or `float16`, to be measured and saved so.

        Raises:
            MoreauError: nothing was pruned yet; it is another dtype; or the model is offloaded.
        """
        self._result = cast(*self._pruned("cast"), dtype)

    def push_to_hub(self, repo_id: str, *, save_directory: str | Path | None = None, **options: Any) -> Published:
        """Publishes the pruned model: saves it, verified, and pushes the folder in one commit.

        Args:
            repo_id: `namespace/name` on the Hub.
            save_directory: folder that `save_pretrained` wrote; default: a temporary one is written.
            **options: of `push_folder`, as `private`, `revision`, `commit_message`, `token` and `dry_run`.

        Raises:
            MoreauError: nothing was pruned yet; of the save; or a HubError, which says what the Hub refused.
        """
        with temporary_folder("push") as work:
            if save_directory is None:
                self.save_pretrained(save_directory := work / "model")
            return push_folder(save_directory, repo_id, **options)

    def _recovering(self, what: str, config: RecoveryConfig | None = None) -> tuple[PreTrainedModel, MoreauRecovery]:
        """The pruned model, and what tunes it: zeros of a mask stay zero."""
        model, result = self._pruned(what)
        masked = result.sparsity is not None
        return model, MoreauRecovery(config or RecoveryConfig(), self.tokenizer, keep_zeros=masked)

    def _pruned(self, what: str) -> tuple[PreTrainedModel, PruningResult]:
        if self._model is None or self._result is None:
            raise MoreauError(f"{what}: nothing was pruned yet; call prune, apply or from_pretrained first")
        return self._model, self._result

    def _recovered(self, recovery: MoreauRecovery) -> RecoverySummary:
        """Keeps a recovery that went well; the one before it, if any, stays on record."""
        assert recovery.summary is not None
        if self._recovery is not None and self._recovery.summary is not None:
            recovery.summary = replace(recovery.summary, earlier=self._recovery.summary.to_dict())
        self._recovery = recovery
        return recovery.summary

    def _done(self, run: Run, result: PruningResult) -> PruningResult:
        self._recovery, self._model, self._result = None, run.model, result
        return result
