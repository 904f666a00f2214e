"""Masked models: every criterion with every pattern, layer by layer; saved as stock checkpoints; whole or untouched."""

import copy
import importlib
import json

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, RecoveryConfig
from optimum_moreau.budgets.owl import OWL
from optimum_moreau.config.settings import settings_of
from optimum_moreau.criteria.scoring_run import Scoring
from optimum_moreau.envelope import scoring_mode
from optimum_moreau.errors import ConfigError, ExportError, NonFiniteError, PlanError, UnsupportedModelError
from optimum_moreau.loading import load_model
from optimum_moreau.masks.patterns import Pattern, keep_mask
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.models.stream import LayerStream
from optimum_moreau.models.units import model_shape
from optimum_moreau.recovery.adapter import lora_on
from optimum_moreau.registry import CRITERIA
from optimum_moreau.saving.records import Records
from tests.tiny import FAMILIES, tiny_model

sparsify_module = importlib.import_module("optimum_moreau.masks.sparsify")

FEW = {"passes": 2, "steps": 2}
MATRICES = [f"self_attn.{m}_proj" for m in "qkvo"] + [f"mlp.{m}_proj" for m in ("gate", "up", "down")]


def masked(model, tokens, criterion="wanda", **changes):
    few = {
        key: value for key, value in FEW.items() if key in {one.name for one in settings_of(CRITERIA.get(criterion))}
    }
    config = MoreauPrunerConfig(criterion=criterion, **few, **{"pattern": "unstructured", **changes})
    return sparsify(model, model_shape(model), tokens, config.resolve(model.config))


def weights(model):
    return {
        f"layers.{i}.{m}": layer.get_submodule(m).weight for i, layer in enumerate(model.model.layers) for m in MATRICES
    }


