"""Every criterion against its formula, computed here independently; and the model is left as it was."""

import pytest
import torch

from optimum_moreau.config import MoreauPrunerConfig
from optimum_moreau.config.settings import settings_of
from optimum_moreau.criteria import Criterion
from optimum_moreau.criteria.moreau_steps import released_shrink
from optimum_moreau.criteria.scoring_run import Scoring
from optimum_moreau.envelope import Noise
from optimum_moreau.models.units import model_shape
from optimum_moreau.registry import CRITERIA
from optimum_moreau.scoring.scores import score_units
from tests.envelope.oracle import noise_of
from tests.tiny import tiny_model

ALL_LAYERS = {"attention_layers": (0, 3), "mlp_layers": (0, 3)}
FEW = {"passes": 2, "steps": 3}


def config(criterion, model, **changes):
    few = {
        key: value for key, value in FEW.items() if key in {one.name for one in settings_of(CRITERIA.get(criterion))}
    }
    return MoreauPrunerConfig(**{"criterion": criterion, **ALL_LAYERS, **few, **changes}).resolve(model.config)


def scores(model, tokens, criterion, **changes):
    return score_units(model, model_shape(model), tokens, config(criterion, model, **changes)).values


def by_hand(model, element):
    """Unit scores of `element(name)` → element scores, by a loop over heads and channels of the LLaMA layer."""
    found = {}
    for i, layer in enumerate(model.model.layers):
        prefix, head = f"model.layers.{i}", layer.self_attn.head_dim
        groups = layer.self_attn.k_proj.out_features // head
        rep = layer.self_attn.q_proj.out_features // head // groups
        q, k, v, o = (element(f"{prefix}.self_attn.{m}_proj.weight") for m in "qkvo")
        values = []
        for group in range(groups):
            total = k[group * head : (group + 1) * head].sum() + v[group * head : (group + 1) * head].sum()
            for query in range(groups * rep):
                if query // rep == group:  # query head h reads KV head h // n_rep
                    rows = slice(query * head, (query + 1) * head)
                    total = total + q[rows].sum() + o[:, rows].sum()
            values.append(total)
        found[f"layers.{i}.attention"] = torch.stack(values)
        gate, up, down = (element(f"{prefix}.mlp.{m}_proj.weight") for m in ("gate", "up", "down"))
        found[f"layers.{i}.mlp"] = torch.stack(
            [gate[c].sum() + up[c].sum() + down[:, c].sum() for c in range(len(gate))]
        )
    return found


def assert_same(found, expected, rtol=1e-4):
    assert found.keys() == expected.keys()
    for where, value in expected.items():
        torch.testing.assert_close(found[where], value.double(), rtol=rtol, atol=1e-7, msg=where)


def gradients(model, tokens, offsets=None):
    """∇ of the mean loss by plain autograd, at w + offsets."""
    weights = dict(model.named_parameters())
    original = {name: w.detach().clone() for name, w in weights.items()}
    with torch.no_grad():
        for name, offset in (offsets or {}).items():
            weights[name] += offset
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    found = {name: w.grad.clone() for name, w in weights.items()}
    model.zero_grad()
    with torch.no_grad():
        for name, w in weights.items():
            w.copy_(original[name])
    return found


def in_scope(model):
    return [name for name, _ in model.named_parameters() if "_proj.weight" in name]


def test_magnitude_is_the_sum_of_powers(llama):
    weights = dict(llama.named_parameters())
    assert_same(scores(llama, None, "magnitude"), by_hand(llama, lambda name: weights[name].detach().abs()))
    assert_same(scores(llama, None, "magnitude-l2"), by_hand(llama, lambda name: weights[name].detach() ** 2))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_taylor_is_autograd_by_hand(tokens, kv_heads):
    model = tiny_model("llama", num_key_value_heads=kv_heads)
    w, g = dict(model.named_parameters()), gradients(model, tokens)
    assert_same(scores(model, tokens, "taylor"), by_hand(model, lambda name: (w[name].detach() * g[name]).abs()))


