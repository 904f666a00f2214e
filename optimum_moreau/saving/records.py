"""What lies beside the weights of a pruned model: plan, config, scores, summary, measurements, speed, adapter, card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import MoreauPrunerConfig
from ..errors import CheckpointError
from ..evaluation.records import EVALUATION_NAME, Measurement, load_measurements, save_measurements
from ..evaluation.speed import SPEED_NAME, Speed
from ..masks.summary import SPARSITY_NAME, SparsitySummary
from ..planning import PLAN_NAME, PruningPlan
from ..recovery import MoreauRecovery
from ..scoring.scores import SCORES_NAME, UnitScores, find_scores
from .card import write_card
from .saving import add_files
from .summary import SUMMARY_NAME, PruningSummary


@dataclass(frozen=True)
class Records:
    """The records of a pruned model.

    Attributes:
        summary: counts, shares, export, times.
        plan: which units stayed.
        scores: the importance of every unit in scope; `None` if a plan was applied.
        recovery: its summary and adapter, if the model was tuned.
        measurements: before pruning and after.
        sparsity: what was masked, if single weights were.
        speed: of these very weights beside their base's; a model that is pruned or tuned further has none yet.
    """

    summary: PruningSummary
    plan: PruningPlan
    scores: UnitScores | None = None
    recovery: MoreauRecovery | None = None
    measurements: Sequence[Measurement] = ()
    sparsity: SparsitySummary | None = None
    speed: Speed | None = None

    def save(self, folder: Path, card_template: str | Path | None = None) -> None:
        """Writes them, and the card made of them, into a model's folder; raises as `write_card`."""
        self.plan.save(folder / PLAN_NAME)
        MoreauPrunerConfig.from_dict(self.plan.config).save_pretrained(folder)
        self.summary.save(folder / SUMMARY_NAME)
        for record, name in ((self.scores, SCORES_NAME), (self.sparsity, SPARSITY_NAME)):
            if record is not None:
                (folder / name).parent.mkdir(exist_ok=True)
                record.save(folder / name)
        if self.recovery is not None:
            self.recovery.save(folder)
        self._write_measured(folder, card_template)

    def rewrite_card(self, folder: Path, card_template: str | Path | None = None) -> None:
        """Writes measurements and card anew beside the weights; the folder stays as it was where that raises."""
        with add_files(folder, "README.md", overwrite=True) as work:
            self._write_measured(work, card_template)

    def _write_measured(self, folder: Path, card_template: str | Path | None) -> None:
        if self.measurements:
            save_measurements(self.measurements, folder / EVALUATION_NAME)
        if self.speed is not None:
            self.speed.save(folder / SPEED_NAME)
        write_card(
            folder,
            self.summary,
            self.plan,
            recovery=None if self.recovery is None else self.recovery.summary,
            measurements=self.measurements,
            speed=self.speed,
            sparsity=self.sparsity,
            template=card_template,
        )

    @classmethod
    def load(cls, folder: Path) -> Records:
        """Reads them from a folder; raises CheckpointError where it holds no pruned model, or a damaged file."""
        if folder.is_dir() and not (folder / PLAN_NAME).is_file():
            raise CheckpointError(f"{folder}: holds no {PLAN_NAME}; give a folder that prune or apply wrote")
        plan = PruningPlan.load(folder / PLAN_NAME)
        scores = find_scores(folder)
        measured, sparsity, speed = (folder / name for name in (EVALUATION_NAME, SPARSITY_NAME, SPEED_NAME))
        return cls(
            summary=PruningSummary.load(folder / SUMMARY_NAME),
            plan=plan,
            scores=UnitScores.load(scores) if scores else None,
            recovery=MoreauRecovery.load(folder),
            measurements=load_measurements(measured) if measured.is_file() else (),
            sparsity=SparsitySummary.load(sparsity) if sparsity.is_file() else None,
            speed=Speed.load(speed) if speed.is_file() else None,
        )
