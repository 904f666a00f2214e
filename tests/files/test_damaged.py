"""A file that was damaged, or was made to harm, is read as what it says, or refused in one line; never more than that.

Good files of every kind are mutated: values of another type, of another size, not finite; fields that are gone or
strange; bytes that are cut off or flipped. What can still be read makes a card and a page, or is refused there.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan
from optimum_moreau.config.recovery import RecoveryConfig
from optimum_moreau.data.instructions import load_examples
from optimum_moreau.data.sources import read_documents
from optimum_moreau.errors import CheckpointError, ConfigError, DataError, MoreauError, PlanError
from optimum_moreau.evaluation.records import EVALUATION_NAME, Measurement
from optimum_moreau.evaluation.speed import SPEED_NAME
from optimum_moreau.loading import load_config, load_model, load_skeleton, load_tokenizer
from optimum_moreau.masks.summary import SPARSITY_NAME
from optimum_moreau.pipeline import inputs
from optimum_moreau.pipeline.recipe import Recipe, read_recipe
from optimum_moreau.planning import PLAN_NAME
from optimum_moreau.recovery import MoreauRecovery
from optimum_moreau.recovery.adapter import Adapter
from optimum_moreau.recovery.recovery import RECOVERY_NAME
from optimum_moreau.recovery.training import last_state
from optimum_moreau.report.page import Subject, load_evidence, write_report
from optimum_moreau.saving.card import read_base_card
from optimum_moreau.saving.records import Records
from optimum_moreau.saving.summary import SUMMARY_NAME
from optimum_moreau.scoring.scores import UnitScores
from tests.evaluation.test_speed import side, speed
from tests.tiny import assert_same_state, snapshot, tiny_model

FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = [
    None, True, 0, -1, 1, 2.5, 10**9, 10**18, 10**400, -(10**18), float("nan"), float("inf"), 1e308, "", "x", "0",
    "\ud800", "# x", "../../etc/passwd", [], [0], [[]], [None], {}, {"a": 1}, {"0": {"kept": [0], "total": 1}},
    "x" * 5000,
]  # fmt: skip


def places(values, way=()):
    """Every way into a JSON value; of long lists the first entries."""
    yield way
    if isinstance(values, dict):
        for key, inner in values.items():
            yield from places(inner, (*way, key))
    if isinstance(values, list):
        for i, inner in enumerate(values[:3]):
            yield from places(inner, (*way, i))


def put(values, way, new):
    """A copy with another value there; the Ellipsis takes it out."""
    if not way:
        return new
    key, *rest = way
    found = dict(values) if isinstance(values, dict) else list(values)
    if new is ... and not rest:
        del found[key]
    else:
        found[key] = put(found[key], rest, new)
    return found


@st.composite
def mutated(draw, good):
    """Bytes of a JSON file, damaged."""
    values = json.loads(good)
    for _ in range(draw(st.integers(1, 2))):
        way = draw(st.sampled_from(list(places(values))))
        values = put(values, way, draw(st.sampled_from([*ODD, ...])) if way else draw(st.sampled_from(ODD)))
    data = json.dumps(values).encode()
    damage = draw(st.sampled_from(["none"] * 8 + ["cut", "flipped", "deep", "byte"]))
    if damage == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if damage == "flipped":
        i = draw(st.integers(0, max(len(data) - 1, 0)))
        return data[:i] + bytes([draw(st.integers(0, 255))]) + data[i + 1 :]
    return {"deep": b"[" * 100_000, "byte": data + b"\xff"}.get(damage, data)


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory, text):
    """A pruned and recovered model with records of every kind beside it, and what robustness and insight wrote."""
    config = MoreauPrunerConfig(
        criterion="taylor", pruning_ratio=0.1, sequence_length=16, compensation="refit", compensation_samples=4,
        calibration_samples=4,
    )  # fmt: skip
    pruner = MoreauPruner(config, tokenizer=load_tokenizer(str(tiny_folder)))
    result = pruner.prune(load_model(str(tiny_folder)), [text])
    pruner.recover([text], RecoveryConfig(max_steps=1, sequence_length=16, batch_size=1, rank=2))
    folder = tmp_path_factory.mktemp("damaged") / "whole"
    pruner._model.save_pretrained(folder)
    pruner.tokenizer.save_pretrained(folder)
    summary = replace(result.summary, verified_max_abs_difference=0.0)
    measured = [Measurement(stage, "a.txt", "perplexity", "16-token segments", 3.0) for stage in ("before", "pruned")]
    measurement = speed(side(decode=(1.0, 2.0, 3.0)), side("b", decode=(1.0, 2.0, 4.0)))
    Records(summary, result.plan, result.scores, pruner._recovery, measured, speed=measurement).save(folder)
    masked = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", pattern="2:4"))
    masked.prune(tiny_model("llama"))
    masked._result.sparsity.save(folder / SPARSITY_NAME)
    return folder


def read_and_show(folder, work):
    """Reads all records of a folder, and writes a card and a page of them."""
    found = Records.load(folder)
    (work / "card").mkdir(exist_ok=True)
    found.rewrite_card(work / "card")
    write_report(work / "report.html", [Subject("model", found)])


@pytest.mark.parametrize(
    "name", [PLAN_NAME, SUMMARY_NAME, EVALUATION_NAME, SPEED_NAME, SPARSITY_NAME, RECOVERY_NAME], ids=str
)
def test_records_that_are_damaged_are_shown_as_they_are_or_refused(whole, tmp_path, name):
    good = (whole / name).read_bytes()
    read_and_show(whole, tmp_path)  # the good ones

    @FEW
    @given(mutated(good))
    def check(data):
        (whole / name).write_bytes(data)
        try:
            read_and_show(whole, tmp_path)
        except MoreauError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000

    try:
        check()
    finally:
        (whole / name).write_bytes(good)


def law(read, good, path):
    """Of every damage: what is read equals what a second reading gives, or one line says what is wrong."""

    @FEW
    @given(mutated(good))
    def check(data):
        path.write_bytes(data)
        try:
            read(path)
        except MoreauError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000

    check()


def test_a_config_that_is_damaged_is_refused(tmp_path):
    MoreauPrunerConfig.best(pruning_ratio=0.3).save_pretrained(tmp_path)
    path = tmp_path / "moreau_pruner_config.json"
    law(lambda path: MoreauPrunerConfig.from_pretrained(path.parent), path.read_bytes(), path)


def test_a_plan_that_is_damaged_is_refused_or_refused_by_the_model(whole, tmp_path):
    model = tiny_model("llama")

    def read(path):
        plan = PruningPlan.load(path)
        assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
        MoreauPruner().apply(model, plan)

    law(read, (whole / PLAN_NAME).read_bytes(), tmp_path / "plan.json")


RECIPE = {
    "model": "m", "output": "o", "evaluate": "t.txt",
    "prune": {"criterion": "taylor", "pruning_ratio": 0.2, "targets": ["mlp"]},
    "recover": {"data": "d.json", "epochs": 1.0, "seed": 3}, "push": {"repo": "a/b", "private": True},
}  # fmt: skip


def test_a_recipe_that_is_damaged_is_refused(tmp_path):
    def read(path):
        recipe = Recipe.from_dict(read_recipe(path))
        assert Recipe.from_dict(recipe.to_dict()) == recipe

    law(read, json.dumps(RECIPE).encode(), tmp_path / "recipe.yaml")  # JSON is YAML


def test_what_robustness_wrote_and_is_damaged_is_refused(tmp_path):
    one = {
        "criterion": "taylor", "ratio": 0.2, "between": ["draw", "draw"], "of": "x", "kept": 0.9, "kept_deviation": 0.1,
        "removed": 0.5, "removed_deviation": 0.1, "rank": 0.9, "pairs": 3, "layers": {"layers.0.mlp": {"kept": 1.0}},
    }  # fmt: skip
    good = json.dumps({"model": "m", "fingerprint": "f", "agreements": [one], "verdicts": []}).encode()
    law(lambda path: load_evidence(path.parent), good, tmp_path / "robustness.json")


def test_what_insight_wrote_and_is_damaged_is_refused(whole, tmp_path):
    curve = {"label": "taylor", "x": [0.1, 0.2], "mean": [3.0, 4.0], "deviation": [0.0, 0.1]}
    panel = {"title": "t", "x_label": "ratio", "curves": [curve], "dense": 2.5, "current": 0.1, "logarithmic": False}
    ranks = {"module": "layers.0.mlp", "criteria": ["a", "b"], "ranks": [[1, 2], [2, 1]], "correlation": -1.0}
    plans = {"taylor": json.loads((whole / PLAN_NAME).read_text())}
    good = {
        "model": "m", "fingerprint": "f", "text": "t", "protocol": "p", "seeds": 1, "ranking": [ranks], "layers": panel,
        "ratios": None, "sensitivity": [panel], "plans": plans,
    }  # fmt: skip
    law(lambda path: load_evidence(path.parent), json.dumps(good).encode(), tmp_path / "insight.json")


def test_an_adapter_that_is_damaged_is_refused_or_merged(whole, tmp_path):
    shutil.copytree(whole / "adapter", tmp_path / "adapter")
    model = load_model(str(whole))

    def read(path):
        before = snapshot(model)
        try:
            Adapter.load(path.parent).merge_into(model)
        except MoreauError:
            assert_same_state(model, before)
            raise

    path = tmp_path / "adapter" / "adapter_config.json"
    law(read, path.read_bytes(), path)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    ],
)
def test_a_model_folder_that_is_damaged_is_refused(tiny_folder, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def read(path):
        load_skeleton(str(folder))
        load_model(str(folder))
        load_tokenizer(str(folder))

    law(read, (folder / name).read_bytes(), folder / name)


@pytest.fixture
def cached(tiny_folder, tmp_path, monkeypatch):
    """The snapshot of `org/tiny` in a cache of the Hub, as a download leaves it."""
    commit = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "cache" / "models--org--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(tiny_folder, folder / "snapshots" / commit)


OF_HUB = {
    "config.json": (b'{"model_type": ', load_config, r"config\.json: cannot be read as a model's config: not JSON"),
    "generation_config.json": (b"[]", load_config, r"generation_config\.json: .*\[\] is no dictionary; get"),
    "model.safetensors.index.json": (b'{"weight_map": {"a": "../b"}}', load_config, "weight_map must name"),
    "tokenizer_config.json": (b"[" * 10**5, load_tokenizer, r"tokenizer_config\.json: cannot be read as a tokenizer's"),
    "added_tokens.json": (b"{]", load_tokenizer, r"added_tokens\.json: cannot be read as a list of added tokens"),
    "chat_template.jinja": (b"\xff", load_tokenizer, r"chat_template\.jinja: cannot be read as a chat template: "),
    "tokenizer.json": (b'{"model": ', load_tokenizer, r"tokenizer\.json: cannot be read as a tokenizer: not JSON"),
    "model.safetensors": (b"\0" * 99, load_model, r"cannot be loaded \(.*/model\.safetensors: .*no safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_HUB)
def test_a_file_in_the_cache_of_the_hub_that_is_damaged_is_named(cached, name):
    """As in a folder of one's own; nothing is asked of the network."""
    load_model("org/tiny")
    load_tokenizer("org/tiny")
    content, load, words = OF_HUB[name]
    (cached / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        load("org/tiny")
    assert str(cached / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("revision", [None, "main"])
def test_of_the_cache_only_the_commit_that_is_loaded_is_looked_at(cached, revision):
    other = shutil.copytree(cached, cached.parent / ("f" * 40))
    (other / "config.json").write_text("{")
    load_config("org/tiny", revision=revision)
    with pytest.raises(CheckpointError, match=f"{'f' * 40}/config.json: cannot be read as a model's config: not JSON"):
        load_config("org/tiny", revision="f" * 40)


def test_a_tokenizer_of_more_bytes_than_any_is_refused_unread(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read as a tokenizer: more than 256 MiB"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
        torch.tensor([1.0, float("-inf")]),
        torch.tensor(1.0),
        torch.ones(2, 2),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.int64),
        torch.ones(0),
    ],
    ids=["NaN", "infinite", "-infinite", "0-D", "2-D", "complex", "fp8", "whole", "empty"],
)
def test_scores_that_are_no_finite_numbers_of_units_are_refused(tmp_path, tensor):
    save_file({"layers.0.mlp": tensor}, tmp_path / "scores.safetensors")
    with pytest.raises(PlanError, match=r"scores\.safetensors: cannot be read as unit scores: layers\.0\.mlp "):
        UnitScores.load(tmp_path / "scores.safetensors")