def test_taylor_second_and_mixed_use_the_mean_of_squared_sample_gradients(llama, tokens):
    w, g = {n: p.detach() for n, p in llama.named_parameters()}, gradients(llama, tokens)
    samples = [gradients(llama, tokens[n : n + 1]) for n in range(len(tokens))]
    h = {name: sum(sample[name] ** 2 for sample in samples) / len(samples) for name in g}
    second = by_hand(llama, lambda name: (w[name] ** 2 * h[name]).abs())
    mixed = by_hand(llama, lambda name: (w[name] * g[name] - 0.5 * w[name] ** 2 * h[name]).abs())
    for batch_size in (1, 4):  # samples pass one by one whatever the batch size
        assert_same(scores(llama, tokens, "taylor-second", batch_size=batch_size), second)
        assert_same(scores(llama, tokens, "taylor-mixed", batch_size=batch_size), mixed)


def test_taylor_vector_takes_the_absolute_value_of_each_matrix_sum(llama, tokens):
    w, g = dict(llama.named_parameters()), gradients(llama, tokens)
    found = scores(llama, tokens, "taylor-vector")["layers.1.mlp"]
    signed = {m: (w[n].detach() * g[n]) for m in ("gate", "up", "down") if (n := f"model.layers.1.mlp.{m}_proj.weight")}
    expected = signed["gate"].sum(1).abs() + signed["up"].sum(1).abs() + signed["down"].sum(0).abs()
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-7)


def test_smoothgrad_averages_importances_over_noisy_passes(llama, tokens):
    w = {name: p.detach() for name, p in llama.named_parameters()}
    total = {name: torch.zeros_like(x) for name, x in w.items()}
    for i in range(2):
        z = {name: noise_of(Noise(0.05), w[name], name, 0, i) for name in in_scope(llama)}
        g = gradients(llama, tokens, z)
        for name in z:
            total[name] += (g[name] * w[name]).abs() / 2
    assert_same(scores(llama, tokens, "smoothgrad"), by_hand(llama, total.get))


def algorithm_1(model, tokens, *, rho, gamma, sigma, steps, relative=True, m=1, last=1, prox=lambda name, d: d):
    """A literal restatement of Algorithm 1 on the weights in scope."""
    w = {name: model.get_parameter(name).detach().clone() for name in in_scope(model)}
    delta = {name: torch.zeros_like(x) for name, x in w.items()}
    iterates = []
    for t in range(steps):
        g = {name: torch.zeros_like(x) for name, x in w.items()}
        for i in range(m):
            z = {n: noise_of(Noise(sigma, relative), w[n], n, t, i) for n in w}
            drawn = gradients(model, tokens, {name: delta[name] + z[name] for name in w})
            g = {name: g[name] + drawn[name] / m for name in w}
        # w^(t+1) = (1 − γ/ρ) w^(t) − γ (g − w/ρ), written for the weights themselves
        for name, x in w.items():
            moved = (1 - gamma / rho) * (x + delta[name]) - gamma * (g[name] - x / rho)
            delta[name] = prox(name, moved - x)
        iterates.append(dict(delta))
    return {name: (sum(d[name] for d in iterates[-last:]) / last / rho * w[name]).abs() for name in w}


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        ({"noise_samples": 2}, {"m": 2}),
        ({"average_last": 2}, {"last": 2}),
        ({"noise": "absolute", "sigma": 0.02}, {"relative": False, "sigma": 0.02}),
    ],
)
def test_moreau_is_algorithm_1(llama, tokens, changes, settings):
    expected = algorithm_1(llama, tokens, **{"rho": 0.05, "gamma": 0.01, "sigma": 0.05, "steps": 3, **settings})
    assert_same(scores(llama, tokens, "moreau", step_size=0.01, **changes), by_hand(llama, expected.get), rtol=1e-3)


