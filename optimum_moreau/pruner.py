"""`MoreauPruner`: score, plan, cut, save."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .compensation import check_compensation, make_counted_plan, shape_to_count
from .config import SIZES, MoreauPrunerConfig
from .config.quantities import words_for_bytes
from .config.recovery import RecoveryConfig
from .data.sources import DEFAULT_TEXT, content_hash, model_reference, source_name
from .data.windows import CalibrationSet, check_positions, load_calibration
from .errors import CheckpointError, ConfigError, DataError, MoreauError, PlanError, first_line
from .estimate import estimate_compensation, estimate_scoring, skeleton_of, too_little_memory
from .evaluation import perplexity
from .evaluation.records import Measurement
from .files.temporary import temporary_folder
from .loading import drop_foreign_code, load_config, load_model, load_tokenizer
from .masks import SPARSITY_NAME, SparsitySummary
from .models.buffers import as_reloaded
from .models.memory import peak_memory_bytes
from .models.placement import input_device, prepare_offloaded, state_to_save
from .models.undisturbed import undisturbed
from .models.units import ModelShape, model_shape
from .planning import PruningPlan, check_derived, expected_plan, fingerprint
from .recovery import MoreauRecovery, RecoverySummary
from .registry import COMPENSATIONS
from .run.cutting import PruningResult, cut, mask, out_of_memory, score_in_rounds, warn_of_pruned
from .saving import Verification, carry_over, check_apart, save_folder, spell_for_older_readers, verify
from .saving.hub import Published, push_folder
from .saving.records import Records
from .saving.summary import versions
from .scoring.scores import UnitScores, needs_text
from .surgery.apply import check_prunable
from .surgery.export import check_reachable, with_export

logger = logging.getLogger(__name__)

# Settings that change no score: the steps of a run serve another that differs in these.
_AFTER_SCORING = {
    *SIZES,
    "compensation",
    "compensation_samples",
    "ridge",
    "intercept",
    "budget",
    "protect",
    "protect_outliers",
    "aggregation",
    "multiple_of",
    "uniform",
    "fold_norms",
    "export",
}


class MoreauPruner:
    """Prunes a causal language model of the LLaMA family in place, and saves what it made.

    Args:
        config: what to prune and how: a config; or a criterion's name, or a dictionary of fields, over the preset
            `best`; default `MoreauPrunerConfig.best()`.
        tokenizer: the model's tokenizer; needed for text, and saved with the model.
        revision: of the base model, for the record.
        trust_remote_code: the model was loaded so: the process that verifies what is saved may run its code too.

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
    ) -> None:
        self.config = _config_of(config)
        # without a config nobody asked to compensate for a plan by hand
        self._of_bare_plans = MoreauPrunerConfig() if config is None else self.config
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
            raise ConfigError(f"pattern '{self.config.pattern}': a mask has no plan of units; use prune")
        check_prunable(model)
        prepare_offloaded(model)
        shape = model_shape(model)
        config = self.config.resolve(model.config)
        self._check_positions(model.config, config)
        check_compensation(model, shape, config)
        check_reachable(model.config, shape, shape_to_count(model, shape, config), config)
        if isinstance(calibration, Iterator):
            calibration = list(calibration)  # it is read twice
        found = self.read_calibration(model.config, calibration, calibration_column=calibration_column)
        self._tokens = None if found is None else found.tokens
        text = None
        if config.rounds > 1:
            if calibration is None and found is not None:
                calibration = DEFAULT_TEXT
            text = self._compensation_text(model.config, config, calibration, calibration_column)
        origin = {
            "base_model": model_reference(model.config.name_or_path),
            "revision": self.revision,
            "fingerprint": fingerprint(model),
            "config": config.to_dict(),
            "calibration": found.to_dict() if found else {},
        }
        self._say_estimate(model, shape, config)
        folder = None if checkpoint_dir is None else Path(checkpoint_dir).expanduser()
        decides = {
            "config": {key: value for key, value in config.to_dict().items() if key not in _AFTER_SCORING},
            "dtype": str(model.dtype),
            "device": input_device(model).type,
            "versions": versions(),
        }
        run = hashlib.sha256(json.dumps(origin | decides, sort_keys=True).encode()).hexdigest()
        advice = lambda: too_little_memory(skeleton_of(model), shape, config, input_device(model).type)  # noqa: E731
        with as_reloaded(model), out_of_memory(advice):
            found_scores = score_in_rounds(model, shape, self._tokens, text, config, checkpoint=folder, run=run)
        logger.info("scored; peak memory %s, Python and its libraries included", words_for_bytes(peak_memory_bytes()))
        scores = replace(found_scores, origin=origin)
        plan = with_export(make_counted_plan(model, shape, scores, config), model.config, shape)
        return plan, scores

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
            self._warn_of_mask(model, "none")
            return self._done(model, self._mask(model, calibration, calibration_column, start))
        if isinstance(calibration, Iterator):
            calibration = list(calibration)  # it is read twice
        check_prunable(model)
        warn_of_pruned(model)
        self._check_positions(model.config, self.config)
        text = self._compensation_text(model.config, self.config, calibration, calibration_column)
        if calibration is None and text is not None:
            calibration = DEFAULT_TEXT  # what it is was said once
        plan, scores = self.plan(
            model, calibration, calibration_column=calibration_column, checkpoint_dir=checkpoint_dir
        )
        self._warn_of_mask(model, self.config.compensation)
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
        config = MoreauPrunerConfig.from_dict(plan.config) if plan.config else self._of_bare_plans.resolve(model.config)
        if config.masks:
            raise PlanError(f"the plan is of a mask ({config.pattern}), which it does not hold; prune the base again")
        if export is not None:
            config = replace(config, export=export)
        self._tokens = None
        if config.compensation != "none" and calibration is None:
            source = plan.calibration.get("source", "no text on record")
            raise DataError(
                f"the plan is to be compensated for ('{config.compensation}'), which reads text: give the calibration"
                f" (--calibration; that of the scores was {source})"
            )
        if isinstance(calibration, Iterator):
            calibration = list(calibration)  # it is read twice
        shape = model_shape(model)
        plan.check_matches(model, shape)
        check_derived(shape, plan, config)
        if config.compensation != "none":
            check_positions(model.config, config.sequence_length)
        warn_of_pruned(model)
        text = self._compensation_text(model.config, config, calibration, calibration_column)
        if text is not None:
            self._warn_of_other_text(model.config, config, plan, calibration, calibration_column)
        self._warn_of_mask(model, config.compensation)
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
        config = MoreauPrunerConfig.from_dict(found.plan.config)
        revision = found.plan.revision
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
        if self._model is None:
            raise MoreauError("recover: nothing was pruned yet; call prune, apply or from_pretrained first")
        recovery = MoreauRecovery(config or RecoveryConfig(), self.tokenizer, self._is_masked)
        recovery.train(self._model, data, teacher=teacher, work_dir=work_dir, training_arguments=training_arguments)
        return self._recovered(recovery)

    @undisturbed()
    def merge_adapter(self, folder: str | Path) -> RecoverySummary:
        """In place: merges a LoRA adapter that was trained elsewhere on the pruned model, as peft saved it.

        Raises:
            CheckpointError: no adapter there, or one for another model.
            MoreauError: nothing was pruned yet.
        """
        if self._model is None:
            raise MoreauError("merge_adapter: nothing was pruned yet; call prune, apply or from_pretrained first")
        recovery = MoreauRecovery(tokenizer=self.tokenizer, keep_zeros=self._is_masked)
        recovery.merge(self._model, folder)
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
        found = perplexity(measured, self.tokenizer, text, sequence_length=sequence_length, **settings).perplexity
        stage = "before" if model is not None else "pruned" if self._recovery is None else "recovered"
        protocol = f"{sequence_length}-token segments"
        key = content_hash(text) if isinstance(text, (str, Path)) else ""
        self.measurements.append(Measurement(stage, source_name(text), "perplexity", protocol, found, key))
        return found

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
            self._model.save_pretrained(folder, state_dict=state_to_save(self._model))
            if self.tokenizer is not None:
                _save_tokenizer(self.tokenizer, folder)
            name = self._model.config.name_or_path
            carry_over(folder, name, tokenizer=getattr(self.tokenizer, "name_or_path", None), revision=self.revision)
            words = spell_for_older_readers(folder)
            drop_foreign_code(folder, trust_remote_code=self.trust_remote_code)
            tokens = self._verification_tokens()
            verification = verify(self._model, folder, tokens, trust_remote_code=self.trust_remote_code)
            difference = verification.max_abs_difference
            result = self._result
            adjustments = tuple(dict.fromkeys((*result.summary.adjustments, *words)))
            summary = replace(
                result.summary, adjustments=adjustments, verified_max_abs_difference=difference, inputs=inputs
            )
            measured = tuple(self.measurements)
            records = Records(summary, result.plan, result.scores, self._recovery, measured, result.sparsity)
            records.save(folder, card_template)
        return verification

    def push_to_hub(self, repo_id: str, *, save_directory: str | Path | None = None, **options: Any) -> Published:
        """Publishes the pruned model: saves it, verified, and pushes the folder in one commit.

        Args:
            repo_id: `namespace/name` on the Hub.
            save_directory: folder that `save_pretrained` wrote; default: a temporary one is written.
            **options: `private`, `revision`, `create_pr`, `commit_message`, `token`, `overwrite_card` of `push_folder`.

        Raises:
            HubError: says what the Hub refused, and what to do.
            MoreauError: nothing was pruned yet, or of the save (errors.py).
        """
        if save_directory is not None:
            return push_folder(save_directory, repo_id, **options)
        with temporary_folder("push") as work:
            self.save_pretrained(work / "model")
            return push_folder(work / "model", repo_id, **options)

    @property
    def _is_masked(self) -> bool:
        return self._result is not None and self._result.sparsity is not None

    def _mask_of(self, model: PreTrainedModel) -> str | None:
        """The pattern of the mask that a model has by the record of its folder, or of this pruner; `None`: none."""
        if self._model is model and self._result is not None and self._result.sparsity is not None:
            return self._result.sparsity.pattern
        if not model.config.name_or_path:
            return None
        try:
            return SparsitySummary.load(Path(model.config.name_or_path).expanduser() / SPARSITY_NAME).pattern
        except CheckpointError:  # it has no such record
            return None

    def _warn_of_mask(self, model: PreTrainedModel, compensation: str) -> None:
        if not (pattern := self._mask_of(model)):
            return
        if self.config.masks:
            logger.warning(
                "the model was masked (%s) already: weights that are zero stay so; mask its dense base instead",
                pattern,
            )
            return
        zeros = "its zeros stay in the weights that remain"
        if not COMPENSATIONS.get(compensation).keeps_zeros:
            zeros = f"'{compensation}' fills those of o_proj and down_proj; its other zeros stay in what remains"
        logger.warning(
            "the model was masked (%s): %s, but the pattern need not hold any more, and the result keeps no record of"
            " it",
            pattern,
            zeros,
        )

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
        if not needs_text(self.config):
            return None
        samples = self.config.calibration_samples
        return self._windows(model_config, self.config, samples, calibration, calibration_column)

    def _windows(
        self,
        model_config: PretrainedConfig,
        config: MoreauPrunerConfig,
        samples: int,
        calibration: Any,
        column: str | None,
    ) -> CalibrationSet:
        return load_calibration(
            calibration,
            self.tokenizer,
            samples=samples,
            sequence_length=config.sequence_length,
            seed=config.seed,
            column=column,
            vocab_size=model_config.vocab_size,
        )

    def _check_positions(self, model_config: PretrainedConfig, config: MoreauPrunerConfig) -> None:
        """Where text is read, its windows must not be longer than the model's positions."""
        if needs_text(config) or config.compensation != "none":
            check_positions(model_config, config.sequence_length)

    def _verification_tokens(self) -> Tensor:
        """Calibration tokens, or, where none were read, random ids: a reload must agree on any."""
        assert self._model is not None
        if self._tokens is not None:
            return self._tokens
        generator = torch.Generator("cpu").manual_seed(0)
        return torch.randint(
            self._model.config.vocab_size, (2, 64), generator=generator, dtype=torch.int64, device="cpu"
        )

    def _compensation_text(
        self, model_config: PretrainedConfig, config: MoreauPrunerConfig, calibration: Any, column: str | None = None
    ) -> CalibrationSet | None:
        if config.compensation == "none":
            return None
        return self._windows(model_config, config, config.compensation_samples, calibration, column)

    def _warn_of_other_text(
        self,
        model_config: PretrainedConfig,
        config: MoreauPrunerConfig,
        plan: PruningPlan,
        calibration: Any,
        column: Any,
    ) -> None:
        """Where the windows that were scored on, drawn again, are others; of a plan without text nothing is known."""
        drawn = plan.calibration
        if not {"samples", "sequence_length", "seed", "sha256"} <= set(drawn):
            return
        as_scored = replace(config, sequence_length=drawn["sequence_length"], seed=drawn["seed"])
        try:
            digest = self._windows(model_config, as_scored, drawn["samples"], calibration, column).sha256
        except DataError:  # too short for those windows
            digest = ""
        if digest != drawn["sha256"]:
            logger.warning(
                "compensation reads another text than the plan was scored on (%s); the summary records both",
                drawn.get("source", "no name"),
            )

    def _mask(
        self, model: PreTrainedModel, calibration: Any, calibration_column: str | None, start: float
    ) -> PruningResult:
        check_prunable(model)
        prepare_offloaded(model)
        config = self.config.resolve(model.config)
        self._check_positions(model.config, config)
        found = self.read_calibration(model.config, calibration, calibration_column=calibration_column)
        self._tokens = None if found is None else found.tokens
        self._say_estimate(model, model_shape(model), config)
        return mask(model, found, config, self.revision, start)

    def _done(self, model: PreTrainedModel, result: PruningResult) -> PruningResult:
        self._recovery = None
        self._model, self._result = model, result
        return result

    def _say_estimate(self, model: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> None:
        if logger.isEnabledFor(logging.INFO):
            skeleton, device = skeleton_of(model), input_device(model).type
            lines = estimate_scoring(skeleton, shape, config, device).lines
            logger.info("%s: %s", config.decided_by, "; ".join(" ".join(line.split()) for line in lines))
            if config.compensation != "none":
                expected = expected_plan(shape_to_count(model, shape, config), config)
                after = estimate_compensation(skeleton, shape, expected, config, device)
                assert after is not None  # there is one
                logger.info("%s", "; ".join(" ".join(line.split()) for line in after.lines))


def _config_of(config: Any) -> MoreauPrunerConfig:
    """The config that is meant: one, a criterion's name, fields of one, or `None`."""
    if isinstance(config, MoreauPrunerConfig):
        return config
    if isinstance(config, str):
        return MoreauPrunerConfig.best(criterion=config)
    if config is None or isinstance(config, Mapping):
        return MoreauPrunerConfig.best(**{str(field): value for field, value in (config or {}).items()})
    raise ConfigError(
        f"MoreauPruner: {config!r:.40} is no config; pass a MoreauPrunerConfig, a criterion's name, or a dictionary of"
        " its fields"
    )


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise CheckpointError(f"the tokenizer cannot be written ({first_line(error)})") from error  # of tokenizers' own
