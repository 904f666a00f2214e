"""Robustness: what a perturbation does to the weights, what agreement means, and what is asked for wrongly."""

import gc
import json
import math
import weakref

import pytest
import torch

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.errors import ConfigError
from optimum_moreau.evaluation import perplexity
from optimum_moreau.evaluation.findings import Agreement, verdicts
from optimum_moreau.evaluation.robustness import Perturbation, parse_perturbations, robustness
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.planning import plan_overlap
from tests.tiny import tiny_model

SMALL = MoreauPrunerConfig(calibration_samples=2, sequence_length=16)


@pytest.fixture
def documents(text):
    return [part for part in text.split("\n\n") if len(part) > 200]


@pytest.fixture
def loader(tiny_folder):
    return lambda: load_model(str(tiny_folder), device="cpu")


# Perturbations


def test_names_are_read():
    found, seeds = parse_perturbations("bf16,noise:0.01,int8,samples:100,seeds:5,bf16")
    assert found == [
        Perturbation("bf16", "dtype"),
        Perturbation("noise:0.01", "noise", 0.01),
        Perturbation("int8", "int8"),
        Perturbation("samples:100", "samples", 100),
    ]
    assert seeds == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bf61", "unknown 'bf61'. Did you mean 'bf16'?"),
        ("noise", "'noise' needs a level, e.g. noise:0.01"),
        ("noise:-1", "'noise:-1' needs a level"),
        ("seeds:0", "'seeds:0' needs a whole number"),
        ("samples:x", "'samples:x' needs a whole number"),
        ("", "unknown ''"),
    ],
)
def test_what_is_no_perturbation_is_refused(text, message):
    with pytest.raises(ConfigError) as error:
        parse_perturbations(text)
    assert message in str(error.value)


