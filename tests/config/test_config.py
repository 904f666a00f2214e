"""The config round-trips, validates, and resolves by the conventions."""

import json
import logging
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.budgets import Uniform
from optimum_moreau.budgets.search import Search
from optimum_moreau.criteria.moreau import Moreau
from optimum_moreau.criteria.surgeon import Surgeon
from optimum_moreau.criteria.taylor import Taylor
from optimum_moreau.errors import ConfigError
from optimum_moreau.registry import CRITERIA


def depth(layers):
    return SimpleNamespace(num_hidden_layers=layers, num_attention_heads=4, hidden_size=32, intermediate_size=24)


def test_survives_json_and_a_folder(tmp_path):
    config = MoreauPrunerConfig(criterion="moreau", unit_ratio=(0.25, 0.5), attention_layers=(1, 3), seed=7)
    assert MoreauPrunerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["moreau_pruner_config.json"]
    assert MoreauPrunerConfig.from_pretrained(tmp_path) == config


def test_is_frozen():
    with pytest.raises(AttributeError):
        MoreauPrunerConfig().seed = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"criterion": "moreu"}, "unknown criterion 'moreu'. Did you mean 'moreau'"),
        ({"budget": "globl"}, "unknown budget 'globl'. Did you mean 'global'"),
        ({"pruning_ratio": 1.0}, r"pruning_ratio: 1.0 is not a share in \[0, 1\)"),
        ({"pruning_ratio": -0.1}, "is not a share"),
        ({"pruning_ratio": float("nan")}, "is not a share"),
        ({"unit_ratio": 20}, "20 % is 0.2"),
        ({"unit_ratio": (0.1, 1.5)}, "1.5 is not a share"),
        ({"unit_ratio": (0.1, 0.2, 0.3)}, r"one number, or one for each target \(attention, mlp\)"),
        ({"target_parameters": "5.5X"}, "target_parameters: '5.5X' is not a size such as 5.5B, 800M or 120000"),
        ({"target_bytes": "twelve"}, "target_bytes: 'twelve' is not a size such as 12GiB"),
        ({"target_bytes": True}, "target_bytes: True is not a size"),
        ({"target_bytes": "0GB"}, "target_bytes: '0GB' is less than 1"),
        ({"target_bytes": "1GB", "pruning_ratio": 0.2}, "are both given; give one"),
        ({"engine": "vlm"}, "runtime: unknown value 'vlm'. Did you mean 'vllm'"),
        ({"tensor_parallel": 0}, "tensor_parallel: 0 is not a whole number ≥ 1"),
        ({"engine": "llama.cpp", "tensor_parallel": 2}, "tensor_parallel: llama.cpp splits a model between layers"),
        ({"engine": "vllm", "budget": "global"}, "layers of different shape, runtime 'vllm' wants one"),
        ({"uniform": True, "budget": "global"}, "layers of different shape, uniform=True wants one"),
        ({"engine": "vllm", "export": "custom"}, "export 'custom' is an own model type, which vllm does not read"),
        ({"fold_norms": True}, "fold_norms concerns hidden channels"),
        ({"uniform": 1}, "uniform: 1 is not true or false"),
        ({"channel_group": "unit", "targets": ("mlp", "hidden")}, "hidden channels share weights with other units"),
        ({"whole_layers": (2, 1)}, "whole_layers: .* 0 <= start < end"),
        ({"layer_criterion": "block-influence"}, "layer_criterion concerns whole layers"),
        ({"targets": [["mlp"]]}, "targets: .* is not a list of names"),
        ({"targets": None, "unit_ratio": (0.2,)}, "targets: None is not a list of names"),
        ({"layer_criterion": "influence"}, "layers: unknown value 'influence'"),
        ({"pruning_ratio": 0.2, "unit_ratio": 0.2}, "are both given"),
        ({"attention_layers": (3, 3)}, "attention_layers: .* 0 <= start < end"),
        ({"mlp_layers": (-1, 3)}, "mlp_layers"),
        ({"targets": ("heads",)}, "unknown 'heads'"),
        ({"targets": ()}, "targets"),
        ({"rho": 0.0}, "rho: 0.0 is not a number > 0"),
        ({"sigma": -1.0}, "sigma"),
        ({"steps": 0}, "steps: 0 is not a whole number ≥ 1"),
        ({"sequence_length": 1}, "whole number ≥ 2"),
        (
            {"rho": 0.1, "relative_rho": 0.1},
            "relative_rho: is relative, and rho absolute; give",
        ),
        ({"eta": 1e-6, "step_ratio": 0.1}, "step_ratio: is relative, and eta absolute"),
        ({"step_ratio": 1.5}, r"step_ratio: 1.5 is not a share in \(0, 1\]"),
        ({"relative_rho": 0}, "relative_rho: 0 is not a number > 0"),
        ({"released": True, "relative_rho": 0.1}, "absolute steps only; give rho, step_size instead of relative_rho"),
        ({"eta": 1e-6, "eta_quantile": 0.1}, "eta and eta_quantile are both given"),
        ({"released": True, "eta_quantile": 0.1}, "absolute threshold only"),
        ({"released": True, "criterion": "taylor"}, "released: is a setting of moreau-gs, moreau; take one of these"),
    ],
)
def test_refuses_at_construction(values, message):
    with pytest.raises(ConfigError, match=message):
        MoreauPrunerConfig(**values)