@pytest.mark.parametrize("threshold", [{"eta": 0.05}, {"eta_quantile": 0.3}])
def test_moreau_gs_is_algorithm_1_with_the_group_threshold_per_row(llama, tokens, threshold):
    def prox(name, d):
        norms = d.norm(dim=1)
        alpha = 0.01 * threshold["eta"] if "eta" in threshold else torch.quantile(norms, threshold["eta_quantile"])
        rows = [torch.zeros_like(r) if n <= alpha else (1 - alpha / n) * r for r, n in zip(d, norms, strict=True)]
        return torch.stack(rows)

    expected = algorithm_1(llama, tokens, rho=0.2, gamma=0.01, sigma=0.05, steps=3, prox=prox)
    found = scores(llama, tokens, "moreau-gs", step_size=0.01, **threshold)
    assert_same(found, by_hand(llama, expected.get), rtol=3e-3)  # a row just above α keeps few digits of its norm


def test_unit_groups_threshold_whole_units(llama, tokens):
    """With the quantile of a layer's unit norms, about that share of its units scores zero."""
    found = scores(llama, tokens, "moreau-gs", channel_group="unit", eta_quantile=0.5, steps=1)
    for layer in range(3):
        values = torch.cat([found[f"layers.{layer}.attention"], found[f"layers.{layer}.mlp"]])
        assert int((values == 0).sum()) == 13  # the median of 26 norms lies between the 13th and the 14th


def test_the_papers_eta_is_inert(llama, tokens):
    """At η = 5e-6 the kept units of moreau-gs equal those of moreau with the same ρ and γ."""
    same = {"rho": 0.2, "step_size": 2e-4}
    inert, plain = scores(llama, tokens, "moreau-gs", eta=5e-6, **same), scores(llama, tokens, "moreau", **same)
    for where in plain:
        assert torch.equal(inert[where].argsort(), plain[where].argsort())


@pytest.mark.parametrize("noise", ["relative", "absolute"])
@pytest.mark.parametrize("criterion", ["moreau", "moreau-gs"])
def test_released_is_the_published_update(llama, tokens, criterion, noise):
    """δ ← δ − γg, no ρ; rows kept where RMS > ηγ but scaled by 1 − η/RMS; mean of the last five of T = 6 iterates."""
    gamma, rho, eta = 0.01, 0.2, 0.05
    w = {name: p.detach().clone() for name, p in llama.named_parameters()}
    delta = {name: torch.zeros_like(x) for name, x in w.items()}
    iterates = []
    for t in range(6):
        z = {n: noise_of(Noise(0.02, noise == "relative"), x, n, t, 0) for n, x in w.items()}
        g = gradients(llama, tokens, {name: delta[name] + z[name] for name in w})
        for name in w:
            d = delta[name] - gamma * g[name]
            if criterion == "moreau-gs":
                rms = d.pow(2).mean(-1, keepdim=True).sqrt()
                d = torch.where(rms > eta * gamma, (1 - eta / rms) * d, torch.zeros_like(d))
            delta[name] = d
        iterates.append(dict(delta))
    mean = {name: sum(iterate[name] for iterate in iterates[-5:]) / 5 for name in w}
    threshold = {"eta": eta} if criterion == "moreau-gs" else {}
    settings = {"released": True, "rho": rho, "step_size": gamma, "steps": 6, "sigma": 0.02, "noise": noise}
    found = scores(llama, tokens, criterion, **settings, **threshold)
    assert_same(found, by_hand(llama, lambda name: (mean[name] / rho * w[name]).abs()))


def test_released_shrink_flips_signs_between_eta_gamma_and_eta():
    row = torch.tensor([[1e-9, -1e-9], [1e-4, -1e-4], [1.0, -1.0]])
    factor = released_shrink(row, eta=1e-2, step_size=1e-3)[:, 0]
    assert factor[0] == 0
    assert factor[1] < 0
    assert 0 < factor[2] < 1


def test_random_is_seeded_and_differs_between_seeds(llama):
    first, again = scores(llama, None, "random", seed=1), scores(llama, None, "random", seed=1)
    other = scores(llama, None, "random", seed=2)
    assert all(torch.equal(first[where], again[where]) for where in first)
    assert any(not torch.equal(first[where].argsort(), other[where].argsort()) for where in first)


