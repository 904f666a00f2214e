"""One model of a study: how a run of it is made, and what its runs share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from measures import MEASURES, Measured, Pruned, prune, recover
from peers import PEERS, cut_by
from study import DENSE, Study
from texts import Subject
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from work import KeptScores, WorkFolder, hash_of

from optimum_moreau import MoreauPruner, load_calibration
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.planning import fingerprint

Run = dict[str, Any]


@dataclass
class Bench:
    """One model of a study, and what its runs share."""

    study: Study
    subject: Subject
    shared: Path
    device: str
    work: WorkFolder
    # name of a text to calibrate on → its documents, and the scores that were made on it
    texts: dict[str | None, tuple[list[str], KeptScores]] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model."""
        return load_tokenizer(str(self.subject.folder))

    @cached_property
    def documents(self) -> tuple[list[str], list[str]]:
        """To calibrate on, and to measure on."""
        return self.subject.documents()

    def model(self) -> PreTrainedModel:
        """The dense model, anew."""
        dtype = "auto" if self.device == "cpu" else "float32"
        return load_model(str(self.subject.folder), dtype=dtype, device=self.device)

    def calibration(self, name: str | None, model: PreTrainedModel) -> tuple[list[str], KeptScores]:
        """The documents to calibrate on, and the scores that were made on them."""
        if name not in self.texts:
            found = self.documents[0] if name is None else self.subject.named(name)
            about = {"model": fingerprint(model), "text": hash_of(found), "device": self.device}
            self.texts[name] = found, KeptScores(self.work, about)
        return self.texts[name]

    def run(self, key: tuple, wanted: list[str], known: Mapping[tuple, Run]) -> Run:
        """Makes one run, with those measures.

        Raises:
            MoreauError: of the kind that names the mistake (errors.py).
        """
        protocol, row, seed = key
        model = self.model()
        run: Run = {"model": self.subject.name, "protocol": protocol, "row": row, "seed": seed}
        texts = self.subject, self.documents[1], self.study.segments, self.shared
        measured: Any = Measured(model, self.tokenizer, *texts)
        if row == DENSE:
            run |= {"seconds": 0.0, "removed": 0.0}
        elif "peer" in self.study.fields(protocol, row):
            run |= self._by_peer(model, key)
        else:
            measured, made = self._pruned(measured, key, known)
            run |= made
        for name in wanted:
            run |= MEASURES[name](measured, **(self.study.measures[name] or {}))
        return run

    def _pruned(self, measured: Measured, key: tuple, known: Mapping[tuple, Run]) -> tuple[Pruned, Run]:
        """In place: prunes, and recovers where the row says so; the model with what is known of it, and its figures."""
        (protocol, row, seed), model = key, measured.model
        fields = self.study.fields(protocol, row)
        config = self.study.config(protocol, row, seed, model.config.num_hidden_layers)
        pruner = MoreauPruner(config, tokenizer=self.tokenizer)
        text, scores = self.calibration(fields.get("calibration"), model)
        result, seconds = prune(pruner, model, text, scores)
        run = {"seconds": round(seconds, 2), "removed": round(result.summary.ratio_achieved, 4)}
        if "recovery" in fields:
            run |= recover(pruner, text, seed, fields["recovery"])
        before = {draw: known.get((self.subject.name, protocol, row, draw), {}) for draw in range(seed or 0)}
        earlier = {draw: one["kept"] for draw, one in before.items() if "kept" in one}
        return Pruned(**vars(measured), calibration=text, pruner=pruner, result=result, protocol=protocol, seed=seed,
                      earlier=earlier), run  # fmt: skip

    def _by_peer(self, model: PreTrainedModel, key: tuple) -> Run:
        """In place: another package prunes; the figures of that."""
        protocol, row, _ = key
        fields, config = self.study.fields(protocol, row), self.study.config(*key, model.config.num_hidden_layers)
        text, before = self.calibration(fields.get("calibration"), model)[0], sum(p.numel() for p in model.parameters())
        start = time.perf_counter()
        drawn = {"samples": config.calibration_samples, "sequence_length": config.sequence_length, "seed": config.seed}
        windows = load_calibration(text, self.tokenizer, **drawn).tokens
        cut_by(PEERS[fields["peer"]], model, windows, config.resolve(model.config).pruning_ratio)
        after = sum(p.numel() for p in model.parameters())
        return {"seconds": round(time.perf_counter() - start, 2), "removed": round((before - after) / before, 4)}