def test_refuses_unknown_keys_by_name():
    with pytest.raises(ConfigError, match=r"unknown field 'prunig_ratio'. Did you mean 'pruning_ratio'"):
        MoreauPrunerConfig.from_dict({"prunig_ratio": 0.2})


@pytest.mark.parametrize(("layers", "scope"), [(32, (4, 30)), (80, (10, 75)), (5, (1, 5)), (1, (0, 1)), (2, (0, 2))])
def test_default_scope_is_the_papers_scaled_to_the_depth(layers, scope):
    resolved = MoreauPrunerConfig().resolve(depth(layers))
    assert resolved.attention_layers == resolved.mlp_layers == scope


@pytest.mark.parametrize(
    ("field", "text", "size"),
    [
        ("target_parameters", "5.5B", 5_500_000_000),
        ("target_parameters", "800m", 800_000_000),
        ("target_parameters", 120_000, 120_000),
        ("target_bytes", "12GiB", 12 * 2**30),
        ("target_bytes", "1.5 GB", 1_500_000_000),
        ("target_bytes", "700MiB", 700 * 2**20),
        ("target_bytes", 4096, 4096),
    ],
)
def test_sizes_are_read_as_people_write_them(field, text, size):
    config = MoreauPrunerConfig(**{field: text})
    assert getattr(config, field) == size
    resolved = config.resolve(depth(8))
    assert resolved.pruning_ratio is None and getattr(resolved, field) == size
    assert MoreauPrunerConfig.from_dict(json.loads(json.dumps(resolved.to_dict()))).resolve(depth(8)) == resolved


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_an_engine_of_uniform_layers_widens_the_scope_and_wants_a_stock_class(engine):
    resolved = MoreauPrunerConfig(engine=engine).resolve(depth(32))
    assert resolved.attention_layers == resolved.mlp_layers == (0, 32)
    assert resolved.uniform and resolved.export == "stock"
    assert resolved.whole_layers == (4, 30)
    assert resolved.resolve(depth(32)) == resolved
    with pytest.raises(ConfigError, match=f"mlp_layers: {engine} reads layers of one shape only; leave 4:30 out, or"):
        MoreauPrunerConfig(engine=engine, mlp_layers=(4, 30)).resolve(depth(32))


def test_layers_outside_the_model_are_refused():
    with pytest.raises(ConfigError, match="mlp_layers: 2:9 lies outside the model's layers 0:8"):
        MoreauPrunerConfig(mlp_layers=(2, 9)).resolve(depth(8))


PAPER = {
    "moreau": {"rho": 0.05, "step_size": 1e-3, "sigma": 0.05, "steps": 10},
    "moreau-gs": {"rho": 0.2, "step_size": 2e-4, "sigma": 0.05, "steps": 10, "eta": 5e-6},
}


@pytest.mark.parametrize("given", [{}, {"rho": 0.1}, {"step_size": 1e-2}, {"sigma": 0.2}, {"released": True}], ids=str)
@pytest.mark.parametrize("criterion", PAPER)
def test_the_steps_are_the_papers_by_default(criterion, given):
    settings = [MoreauPrunerConfig(criterion=criterion, **given), MoreauPrunerConfig.paper(criterion, **given)]
    for found in (one.resolve(depth(32)).criterion for one in settings):
        assert {name: getattr(found, name) for name in PAPER[criterion]} == PAPER[criterion] | {
            name: value for name, value in given.items() if name in PAPER[criterion]
        }
        assert (found.relative_rho, found.step_ratio, getattr(found, "eta_quantile", None)) == (None, None, None)


@pytest.mark.parametrize("given", [{"relative_rho": 0.03}, {"step_ratio": 0.5}], ids=str)
@pytest.mark.parametrize("criterion", PAPER)
def test_where_one_step_is_relative_the_others_are_too(criterion, given):
    found = MoreauPrunerConfig(criterion=criterion, **given).resolve(depth(32)).criterion
    assert {"relative_rho": found.relative_rho, "step_ratio": found.step_ratio} == {
        "relative_rho": 0.001,
        "step_ratio": 0.2,
    } | given
    assert (found.rho, found.step_size, getattr(found, "eta", None), found.sigma) == (None, None, None, 0.05)
    assert getattr(found, "eta_quantile", 0.1) == 0.1