@pytest.mark.parametrize(
    "origin", ["{", "[" * 100_000, '{"config": {"ratio": 1}}', '{"calibration": {"samples": "x"}}']
)
def test_scores_of_a_damaged_origin_are_refused(tmp_path, origin):
    save_file({"layers.0.mlp": torch.ones(2)}, tmp_path / "scores.safetensors", metadata={"origin": origin})
    with pytest.raises(PlanError, match=r"scores\.safetensors: origin"):
        UnitScores.load(tmp_path / "scores.safetensors")


def test_scores_cut_off_anywhere_are_refused(tmp_path):
    UnitScores({"layers.0.mlp": torch.ones(8, dtype=torch.float64)}).save(tmp_path / "scores.safetensors")
    good = (tmp_path / "scores.safetensors").read_bytes()
    for end in range(0, len(good), 7):
        (tmp_path / "scores.safetensors").write_bytes(good[:end])
        with pytest.raises(PlanError, match="cannot be read as unit scores"):
            UnitScores.load(tmp_path / "scores.safetensors")


@pytest.mark.parametrize(
    "field", ["calibration_samples", "compensation_samples", "steps", "rounds", "batch_size", "sequence_length"]
)
def test_sizes_that_cannot_be_are_refused_before_work(field):
    name = "windows" if field == "compensation_samples" else field
    with pytest.raises(ConfigError, match=f"{name}: .* at most"):
        MoreauPrunerConfig(**{field: 10**9})


