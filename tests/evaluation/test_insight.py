"""Insight: silencing is removal, channels add up to units, curves are what pruning by hand gives, pictures say it."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch
from PIL import Image

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, perplexity
from optimum_moreau.config.validation import BOS
from optimum_moreau.errors import ConfigError, PlanError
from optimum_moreau.evaluation.findings import Insight, rank_correlation
from optimum_moreau.evaluation.study import Study, silenced
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.report import draw_map
from optimum_moreau.report.figures import inline_svg
from optimum_moreau.scoring.scores import score_channels, score_units
from optimum_moreau.surgery.apply import apply_plan
from tests.tiny import FAMILIES, tiny_model

SMALL = MoreauPrunerConfig(calibration_samples=2, sequence_length=16)


@pytest.fixture
def documents(text):
    return [part for part in text.split("\n\n") if len(part) > 200]


@pytest.fixture
def study(tiny_folder, documents):
    model = load_model(str(tiny_folder), device="cpu")
    tokenizer = load_tokenizer(str(tiny_folder))
    return Study(model, tokenizer, documents, documents[:2], config=SMALL, seeds=2)


def plan_of(model, tokens, criterion="taylor", **changes):
    config = MoreauPrunerConfig(criterion=criterion, **{"unit_ratio": 0.5, **changes}).resolve(model.config)
    shape = model_shape(model)
    return make_plan(score_units(model, shape, tokens, config), shape, config)


# Silencing


@pytest.mark.parametrize("family", FAMILIES)
def test_silenced_is_removed(family, tokens):
    model = tiny_model(family)
    model_there = {name: p.clone() for name, p in model.named_parameters()}
    plan = plan_of(model, tokens, attention_layers=(0, 3), mlp_layers=(1, 3))
    with torch.no_grad():
        with silenced(model, model_shape(model), plan):
            quiet = model(tokens).logits
        assert all(torch.equal(p, model_there[name]) for name, p in model.named_parameters())
        apply_plan(model, plan)
        assert (quiet - model(tokens).logits).abs().max() <= 1e-5 * quiet.abs().max()


def test_an_error_within_leaves_the_weights_as_they_were(llama, tokens):
    before = {name: p.clone() for name, p in llama.named_parameters()}
    with pytest.raises(ZeroDivisionError), silenced(llama, model_shape(llama), plan_of(llama, tokens)):
        raise ZeroDivisionError
    assert all(torch.equal(p, before[name]) for name, p in llama.named_parameters())


@pytest.mark.parametrize("target", ["hidden", "layers"])
def test_what_cannot_be_silenced_is_refused(target, llama, tokens):
    plan = plan_of(llama, tokens, targets=(target,), whole_layers=(0, 3))
    with pytest.raises(PlanError, match="only heads and MLP channels"), silenced(llama, model_shape(llama), plan):
        pass


# Channels


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("criterion", ["taylor", "moreau-gs", "magnitude"])
def test_the_channels_of_a_unit_add_up_to_its_score(family, criterion, tokens):
    model = tiny_model(family)
    shape = model_shape(model)
    config = MoreauPrunerConfig(criterion=criterion, attention_layers=(0, 3), mlp_layers=(0, 3)).resolve(model.config)
    units, channels = score_units(model, shape, tokens, config), score_channels(model, shape.blocks, tokens, config)
    for block in shape.blocks:
        total = sum(
            channels[name][block.lines(cut, len(channels[name]))].sum(dim=1)
            for cut, name in block.weight_names().items()
        )
        torch.testing.assert_close(total, units.values[block.where], rtol=1e-6, atol=0)


def test_ranks_are_permutations_and_a_criterion_agrees_with_itself(study):
    found = study.ranks(("taylor", "taylor"))
    assert {one.module for one in found} == {
        f"layers.{i}.{m}"
        for i in (0, 1, 2)
        for m in (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
    }
    for one in found:
        assert one.correlation == pytest.approx(1) and one.ranks[0] == one.ranks[1]
        assert sorted(one.ranks[0]) == list(range(1, len(one.ranks[0]) + 1))
    other = study.ranks(("taylor", "magnitude"), [1])
    assert {one.module.split(".")[1] for one in other} == {"1"} and min(one.correlation for one in other) < 0.9


# Curves


def test_a_point_is_what_pruning_gives(study, tiny_folder, documents):
    """Each point of the curves against a model that is pruned in earnest, seed by seed."""
    tokenizer = load_tokenizer(str(tiny_folder))

    def pruned(seed, **size):
        model = load_model(str(tiny_folder), device="cpu")
        config = MoreauPrunerConfig(criterion="taylor", calibration_samples=2, sequence_length=16, seed=seed, **size)
        MoreauPruner(config, tokenizer=tokenizer).prune(model, documents)
        return perplexity(model, tokenizer, documents[:2]).perplexity

    panel = study.over_ratios(["taylor"], [0.3, 0.1])
    (curve,) = panel.curves
    assert curve.x == (0, 10, 30) and curve.mean[0] == panel.dense and curve.deviation[0] == 0
    for i, ratio in ((1, 0.1), (2, 0.3)):
        values = torch.tensor([pruned(seed, pruning_ratio=ratio) for seed in (0, 1)])
        assert curve.mean[i] == pytest.approx(float(values.mean()), rel=1e-5)
        assert curve.deviation[i] == pytest.approx(float(values.std()), rel=1e-2, abs=1e-4)
    everywhere = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
    (curve,) = study.single_layers(["magnitude"]).curves
    assert curve.x == (0, 1, 2) and curve.deviation == (0, 0, 0)  # no draw moves magnitudes
    model = load_model(str(tiny_folder), device="cpu")
    shape = model_shape(model)
    config = MoreauPrunerConfig(criterion="magnitude", **everywhere).resolve(model.config)
    scores = score_units(model, shape, None, config)
    for layer in (0, 1, 2):
        scope = {"attention_layers": (layer, layer + 1), "mlp_layers": (layer, layer + 1)}
        config = MoreauPrunerConfig(criterion="magnitude", unit_ratio=0.25, **scope).resolve(model.config)
        cut = load_model(str(tiny_folder), device="cpu")
        apply_plan(cut, make_plan(scores, shape, config))
        assert curve.mean[layer] == pytest.approx(perplexity(cut, tokenizer, documents[:2]).perplexity, rel=1e-5)


def test_sensitivity_tries_each_setting_and_is_what_pruning_gives(study, tiny_folder, documents):
    study.seeds = 1
    panels = study.sensitivity("moreau-gs")
    assert [(panel.x_label, panel.current) for panel in panels] == [
        ("η", 5e-6),
        ("ρ", 0.2),
        ("σ", 0.05),
        ("T", 10),
    ]
    for panel, field, value in ((panels[2], "sigma", 0.1), (panels[3], "steps", 5), (panels[0], "eta", 5e-4)):
        model, tokenizer = load_model(str(tiny_folder), device="cpu"), load_tokenizer(str(tiny_folder))
        config = MoreauPrunerConfig(calibration_samples=2, sequence_length=16, pruning_ratio=0.2, **{field: value})
        MoreauPruner(config, tokenizer=tokenizer).prune(model, documents)
        (curve,) = panel.curves
        pruned = perplexity(model, tokenizer, documents[:2]).perplexity
        assert curve.mean[curve.x.index(pytest.approx(value))] == pytest.approx(pruned, rel=1e-5)
    assert len({point for panel in panels for point in panel.curves[0].mean}) > 4  # the settings do something
    with pytest.raises(ConfigError, match="taylor has none of the settings"):
        study.sensitivity("taylor")


def test_a_ratio_out_of_reach_is_refused_before_any_scoring(study, monkeypatch):
    monkeypatch.setattr("optimum_moreau.evaluation.study.score_units", lambda *a: pytest.fail("scored"))
    with pytest.raises(PlanError):
        study.over_ratios(["taylor"], [0.1, 0.99])


# The verb, and what it draws


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, tiny_folder, text):
    """A folder that the verb wrote."""
    from optimum_moreau.cli import main

    folder = tmp_path_factory.mktemp("insight")
    (folder / "text.txt").write_text(text)
    file = str(folder / "text.txt")
    flags = ["--samples", "2", "--seq-len", "16", "--max-segments", "2", "--steps", "2", "--ratios", "0.1,0.2"]
    code = main(
        ["insight", str(tiny_folder), "--calibration", file, "--evaluate", file, "-o", str(folder / "out"), *flags]
    )
    assert code == 0
    return folder / "out"


def test_the_record_survives_json(drawn):
    values = json.loads((drawn / "insight.json").read_text())
    assert json.loads(json.dumps(Insight.from_dict(values).to_dict())) == values
    damaged = (
        {"ranking": [{}]},
        {"ranking": [{**values["ranking"][0], "criteria": ["a"]}]},
        {"ranking": [{**values["ranking"][0], "ranks": [[1], [1, 2]]}]},
        {"ratios": {**values["ratios"], "curves": [{**values["ratios"]["curves"][0], "mean": [1.0]}]}},
        {"ratios": {**values["ratios"], "curves": [{**values["ratios"]["curves"][0], "mean": None}]}},
    )
    for damage in damaged:
        with pytest.raises(ConfigError, match=r"what `insight` wrote|ranks of one matrix|as many points"):
            Insight.from_dict({**values, **damage})


def test_a_study_names_how_it_measures(tiny_folder, documents, bos_tokenizer):
    model = load_model(str(tiny_folder), device="cpu")
    auto, paper = (Study(model, bos_tokenizer, documents, documents, max_segments=2, bos=bos) for bos in BOS)
    assert auto.protocol == "128-token segments after <s>, the first 2"
    assert paper.protocol == "128-token segments, no BOS, the first 2"
    how = {"max_segments": 2, "bos": "paper"}
    assert paper.dense == perplexity(model, bos_tokenizer, documents, **how).perplexity != auto.dense
    assert Study(model, bos_tokenizer, documents).protocol == ""


@pytest.mark.parametrize("name", ["ranking-attention", "ranking-mlp", "layers", "ratios", "sensitivity", "map"])
def test_every_figure_is_a_picture_with_words(drawn, name):
    with Image.open(drawn / f"{name}.png") as picture:
        assert min(picture.size) > 300
        assert len(set(picture.convert("L").resize((200, 200)).tobytes())) > 10  # not blank
    root = ET.parse(drawn / f"{name}.svg").getroot()
    words = " ".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "tiny-llama" in words  # text stays text, and says of which model
    if name in ("layers", "ratios", "sensitivity"):
        assert "perplexity" in words and "unpruned" in words


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--figures", "rankng"), "figures: unknown 'rankng'. Did you mean 'ranking'?"),
        (("--criteria", "moreau-gs"), "the figure ranking compares two"),
        (("--criteria", "taylor,moreau"), "taylor comes first and has none of the settings"),
        (("--criteria", "tailor,moreau"), "unknown criterion 'tailor'. Did you mean 'taylor'?"),
        (("--ratios", "a"), "--ratios: 'a' is not a share"),
        (("--layers", "x"), "--layers: 'x' is not a whole number"),
        (("--layers", "7"), "layers: 7 lies outside the model's layers 0 to 2"),
        (("--seeds", "0"), "--seeds: 0 is not a whole number"),
        (("--figures", "layers"), "--evaluate: layers needs a text"),
        (("--ratio", "0.9"), "cannot be reached"),
        (("--ratios", "0.1,0.9"), "cannot be reached"),
        (("--figures", "map", "--targets", "hidden"), "insight looks into heads and MLP channels"),
    ],
    ids=str,
)
def test_what_is_asked_wrongly_is_refused(flags, message, command, tiny_folder, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    given = [] if flags == ("--figures", "layers") else ["--evaluate", tmp_path / "text.txt"]
    code, out, err = command("insight", tiny_folder, *given, *flags, "-o", tmp_path / "out", "--seq-len", "16")
    assert (code, out) == (2, "") and message in err and not (tmp_path / "out").exists(), err


def test_what_cannot_be_drawn_is_refused_before_any_scoring(command, tiny_folder, tmp_path, text, monkeypatch):
    monkeypatch.setattr("optimum_moreau.evaluation.study.score_units", lambda *a: pytest.fail("scored"))
    monkeypatch.setattr("optimum_moreau.evaluation.study.score_channels", lambda *a: pytest.fail("scored"))
    (tmp_path / "text.txt").write_text(text)
    for flags in (("--ratio", "0.9"), ("--ratios", "0.9"), ("--layers", "7")):
        code, _, err = command(
            "insight", tiny_folder, "--evaluate", tmp_path / "text.txt", *flags, "-o", tmp_path / "out"
        )
        assert code == 2 and not (tmp_path / "out").exists(), err


@pytest.mark.parametrize("verb", ["insight", "robustness"])
def test_a_result_is_added_whole_or_not_at_all(verb, command, tiny_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    asked = {
        "insight": ("--figures", "map", "--criteria", "magnitude"),
        "robustness": ("--criteria", "magnitude", "--perturbations", "bf16"),
    }[verb]
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    monkeypatch.setattr("optimum_moreau.report.save_figure", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    code, _, err = command(verb, tiny_folder, *asked, "-o", out)
    assert code == 2 and "cannot be written (disk full)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and [p.name for p in out.iterdir()] == ["mine.txt"]
    monkeypatch.undo()
    assert command(verb, tiny_folder, *asked, "-o", out)[0] == 0 and (out / "mine.txt").is_file()
    code, _, err = command(verb, tiny_folder, *asked, "-o", out)
    assert code == 2 and f"holds {verb}.json already" in err
    assert command(verb, tiny_folder, *asked, "-o", out, "--overwrite")[0] == 0
    code, _, err = command(verb, tiny_folder, *asked, "-o", out / "mine.txt" / "deeper")
    assert code == 2 and "cannot be written" in err


def test_a_criterion_that_tells_nothing_apart_agrees_with_none():
    constant, rising = torch.zeros(5), torch.arange(5.0)
    assert rank_correlation(rising, rising) == 1 and rank_correlation(rising, -rising) == -1
    assert rank_correlation(constant, constant) == 1
    assert rank_correlation(constant, rising) == rank_correlation(rising, constant) == 0


def test_names_may_hold_dollar_signs(study):
    figure = draw_map({"a$\\x$b": study.plan("magnitude")}, "m$\\x$")
    assert "m$\\x$" in inline_svg(figure, "label")


def test_without_matplotlib_the_pip_command_is_named(command, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_moreau.report.figures.find_spec", lambda name: None)
    for verb in ("insight", "robustness", "report"):
        code, out, err = command(verb, tiny_folder, "-o", tmp_path / "out")
        assert (code, out) == (2, "") and "pip install 'optimum-moreau[report]'" in err
    assert not (tmp_path / "out").exists()