def test_a_threshold_from_the_data_leaves_the_papers_steps():
    found = MoreauPrunerConfig(eta_quantile=0.3).resolve(depth(32)).criterion
    assert (found.eta, found.eta_quantile, found.rho) == (None, 0.3, 0.2)


def test_the_papers_protocol_takes_relative_steps():
    found = MoreauPrunerConfig.preset("paper", relative_rho=0.1).resolve(depth(32))
    assert (found.unit_ratio, found.criterion.relative_rho, found.criterion.rho, found.criterion.eta) == (
        0.25,
        0.1,
        None,
        None,
    )


def test_other_defaults_are_those_of_the_paper():
    sparse = MoreauPrunerConfig().resolve(depth(32))
    assert (sparse.calibration_samples, sparse.sequence_length, sparse.pruning_ratio) == (10, 128, 0.2)
    smooth = MoreauPrunerConfig(criterion="smoothgrad").resolve(depth(32))
    assert (smooth.criterion.sigma, smooth.criterion.passes) == (0.05, 100)


def test_a_given_eta_turns_the_quantile_off():
    resolved = MoreauPrunerConfig(eta=1e-3).resolve(depth(32))
    assert (resolved.criterion.eta, resolved.criterion.eta_quantile) == (1e-3, None)


def test_paper_preset_is_the_papers_protocol():
    preset = MoreauPrunerConfig.paper("moreau-gs").resolve(depth(32))
    assert (preset.unit_ratio, preset.criterion.eta, preset.criterion.eta_quantile) == (0.25, 5e-6, None)
    assert preset.pruning_ratio is None
    assert preset.attention_layers == (4, 30)
    assert not hasattr(MoreauPrunerConfig.paper("moreau").criterion, "eta")


def test_released_takes_the_published_codes_settings():
    resolved = MoreauPrunerConfig(released=True).resolve(depth(32))
    assert (resolved.criterion.eta, resolved.criterion.eta_quantile, resolved.criterion.average_last) == (5e-6, None, 5)


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_resolving_twice_changes_nothing(criterion):
    once = MoreauPrunerConfig(criterion=criterion).resolve(depth(32))
    assert once.resolve(depth(32)) == once


def test_settings_of_another_criterion_are_dropped_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        resolved = MoreauPrunerConfig(criterion="taylor", rho=0.1).resolve(depth(8))
    assert not hasattr(resolved.criterion, "rho")
    assert "taylor does not use rho" in caplog.text


def test_push_to_hub_uploads_one_file_with_the_real_client(monkeypatch):
    """The client's own methods are called with its own signatures; a loopback Hub is for the publishing work."""
    import inspect

    from huggingface_hub import HfApi

    calls = {}

    def record(name, result):
        signature = inspect.signature(getattr(HfApi, name))

        def call(self, *args, **kwargs):
            calls[name] = signature.bind(self, *args, **kwargs).arguments
            return result

        return call

    monkeypatch.setattr(HfApi, "create_repo", record("create_repo", None))
    monkeypatch.setattr(HfApi, "upload_file", record("upload_file", SimpleNamespace(commit_url="https://hub/commit/1")))
    config = MoreauPrunerConfig(seed=3)
    assert config.push_to_hub("me/model", private=True) == "https://hub/commit/1"
    upload = calls["upload_file"]
    assert (upload["repo_id"], upload["path_in_repo"]) == ("me/model", "moreau_pruner_config.json")
    assert MoreauPrunerConfig.from_dict(json.loads(upload["path_or_fileobj"])) == config


def test_a_ridge_that_no_step_reads_is_said(caplog):
    for step, said in (("refit", False), ("none", True), ("scale", True), ("bias", True)):
        caplog.clear()
        MoreauPrunerConfig("magnitude", compensation=step, ridge=0.1).resolve(LlamaConfig())
        assert ("does not use ridge: ignored" in caplog.text) == said


def test_a_budget_that_spreads_nothing_is_said(caplog):
    MoreauPrunerConfig("taylor", budget="search", targets=("hidden",)).resolve(LlamaConfig())
    assert "budget 'search' spreads heads and channels, which are no targets: ignored" in caplog.text
    caplog.clear()
    MoreauPrunerConfig("taylor", budget="search", targets=("mlp", "hidden")).resolve(LlamaConfig())
    assert not caplog.text