def test_windows_of_more_tokens_than_can_be_are_refused():
    with pytest.raises(ConfigError, match=r"calibration_samples: .* tokens; .* at most"):
        MoreauPrunerConfig(calibration_samples=10**6, sequence_length=10**4)


def test_a_model_that_says_it_is_deeper_than_any_is_refused(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 10**9}))
    with pytest.raises(CheckpointError, match="num_hidden_layers 1000000000 is none that a model can have"):
        load_skeleton(str(folder))


def test_a_config_that_is_not_of_its_weights_is_refused_before_they_are_allocated(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')  # by default the largest: 7B
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is .*; the two are not of one model"):
        load_model(str(folder))


def test_an_index_that_names_files_elsewhere_is_refused(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(CheckpointError, match="weight_map must name a safetensors file"):
        load_config(str(folder))


@pytest.mark.parametrize("damage", ["truncated", "index", "gone", "summary"])
def test_a_folder_that_is_not_whole_is_not_done(whole, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    key = json.loads((folder / SUMMARY_NAME).read_text())["inputs"]
    assert inputs.made_from(str(folder), key)
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "gone":
        weights.unlink()
    elif damage == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": [')
    else:
        (folder / SUMMARY_NAME).write_text("[" * 10**5)
    assert not inputs.made_from(str(folder), key)


RECORDS = {
    "a number": ([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": 5}], r"record 2: 'output' is 5"),
    "a list": (
        [{"instruction": "a", "output": "b"}, {"instruction": ["a"], "output": "b"}],
        r"record 2: 'instruction'",
    ),
    "messages a word": ([{"messages": "hello"}], r"record 1: 'messages' is no list"),
    "content a number": ([{"messages": [{"role": "user", "content": 5}]}], r"record 1: 'content' is 5, no text"),
    "half a character": ([{"instruction": "\ud800", "output": "b"}], r"record 1: 'instruction' holds half a character"),
    "no dictionary": ([{"instruction": "a", "output": "b"}, 5], r"strings or records|record 2"),
}


@pytest.mark.parametrize(("records", "words"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_cannot_serve_is_named(tokenizer, records, words):
    with pytest.raises(DataError, match=words):
        load_examples(records, tokenizer, sequence_length=16)


FILES = {
    "mixed.jsonl": (b'{"text": "a"}\n{"text": 5}\n', r"mixed\.jsonl: record 2: 'text' is 5"),
    "mixed.json": (b'[{"text": "a"}, {"text": ["b"]}]', r"mixed\.json: record 2: 'text' is \['b'\]"),
    "numbers.jsonl": (b'{"text": 1}\n{"text": 5}\n', r"no text column"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', r"latin\.jsonl: line 2: not UTF-8"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": "b"\n', r"broken\.jsonl: record 2"),
    "lists.jsonl": (b"[1]\n[2]\n", r"lists\.jsonl: record 1: \[1\] is no dictionary"),
    "deep.jsonl": (b'{"text": "a"}\n' + b"[" * 10_000 + b"\n", r"deep\.jsonl: record 2"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_records_that_is_damaged_says_where(tmp_path, name):
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_documents(str(tmp_path / name))


def test_an_empty_record_of_a_run_is_started_over_with_a_word(tokenizer, tmp_path, caplog):
    work = tmp_path / "work"
    (work / "checkpoint-7").mkdir(parents=True)
    (work / "run.json").touch()
    recovery = MoreauRecovery(RecoveryConfig(max_steps=1, sequence_length=16, batch_size=1, rank=2), tokenizer)
    recovery.train(tiny_model("llama", vocab_size=len(tokenizer)), ["a b c d e f g"], work_dir=work)
    assert "started over" in caplog.text and recovery.summary.training["steps"] == 1
    assert not (work / "checkpoint-7").exists() and json.loads((work / "run.json").read_text())["run"]


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_model.safetensors", "optimizer.pt"])
def test_a_state_that_is_damaged_is_not_gone_on_from(tokenizer, tmp_path, caplog, name):
    def tune(steps):
        config = RecoveryConfig(max_steps=4, save_steps=2, sequence_length=16, batch_size=1, rank=2, validation=0)
        recovery = MoreauRecovery(config, tokenizer)
        model = tiny_model("llama", vocab_size=len(tokenizer))
        recovery.train(model, ["a b c d e f g h i"] * 4, work_dir=tmp_path / "work")
        return recovery.adapter.weights

    first = tune(4)
    for state in sorted((tmp_path / "work").glob("checkpoint-*"))[-1:]:
        (state / name).write_bytes((state / name).read_bytes()[:50])
    again = tune(4)
    assert "cannot be gone on from" in caplog.text
    assert all(torch.equal(first[key], again[key]) for key in first)


STATES = {
    "no number logged": {"log_history": [{"loss": "x", "step": 1}]},
    "a number for a log": {"log_history": [5]},
    "no log": {"log_history": {"loss": 1.0}},
    "a best state of another type": {"best_model_checkpoint": 5},
    "a best state elsewhere": {"best_model_checkpoint": "/"},
    "a best value of another type": {"best_metric": "x"},
    "a word for a step": {"global_step": "x"},
    "the step of another state": {"global_step": 3},
    "no step": {"max_steps": 0},
    "logging without an end": {"logging_steps": 0},
    "a word for a batch": {"train_batch_size": "x"},
    "callbacks gone": {"stateful_callbacks": {}},
    "callbacks of another type": {"stateful_callbacks": {"TrainerControl": 5}},
    "an unknown field": {"of_no_version": 1},
}


@pytest.fixture(scope="module")
def ended(tokenizer, tmp_path_factory):
    """The work folder of a recovery of four steps with a best state; the run, and its adapter."""
    config = RecoveryConfig(
        max_steps=4, save_steps=2, sequence_length=16, batch_size=1, rank=2, validation=0.5, patience=3
    )

    def tune(work):
        recovery = MoreauRecovery(config, tokenizer)
        recovery.train(tiny_model("llama", vocab_size=len(tokenizer)), ["a b c d e f g h i"] * 4, work_dir=work)
        return recovery.adapter.weights

    work = tmp_path_factory.mktemp("ended") / "work"
    return work, tune, tune(work)


@pytest.mark.parametrize("changes", STATES.values(), ids=STATES)
def test_a_state_with_a_damaged_field_is_not_gone_on_from(ended, tmp_path, caplog, changes):
    work, tune, first = ended
    shutil.copytree(work, tmp_path / "work")
    for path in (tmp_path / "work").glob("checkpoint-*/trainer_state.json"):
        values = json.loads(path.read_text())
        best = {"best_model_checkpoint": str(tmp_path / "work" / "checkpoint-2")}
        path.write_text(json.dumps(values | best | (changes if path.parent.name == "checkpoint-4" else {})))
    again = tune(tmp_path / "work")
    assert "checkpoint-4: cannot be gone on from" in caplog.text and "checkpoint-2: cannot" not in caplog.text
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_state_whose_best_is_damaged_is_not_gone_on_from(ended, tmp_path, caplog):
    work, _, _ = ended
    shutil.copytree(work, tmp_path / "work")
    path = tmp_path / "work" / "checkpoint-4" / "trainer_state.json"
    best = {"best_model_checkpoint": str(tmp_path / "work" / "checkpoint-2")}
    path.write_text(json.dumps(json.loads(path.read_text()) | best))
    assert last_state(tmp_path / "work").name == "checkpoint-4"
    (tmp_path / "work" / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"x")
    assert last_state(tmp_path / "work") is None and "the adapter of the best state" in caplog.text


def test_fuzzing_leaves_no_file_behind(whole):
    assert not [path for path in Path(whole).parent.iterdir() if path.name.startswith(".")]


MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
FRONTS = {
    "merges": MERGES,
    "a number for a name": "1: x\nlicense: mit\n",
    "an option": "ignore_metadata_errors: true\nlicense: mit\n",
    "deep": f"a: {'[' * 3000}\n",
    "no YAML": "a: [\n",
    "long": f"a: {'x' * 10**6}\n",
}


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_a_base_card_that_is_damaged_tells_nothing(tmp_path, front):
    (tmp_path / "README.md").write_text(f"---\n{front}---\n\n# A model\n")
    assert read_base_card(str(tmp_path)) == {}


def test_a_template_that_writes_an_endless_front_matter_is_refused(whole, tmp_path):
    (tmp_path / "card.md").write_text(f"---\n{MERGES}---\n\n# A model\n")
    with pytest.raises(CheckpointError, match=r"card\.md: cannot be used as a card template .*aliases"):
        Records.load(whole).rewrite_card(tmp_path, tmp_path / "card.md")


PATTERNS = {
    "a repeated group": ({"target_modules": "(.+)+!"}, "may match without end"),
    "of ranks": ({"rank_pattern": {"(.+)+!": 4}}, "may match without end"),
    "no expression": ({"target_modules": "("}, "is no regular expression"),
    "repeated layers": ({"layer_replication": [[0, 5]]}, "layer_replication"),
}


@pytest.mark.parametrize(("values", "words"), PATTERNS.values(), ids=PATTERNS)
def test_an_adapter_whose_expressions_could_match_without_end_is_refused(whole, tmp_path, values, words):
    shutil.copytree(whole / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | values))
    with pytest.raises(CheckpointError, match=words):
        Adapter.load(tmp_path / "adapter")