def test_noise_is_relative_and_int8_is_half_a_step():
    before = {name: w.clone() for name, w in tiny_model("llama").named_parameters()}
    noisy = dict(Perturbation("noise:0.01", "noise", 0.01).change(tiny_model("llama")).named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    relative = ((noisy[name] - before[name]) / before[name].abs()).flatten()
    assert relative.std().item() == pytest.approx(0.01, rel=0.1) and abs(relative.mean().item()) < 0.002
    assert torch.equal(noisy["model.norm.weight"], before["model.norm.weight"])

    rounded = dict(Perturbation("int8", "int8").change(tiny_model("llama")).named_parameters())[name]
    step = before[name].abs().amax(dim=1, keepdim=True) / 127
    assert ((rounded - before[name]).abs() <= step / 2 * 1.0001).all()
    assert torch.allclose((rounded / step).round(), rounded / step, atol=1e-3)


# Agreement


def test_nothing_changed_agrees_wholly(loader, documents):
    tokenizer = load_tokenizer(loader().config.name_or_path)
    (draw,) = robustness(
        loader, tokenizer, documents, criteria=["magnitude"], perturbations="fp32,seeds:2", config=SMALL
    )
    assert draw.is_draw and (draw.kept, draw.removed, draw.rank) == (1.0, 1.0, 1.0)  # magnitude reads no text


def test_agreement_is_that_of_the_plans_made_one_by_one(loader, documents, tiny_folder):
    tokenizer = load_tokenizer(str(tiny_folder))
    found = robustness(
        loader,
        tokenizer,
        documents,
        criteria=["taylor"],
        perturbations="bf16,seeds:2",
        ratios=(0.1, 0.2),
        config=SMALL,
        evaluate=documents,
    )

    def pruned(seed, dtype, ratio):
        config = MoreauPrunerConfig(
            criterion="taylor", pruning_ratio=ratio, seed=seed, calibration_samples=2, sequence_length=16
        )
        model = loader().to(dtype)
        result = MoreauPruner(config, tokenizer=tokenizer).prune(model, documents)
        return result.plan, perplexity(model, tokenizer, documents).perplexity

    plans = {
        (seed, dtype, ratio): pruned(seed, dtype, ratio)
        for seed in (0, 1)
        for dtype in (torch.float32, torch.bfloat16)
        for ratio in (0.1, 0.2)
    }
    assert [(one.ratio, one.between, one.of) for one in found] == [
        (0.1, ("fp32", "bf16"), ""),
        (0.1, ("draw", "draw"), "fp32"),
        (0.2, ("fp32", "bf16"), ""),
        (0.2, ("draw", "draw"), "fp32"),
    ]
    for one in found:
        if one.is_draw:
            keys = [((0, torch.float32), (1, torch.float32))]
        else:
            keys = [((seed, torch.float32), (seed, torch.bfloat16)) for seed in (0, 1)]
        pairs = [[plans[(*key, one.ratio)] for key in pair] for pair in keys]
        overlaps = [plan_overlap(a[0], b[0]) for a, b in pairs]
        assert one.kept == pytest.approx(sum(o["all"].kept for o in overlaps) / len(overlaps))
        assert one.removed == pytest.approx(sum(o["all"].removed for o in overlaps) / len(overlaps))
        for block, values in one.layers.items():
            assert values["kept"] == pytest.approx(sum(o[block].kept for o in overlaps) / len(overlaps))
        if not one.is_draw:
            means = [sum(pair[side][1] for pair in pairs) / len(pairs) for side in (0, 1)]
            assert one.perplexity == pytest.approx(means, rel=1e-5)
            assert one.difference == pytest.approx(abs(means[0] - means[1]), abs=1e-3)


def test_a_calibration_size_is_compared_and_its_draws(loader, documents, tiny_folder):
    found = robustness(
        loader,
        load_tokenizer(str(tiny_folder)),
        documents,
        criteria=["taylor"],
        perturbations="samples:4,seeds:3",
        config=SMALL,
    )
    assert [(one.between, one.of, one.pairs) for one in found] == [
        (("fp32", "samples:4"), "", 3),
        (("draw", "draw"), "fp32", 3),
        (("draw", "draw"), "samples:4", 3),
    ]
    assert all(-1 <= one.rank <= 1 and not math.isnan(one.rank) for one in found)


def agreement(removed, deviation, *, draw=False, of=""):
    between = ("draw", "draw") if draw else ("fp32", "bf16")
    return Agreement("taylor", 0.2, between, of, 0.9, 0.0, removed, deviation, 0.9, 3, {})


@pytest.mark.parametrize(
    ("dtypes", "draws", "says"),
    [
        ((0.97, 0.01), (0.35, 0.03), "the calibration draw threatens the choice more"),
        ((0.60, 0.01), (0.90, 0.03), "the dtype threatens the choice more"),
        ((0.951, 0.03), (0.949, 0.03), "neither threatens the choice clearly more"),
        ((1.0, 0.0), (1.0, 0.0), "neither changes the choice"),
    ],
)
def test_the_verdict_is_what_the_overlaps_carry(dtypes, draws, says):
    few = agreement(0.1, 0.0, draw=True, of="samples:2")  # fewer samples are another question
    (found,) = verdicts([agreement(*dtypes), few, agreement(*draws, draw=True, of="fp32")])
    assert found.endswith(says) and f"share {dtypes[0]:.2f}, two calibration draws {draws[0]:.2f}:" in found


def test_without_both_there_is_no_verdict():
    assert verdicts([agreement(0.9, 0.1)]) == verdicts([agreement(0.9, 0.1, draw=True, of="fp32")]) == []


def test_one_model_is_in_memory_at_a_time(loader, documents, tiny_folder):
    alive, most = weakref.WeakSet(), []

    def load():
        gc.collect()
        most.append(len(alive))
        model = loader()
        alive.add(model)
        return model

    settings = {"perturbations": "bf16,seeds:2", "config": SMALL, "evaluate": documents, "max_segments": 1}
    robustness(load, load_tokenizer(str(tiny_folder)), documents, criteria=["magnitude"], **settings)
    assert max(most) == 0


# The verb


def test_the_verb_writes_what_it_prints(command, tiny_folder, text, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    arguments = ("robustness", tiny_folder, "--calibration", tmp_path / "text.txt", "--samples", "2", "--seq-len", "16")
    flags = ("--criteria", "taylor,magnitude", "--perturbations", "bf16,fp16", "--ratio", "0.1,0.2")
    code, out, err = command(*arguments, *flags, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["agreements"]) == 2 * 2 * 3
    files = found.pop("files")
    assert sorted(files) == sorted(str(path) for path in (tmp_path / "out").iterdir()) and len(files) == 4
    assert json.loads((tmp_path / "out" / "robustness.json").read_text()) == found
    table = (tmp_path / "out" / "robustness.md").read_text()
    assert table.startswith("| criterion | ratio | compared |") and "| bf16 – fp16 |" in table


def test_perplexities_stand_with_their_protocol(command, tiny_folder, text, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    given = ("--calibration", tmp_path / "text.txt", "--samples", "2", "--seq-len", "16", "--criteria", "taylor")
    measured = ("--perturbations", "bf16", "--evaluate", tmp_path / "text.txt", "--max-segments", "1")
    code, out, err = command("robustness", tiny_folder, *given, *measured)
    assert code == 0 and "Diff: of the two perplexities (128-token segments, no BOS, the first 1)." in out, err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--criteria", "tailor"), "unknown criterion 'tailor'. Did you mean 'taylor'?"),
        (("--perturbations", "bf61"), "Did you mean 'bf16'?"),
        (("--ratio", "a"), "--ratio: 'a' is not a share"),
        (("--ratio", "1.5"), "pruning_ratio"),
        (("--perturbations", "seeds:1"), "nothing to compare"),
        (("--perturbations", "fp32"), "nothing to compare, the model is in fp32 already"),
        (("--calibration", "missing.txt"), "missing.txt: no such file"),
    ],
    ids=str,
)
def test_what_is_asked_wrongly_is_refused(flags, message, command, tiny_folder, tmp_path):
    code, out, err = command("robustness", tiny_folder, *flags, "-o", tmp_path / "out")
    assert (code, out) == (2, "") and message in err and not (tmp_path / "out").exists(), err


def test_real_draws_disagree_more_than_dtypes(shared):
    folder = str(shared / "models" / "stories260K")
    found = robustness(
        lambda: load_model(folder, device="cpu"),
        load_tokenizer(folder),
        str(shared / "data" / "tinystories_1k.jsonl"),
        criteria=["taylor"],
        perturbations="bf16,fp16,seeds:3",
    )
    dtypes = next(one for one in found if one.between == ("bf16", "fp16"))
    draws = next(one for one in found if one.is_draw)
    assert dtypes.pairs == draws.pairs == 3
    assert draws.removed < dtypes.removed and draws.kept < dtypes.kept