def test_the_best_preset_leaves_out_what_is_ruled_out():
    best = MoreauPrunerConfig.best
    assert best(pattern="2:4") == MoreauPrunerConfig(pattern="2:4")
    for one_shape in (
        {"uniform": True},
        {"engine": "vllm"},
        {"export": "stock"},
        {"rounds": 3},
        {"targets": ("layers",)},
    ):
        assert best(**one_shape).budget == Uniform(heads=0.0)
        assert best(**one_shape).compensation.name == "refit"
    assert best().criterion == Surgeon()
    assert MoreauPrunerConfig.fast() == best(criterion="wanda", calibration_samples=128, compensation="none")
    assert best(budget="search").budget == Search() and best(budget="uniform").budget == Uniform()
    assert best(criterion="moreau").criterion == Moreau(reduction="importance")
    assert best(criterion=Moreau()).criterion == Moreau()  # an object says all
    for hidden in (("hidden",), ["attention", "hidden"]):
        assert best(targets=hidden).criterion == Taylor(reduction="importance")
        best(targets=hidden).resolve(LlamaConfig())
    assert best(criterion="moreau", released=True) == MoreauPrunerConfig(criterion="moreau", released=True)
    assert best(released=True) == MoreauPrunerConfig(released=True)  # of moreau-gs


@pytest.mark.parametrize(
    ("given", "samples"),
    [
        ({"criterion": "taylor"}, 256),
        ({"criterion": "moreau"}, 25),
        ({"criterion": "moreau", "steps": None}, 25),
        ({"criterion": "moreau", "steps": 2}, 128),
        ({"criterion": "moreau", "steps": 2, "noise_samples": 2}, 64),
        ({"criterion": "smoothgrad"}, 10),
        ({"criterion": "wanda"}, 256),
        ({"criterion": "moreau", "calibration_samples": 7}, 7),
    ],
)
def test_the_best_preset_keeps_to_its_number_of_passes(given, samples):
    assert MoreauPrunerConfig.best(**given).calibration_samples == samples


@pytest.mark.parametrize(
    "given",
    [
        {"criterion": "tailor"},
        {"criterion": "moreau", "steps": "2"},
        {"rounds": "x"},
        {"targets": 5},
        {"targets": [["mlp"]]},
        {"criterion": ["taylor"]},
    ],
)
def test_the_best_preset_refuses_what_the_fields_refuse(given):
    with pytest.raises(ConfigError):
        MoreauPrunerConfig.best(**given)


def test_a_preset_is_settings_to_begin_with():
    best = MoreauPrunerConfig.preset("best", pruning_ratio=0.3, budget="uniform")
    assert best == MoreauPrunerConfig.best(pruning_ratio=0.3, budget="uniform")
    assert (best.compensation.name, best.budget.name) == ("refit", "uniform")
    assert MoreauPrunerConfig.preset("paper") == MoreauPrunerConfig.paper()
    assert MoreauPrunerConfig.paper("moreau", step_ratio=0.3).criterion.rho is None
    assert MoreauPrunerConfig.preset("plain", seed=3) == MoreauPrunerConfig(seed=3)
    assert MoreauPrunerConfig.preset("paper", pruning_ratio=0.3).unit_ratio is None
    with pytest.raises(ConfigError, match=r"preset: unknown value 'bets'\. Did you mean 'best'\?"):
        MoreauPrunerConfig.preset("bets")


def test_a_setting_that_other_methods_have_says_which():
    with pytest.raises(
        ConfigError, match=r"^steps: taylor has no such setting; moreau-gs, moreau, lora, train have it\."
    ):
        MoreauPrunerConfig(criterion={"name": "taylor", "steps": 3})
    with pytest.raises(ConfigError, match=r"^strength: search has no such setting; owl has it\."):
        Search(strength=0.1)
    with pytest.raises(ConfigError, match=r"^taylor: unknown field 'reductoin'\. Did you mean 'reduction'\?"):
        MoreauPrunerConfig(criterion={"name": "taylor", "reductoin": "importance"})


def test_a_compensation_reads_windows_for_the_widest_matrix_of_any_layer():
    """32 tokens per column, 16,384 at least; as given where they are."""
    wide = LlamaConfig(hidden_size=512, intermediate_size=5000, num_attention_heads=8, num_hidden_layers=2)
    refit = MoreauPrunerConfig(compensation="refit", sequence_length=100)
    assert refit.compensation.windows is None and refit.resolve(wide).compensation.windows == 1600  # 160,000 tokens
    assert refit.changed(compensation_samples=7).resolve(wide).compensation.windows == 7
    narrow = LlamaConfig(hidden_size=64, intermediate_size=100, num_attention_heads=4, num_hidden_layers=2)
    assert refit.resolve(narrow).compensation.windows == 164
    assert MoreauPrunerConfig(compensation="none").resolve(wide).compensation.windows is None


@pytest.mark.parametrize(
    ("windows", "asked", "apart"), [(2, 16, 1), (3, 16, 1), (9, 16, 4), (400, 16, 16), (400, 2, 2)]
)
def test_of_few_windows_half_as_many_are_held_out(windows, asked, apart):
    config = MoreauPrunerConfig(compensation="refit", compensation_samples=windows, held_out=asked)
    assert config.compensation.apart == apart