@pytest.mark.parametrize("aggregation", ["sum", "mean", "max", "prod"])
def test_aggregation_combines_the_sums_of_the_matrices(llama, aggregation):
    w = llama.model.layers[0].mlp
    sums = torch.stack(
        [
            w.gate_proj.weight.abs().sum(1, dtype=torch.float64),
            w.up_proj.weight.abs().sum(1, dtype=torch.float64),
            w.down_proj.weight.abs().sum(0, dtype=torch.float64),
        ]
    )
    expected = {"sum": sums.sum(0), "mean": sums.mean(0), "max": sums.max(0).values, "prod": sums.prod(0)}
    found = scores(llama, None, "magnitude", aggregation=aggregation)["layers.0.mlp"]
    torch.testing.assert_close(found, expected[aggregation].detach())


def state(model):
    return (
        {name: p.detach().clone() for name, p in model.named_parameters()},
        {name: (p.requires_grad, p.dtype, p.grad) for name, p in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
    )


def assert_untouched(model, before):
    after = state(model)
    assert all(torch.equal(after[0][name].nan_to_num(), w.nan_to_num()) for name, w in before[0].items())
    assert after[1:] == before[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_scoring_leaves_the_model_as_it_was(tokens, criterion, dtype):
    model = tiny_model("llama", dtype=dtype).train()
    model.model.layers[1].mlp.eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = state(model)
    found = scores(model, tokens, criterion)
    assert_untouched(model, before)
    assert all(value.dtype == torch.float64 and torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if CRITERIA.get(name).needs])
def test_an_error_while_scoring_leaves_the_model_as_it_was(llama, tokens, criterion):
    llama.model.layers[0].input_layernorm.weight.data[0] = float("inf")
    before = state(llama.train())
    with pytest.raises(ArithmeticError):
        scores(llama, tokens, criterion)
    assert_untouched(llama, before)


@pytest.mark.parametrize("criterion", ["taylor", "moreau"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_scores_rank_units_as_float32_does(tokens, criterion, dtype):
    full = scores(tiny_model("llama"), tokens, criterion)["layers.1.mlp"]
    half = scores(tiny_model("llama", dtype=dtype), tokens, criterion)["layers.1.mlp"]
    assert torch.corrcoef(torch.stack([full, half]))[0, 1] > 0.98


def test_products_are_taken_in_float32():
    """In float16 a gradient of 1e-4 times a weight of 1e-4 is 1e-8, which underflows to zero."""
    model = tiny_model("llama", dtype=torch.float16)
    found = {}
    run = Scoring(model, model_shape(model).blocks[1:2], [], 0, config("taylor", model), found.__setitem__)
    for name in run.names:
        model.get_parameter(name).data.fill_(1e-4)
        run.emit_saliency(name, torch.full_like(model.get_parameter(name), 1e-4))
    assert found.keys() == set(run.names) and all((element > 0).all() for element in found.values())


def test_gradients_do_not_depend_on_the_batch_size(llama, tokens):
    one, all_at_once = (scores(llama, tokens, "moreau", batch_size=n) for n in (1, 4))
    for where, value in one.items():
        torch.testing.assert_close(value, all_at_once[where], rtol=1e-4, atol=1e-9)


def test_scores_are_the_same_inside_a_callers_inference_mode(llama, tokens):
    with torch.inference_mode():
        inside = scores(llama, tokens.clone(), "moreau")
    outside = scores(llama, tokens, "moreau")
    assert all(torch.equal(inside[where], outside[where]) for where in outside)


def test_every_criterion_describes_itself():
    for name in CRITERIA:
        criterion = CRITERIA.get(name)
        assert issubclass(criterion, Criterion)
        assert criterion.name == name
        assert criterion.summary
        assert criterion.paper.startswith("https://")
        assert all(one.help for one in settings_of(criterion))
