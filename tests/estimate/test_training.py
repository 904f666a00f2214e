"""The operations of training blocks, against those that are counted."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.compensation import compensate as compensating
from optimum_moreau.compensation.blocks import BlockTrainer
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.compensation.train import Train
from optimum_moreau.data.parts import parted
from optimum_moreau.estimate.training import estimate_training
from optimum_moreau.models.units import model_shape
from tests.tiny import cut_plan, tiny_model


@pytest.mark.parametrize("family", ["llama", "cohere", "exaone4"])
def test_the_operations_are_those_of_the_products(family, monkeypatch):
    model, counts, original = tiny_model(family), [], BlockTrainer.train

    def counted(self, *args):
        with FlopCounterMode(display=False) as counter:
            found = original(self, *args)
        counts.append(
            sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
        )
        return found

    monkeypatch.setattr(BlockTrainer, "train", counted)
    monkeypatch.setattr(compensating._Guarded, "_loss", lambda self, what: 0.0)
    step = Train(steps=40, batch_tokens=64, windows=32, held_out=4, patience=40)
    config = MoreauPrunerConfig(compensation=step, unit_ratio=0.5, sequence_length=16).resolve(model.config)
    shape, plan = model_shape(model), cut_plan(model, (0, 1, 0), (8, 8, 8))
    tokens = torch.randint(64, (36, 16), generator=torch.Generator().manual_seed(1))
    with compensated(model, shape, plan, parted(tokens, 4), config) as done:
        assert len(done.trained) == len(counts)
    # exaone4 has no norm before a block, so that no gradient flows to what comes in
    assert sum(counts) == pytest.approx(estimate_training(model, shape, plan, config).operations, rel=0.3)
    if family != "exaone4":
        assert sum(counts) == pytest.approx(estimate_training(model, shape, plan, config).operations, rel=1e-6)


def test_a_compensation_without_training_adds_nothing():
    model = tiny_model()
    config = MoreauPrunerConfig(compensation="refit", unit_ratio=0.5).resolve(model.config)
    assert estimate_training(model, model_shape(model), cut_plan(model, (1, 1, 1), (8, 8, 8)), config) is None