@pytest.mark.parametrize("refine", [None, "dsnot", "r2-dsnot"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
@pytest.mark.parametrize("criterion", [name for name in CRITERIA if CRITERIA.get(name).masks])
def test_every_criterion_makes_every_pattern(criterion, pattern, refine, tokens):
    model = tiny_model("llama")
    before = {name: w.clone() for name, w in model.named_parameters()}
    found = masked(model, tokens, criterion, pattern=pattern, refine=refine)
    for name, w in weights(model).items():
        zeros = w == 0
        assert int(zeros.sum()) == w.numel() // 2, name
        assert Pattern.parse(pattern).holds(~zeros)
        if criterion != "sparsegpt":
            assert torch.equal(w[~zeros], before[f"model.{name}.weight"][~zeros])  # what stays is what it was
    assert found.achieved == 0.5 and found.holds and {one.name for one in found.matrices} == set(weights(model))
    assert set(found.by_layer().values()) == {0.5}
    others = {name for name in before if name.removeprefix("model.").removesuffix(".weight") not in weights(model)}
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in others)
    if refine:
        assert all(one.error_after <= one.error_before + 1e-4 for one in found.matrices)
        assert sum(one.swaps for one in found.matrices) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_masked(family, tokens):
    model = tiny_model(family)
    found = masked(model, tokens, sparsity=0.25)
    assert found.achieved == pytest.approx(0.25, abs=0.01) and len(found.matrices) >= 12
    assert torch.isfinite(model(tokens).logits).all()


@pytest.mark.parametrize("fed", [True, False])
def test_wanda_is_a_loop_over_the_layers(fed, tokens):
    """Against masks made one layer at a time from the statistics of a model that is masked so far, or dense."""
    model, by_hand = tiny_model("llama"), tiny_model("llama")
    dense = copy.deepcopy(by_hand)
    masked(model, tokens, sparsity=0.5, feed_forward=fed)
    for index, layer in enumerate(by_hand.model.layers):
        source = by_hand if fed else dense
        with scoring_mode(source):
            inputs = next(s.gather(MATRICES, ["squares"]) for s in LayerStream(source, [tokens], 4) if s.index == index)
        for name in MATRICES:
            w = layer.get_submodule(name).weight
            keep = keep_mask(w.abs() * inputs[name].squares.sqrt(), Pattern(), 0.5)
            with torch.no_grad():
                w[~keep] = 0
    for name, w in weights(model).items():
        assert torch.equal(w, weights(by_hand)[name]), name


def test_the_update_lowers_what_the_mask_costs(tokens):
    dense = tiny_model("llama")
    with torch.no_grad():
        expected = dense(tokens).logits

    def cost(**changes):
        model = tiny_model("llama")
        masked(model, tokens, "wanda", sparsity=0.5, **changes)
        with torch.no_grad():
            return float((model(tokens).logits - expected).square().mean())

    assert cost(update=True) < cost()


@pytest.mark.parametrize("criterion", ["wanda", "magnitude", "taylor", "gblm"])
def test_a_global_budget_is_one_ranking_of_the_dense_model(criterion, tokens):
    model, dense = tiny_model("llama"), tiny_model("llama")
    found = masked(model, tokens, criterion, sparsity=0.4, budget="global")
    scores = torch.cat([one.flatten() for one in elements_of_all(dense, tokens, criterion).values()])
    stays = torch.cat([(w != 0).flatten() for w in weights(model).values()])
    assert abs(int((~stays).sum()) - 0.4 * len(stays)) <= 1 and found.achieved == pytest.approx(0.4, abs=1e-3)
    assert scores[~stays].max() <= scores[stays].min() * (1 + 1e-5)
    assert len({round(one.sparsity, 3) for one in found.matrices}) > 5


def elements_of_all(model, tokens, criterion):
    """Element scores of the dense model, in the order of `weights`."""
    found = {}

    def emit(name, elements):
        found[name] = found.get(name, 0) + elements.clone()

    config = MoreauPrunerConfig(criterion=criterion, pattern="unstructured").resolve(model.config)
    with scoring_mode(model), torch.no_grad():
        config.criterion.score(Scoring(model, model_shape(model).blocks, [tokens], len(tokens), config, emit))
    if criterion == "wanda":
        assert set(found) == {f"model.{name}.weight" for name in weights(model)}
    return {name: found[f"model.{name}.weight"] for name in weights(model)}


def test_owl_gives_layers_with_outliers_fewer_zeros(tokens):
    model = tiny_model("llama")
    with torch.no_grad():
        for w in (model.model.layers[1].mlp.up_proj.weight, model.model.layers[1].self_attn.q_proj.weight):
            w[::5, ::5] *= 20
    found = masked(model, tokens, "wanda", sparsity=0.5, budget="owl", feed_forward=False)
    shares = found.by_layer()
    assert found.achieved == pytest.approx(0.5, abs=0.01)
    assert shares["1"] == min(shares.values()) and max(shares.values()) - shares["1"] == pytest.approx(
        2 * OWL().strength, abs=0.02
    )


def test_owl_is_its_formula():
    scores = {0: [torch.tensor([1.0, 1, 1, 1])], 1: [torch.tensor([0.1] * 19 + [100.0])], 2: [torch.tensor([1.0] * 4)]}
    found = OWL().sparsity(scores, 0.6)
    mean = 2 * OWL().strength * 20 / 28
    assert found == {
        0: pytest.approx(0.6 + mean),
        1: pytest.approx(0.6 + mean - 2 * OWL().strength),
        2: pytest.approx(0.6 + mean),
    }
    assert OWL().sparsity({0: scores[0], 1: scores[2]}, 0.6) == {0: 0.6, 1: 0.6}


@pytest.mark.parametrize("criterion", ["symwanda", "ria", "wanda"])
def test_the_update_scores_each_matrix_by_its_own_flow(criterion, tokens):
    """q, k and v share inputs and their Hessian, not their outputs: the masks are those without the update."""
    plain, updated = tiny_model("llama"), tiny_model("llama")
    masked(plain, tokens, criterion, feed_forward=False)
    masked(updated, tokens, criterion, feed_forward=False, update=True)
    for name, w in weights(plain).items():
        assert torch.equal(w == 0, weights(updated)[name] == 0), name


def test_sparsity_zero_is_the_identity(tokens):
    model = tiny_model("llama")
    before = {name: w.clone() for name, w in model.named_parameters()}
    for criterion in ("wanda", "sparsegpt", "magnitude", "taylor"):
        found = masked(model, tokens, criterion, sparsity=0.0, refine=None if criterion == "sparsegpt" else "dsnot")
        assert found.achieved == found.requested == 0.0
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models_get_as_many_zeros(dtype, tokens):
    for criterion in ("wanda", "sparsegpt", "taylor"):
        model = tiny_model("llama", dtype=dtype)
        found = masked(model, tokens, criterion, pattern="2:4")
        assert all(int((w == 0).sum()) == w.numel() // 2 for w in weights(model).values()) and found.achieved == 0.5


def test_an_offloaded_model_is_masked_as_a_loaded_one(tokens):
    loaded, offloaded = tiny_model("llama"), cpu_offload(tiny_model("llama"))
    flags = {name: p.requires_grad for name, p in offloaded.named_parameters()}
    masked(loaded, tokens)
    masked(offloaded, tokens)
    with torch.no_grad():
        torch.testing.assert_close(offloaded(tokens).logits, loaded(tokens).logits)
    assert {name: p.requires_grad for name, p in offloaded.named_parameters()} == flags


def test_a_model_of_inference_mode_is_masked_where_no_gradient_is_needed(tokens):
    with torch.inference_mode():
        model = tiny_model("llama")
    assert masked(model, tokens, "magnitude").achieved == 0.5
    with pytest.raises(UnsupportedModelError, match="can have no gradients"):
        masked(model, tokens, "taylor")


def test_the_groups_are_the_literatures():
    """Magnitude and RIA compare over the matrix, Wanda and its kin within a row."""
    depth = tiny_model("llama").config
    groups = {
        name: MoreauPrunerConfig(criterion=name, pattern="unstructured").resolve(depth).mask.group
        for name in CRITERIA
        if CRITERIA.get(name).masks
    }
    assert {name for name, group in groups.items() if group == "layer"} == {
        "magnitude", "magnitude-l2", "ria", "stochria", "sparsegpt",
    }  # fmt: skip


def test_damping_is_on_record_where_it_is_used(tokens):
    model_config = tiny_model("llama").config
    resolved = MoreauPrunerConfig(criterion="wanda", pattern="2:4", update=True, damping=0.5).resolve(model_config)
    assert resolved.mask.damping == 0.5
    assert MoreauPrunerConfig(criterion="wanda", pattern="2:4", update=True).resolve(model_config).mask.damping == 0.01


def test_scope_and_group_are_kept(tokens):
    model = tiny_model("llama")
    found = masked(
        model, tokens, "magnitude", sparsity=0.5, attention_layers=(1, 2), mlp_layers=(0, 1), mask_group="layer"
    )
    zeros = {name: int((w == 0).sum()) for name, w in weights(model).items()}
    inside = {name for name in zeros if name.startswith(("layers.1.self_attn", "layers.0.mlp"))}
    assert {name for name, count in zeros.items() if count} == inside == {one.name for one in found.matrices}
    rows = {int((row == 0).sum()) for row in weights(model)["layers.0.mlp.up_proj"]}
    assert len(rows) > 1  # whole matrices were compared, not rows


# On an error the model is as it was


def test_an_error_in_a_later_layer_leaves_every_layer_as_it_was(tokens):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[2].input_layernorm.weight[0] = torch.inf
    before = {name: w.clone() for name, w in model.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"layers\.2"):
        masked(model, tokens)
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_an_interruption_leaves_every_layer_as_it_was(tokens, monkeypatch):
    model = tiny_model("llama")
    before = {name: w.clone() for name, w in model.named_parameters()}
    written = []

    def put(*parameter, put=sparsify_module.put):
        put(*parameter)
        written.append(parameter)
        if len(written) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(sparsify_module, "put", put)
    with pytest.raises(KeyboardInterrupt):
        masked(model, tokens)
    assert len(written) == 10
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_weights_that_are_not_finite_are_refused_by_name(tokens):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj: the scores of magnitude are not finite"):
        masked(model, tokens, "magnitude")


def test_an_export_that_cannot_be_is_refused_before_any_zero(tokens, tokenizer):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    scope = {"attention_layers": (1, 2), "mlp_layers": (1, 2), "unit_ratio": 0.5}
    MoreauPruner(MoreauPrunerConfig(criterion="magnitude", **scope)).prune(model)  # layers of different shape
    before = {name: w.clone() for name, w in model.named_parameters()}
    pruner = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", pattern="1:2", export="stock"))
    with pytest.raises(ExportError):
        pruner.prune(model)
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_a_pattern_that_does_not_fit_is_named_before_anything_is_done(tokens):
    model = tiny_model("llama", intermediate_size=26)
    with pytest.raises(
        PlanError, match=r"layers\.0\.mlp\.down_proj: 26 inputs are no multiple of 4, so 2:4 does not fit"
    ):
        masked(model, tokens, pattern="2:4")
    assert all((w != 0).all() for w in weights(model).values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 0.5}, "sparsity: concerns masks"),
        ({"refine": "dsnot"}, "refine: concerns masks"),
        ({"update": True}, "update: concerns masks"),
        ({"pattern": "unstructured", "sparsity": 1.0}, r"sparsity: 1.0 is not a share in \[0, 1\)"),
        ({"pattern": "2:4", "sparsity": 0.5}, "sparsity: '2:4' says itself"),
        ({"pattern": "2:4", "pruning_ratio": 0.2}, "pruning_ratio: concerns units"),
        ({"pattern": "2:4", "targets": ("hidden",)}, "targets: masks are of attention and mlp"),
        ({"pattern": "2:4", "budget": "global"}, "budget: '2:4' gives every matrix the same share"),
        (
            {"pattern": "unstructured", "budget": "cosine"},
            "budget: 'cosine' spreads units; a mask takes",
        ),
        ({"pattern": "2:4", "protect": 0.1}, "protect: concerns MLP channels"),
        ({"pattern": "2:4", "protect_outliers": 5}, "protect_outliers: concerns heads and channels"),
        ({"pattern": "unstructured", "criterion": "sparsegpt", "budget": "global"}, "budget: sparsegpt decides within"),
        ({"mask_group": "row"}, "mask_group: concerns masks"),
        (
            {"pattern": "unstructured", "criterion": "sparsegpt", "mask_group": "row"},
            "mask_group: sparsegpt compares within",
        ),
        ({"pattern": "2:4", "mask_group": "row"}, "mask_group: '2:4' compares every 4 inputs; leave 'row' out"),
        (
            {"pattern": "unstructured", "budget": "global", "mask_group": "row"},
            "mask_group: budget 'global' compares all",
        ),
        ({"pattern": "2:4", "multiple_of": 8}, "multiple_of: concerns units"),
        ({"pattern": "2:4", "refine": "dsnott"}, "Did you mean 'dsnot'"),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        MoreauPrunerConfig(**fields)


# The pruner and the verb


def test_a_masked_model_is_a_stock_checkpoint(tiny_folder, tokenizer, text, tmp_path, command):
    (tmp_path / "text.txt").write_text(text)
    flags = ("--criterion", "wanda", "--pattern", "2:4", "--refine", "dsnot", "--samples", "4", "--seq-len", "32")
    arguments = ("prune", tiny_folder, "--calibration", tmp_path / "text.txt", *flags, "-o", tmp_path / "out")
    code, out, err = command(*arguments, "--evaluate", tmp_path / "text.txt", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["export"] == "llama" and found["parameters_before"] == found["parameters_after"]
    assert found["sparsity"]["achieved"] == 0.5 and found["sparsity"]["holds"]
    records = Records.load(tmp_path / "out")
    assert records.sparsity.pattern == "2:4" and records.plan.contributions == {}
    card = (tmp_path / "out" / "README.md").read_text()
    of_model = f"{100 * records.sparsity.of_model:.1f} % of all its parameters"
    assert f"50.0 % of the weights of 21 matrices of its attention and MLP, {of_model}, were set to zero (2:4)" in card
    assert "The pattern 2:4 holds in each of these matrices." in card
    assert "pruning_scores" not in card and "structur" not in card and "KV groups removed" not in card
    model = load_model(str(tmp_path / "out"))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert all(int((w == 0).sum()) == w.numel() // 2 for w in weights(model).values())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and "auto_map" not in config
    assert command("report", tmp_path / "out", "-o", tmp_path / "page.html", "--no-generate")[0] == 0
    assert f"<td>{of_model.removesuffix('of all its parameters')}of the parameters (2:4)</td>" in (
        tmp_path / "page.html"
    ).read_text(encoding="utf-8")
    code, out, err = command("apply", tmp_path / "out", tiny_folder, "-o", tmp_path / "again")
    assert code == 2 and "the plan is of a mask (2:4)" in err
    code, out, err = command("plan", tiny_folder, "--pattern", "2:4", "-o", tmp_path / "plan.json")
    assert code == 2 and "a mask has no plan of units; use prune" in err
    code, out, err = command("plan", tiny_folder, "--pattern", "2:4", "--dry-run")
    assert code == 2 and "a mask has no plan of units; use prune" in err


RECORDS = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(3, 9)]


def test_tuning_keeps_the_zeros_and_merges_what_was_trained(tokenizer, tokens, tmp_path):
    """The merged model is the masked one with the masked adapter on it: y = x(W + α/r·BA ⊙ M)ᵀ."""
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    pruner = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", pattern="2:4"), tokenizer=tokenizer)
    pruner.prune(model)
    zeros = {name: w == 0 for name, w in weights(model).items()}
    masked_model = copy.deepcopy(model)
    with torch.no_grad():
        untuned = model(tokens).logits
    settings = RecoveryConfig(max_steps=3, learning_rate=5e-2, sequence_length=256, batch_size=4, dropout=0.0)
    pruner.recover(RECORDS, settings)
    for name, w in weights(model).items():
        assert torch.equal(w == 0, zeros[name]), name
    adapter = pruner._recovery.adapter
    scale = adapter.config.lora_alpha / adapter.config.r
    with torch.no_grad():
        for name, w in weights(masked_model).items():
            a, b = (adapter.weights[f"base_model.model.model.{name}.lora_{side}.weight"] for side in "AB")
            w += (scale * b @ a).masked_fill(zeros[name], 0)
        assert not any("lm_head" in key for key in adapter.weights)  # peft's all-linear leaves the head out
        torch.testing.assert_close(model(tokens).logits, masked_model(tokens).logits, rtol=1e-4, atol=1e-5)
        assert (model(tokens).logits - untuned).abs().max() > 0.01  # it learnt something
    pruner.save_pretrained(tmp_path / "out")
    assert Records.load(tmp_path / "out").sparsity.holds


def test_within_training_the_adapter_is_masked_too(tokens):
    """The loss that is trained is that of the merged model, not of an adapter that fills the zeros."""
    model = tiny_model("llama")
    masked(model, tokens, "magnitude", pattern="2:4")
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    with lora_on(model, lora, keep_zeros=True) as tuned:
        within = tuned(tokens).logits.detach()
        tuned(tokens, labels=tokens).loss.backward()
        gradients = [p.grad for name, p in tuned.named_parameters() if "lora_" in name]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, within, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_chain_masks_and_tunes(tiny_folder, text, tmp_path, command, unverified):
    (tmp_path / "text.txt").write_text(text)
    flags = ("--criterion", "magnitude", "--pattern", "unstructured", "--sparsity", "0.3", "-o", tmp_path / "out")
    tuned = ("--recover-data", tmp_path / "text.txt", "--recover-max-steps", "2", "--recover-seq-len", "32")
    code, out, err = command("prune", tiny_folder, *flags, *tuned)
    assert code == 0, err
    assert (
        out.startswith("zeros       29.99 % of the weights in scope")
        and "; unstructured\n" in out
        and "training    2 steps" in out
        and "out-recovered" in out
    )
    model = load_model(str(tmp_path / "out-recovered"))
    assert sum(int((w == 0).sum()) for w in weights(model).values()) == sum(
        one.zeros for one in Records.load(tmp_path / "out").sparsity.matrices
    )


def test_a_mask_that_fails_writes_nothing(tiny_folder, text, tmp_path, command):
    (tmp_path / "text.txt").write_text(text)
    flags = ("--criterion", "wanda", "--pattern", "3:7", "--calibration", tmp_path / "text.txt", "--seq-len", "32")
    code, out, err = command("prune", tiny_folder, *flags, "-o", tmp_path / "out")
    assert (code, out) == (2, "") and "no multiple of 7, so 3:7 does not fit" in err
    assert not (tmp_path / "out").exists()
