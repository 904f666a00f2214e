"""The envelope's gradient against closed forms, its theorem, and its definition."""

import math

import pytest
import torch

from optimum_moreau.envelope import LossGradient, Noise, scoring_mode, shrink, smoothed_gradient
from optimum_moreau.errors import NonFiniteError
from tests.envelope.oracle import moreau_gradient, noise_of
from tests.tiny import tiny_model

NONE = Noise(0.0)
GENERATOR = torch.Generator().manual_seed(0)
W = {"a": torch.randn(4, 3, generator=GENERATOR), "b": torch.randn(2, 5, generator=GENERATOR)}
# f(w) = Σ ½ λ (w − c)², elementwise curvature λ
CURVATURE = {name: torch.rand(w.shape, generator=GENERATOR) + 0.5 for name, w in W.items()}
CENTRE = {name: torch.randn(w.shape, generator=GENERATOR) for name, w in W.items()}


def quadratic(weights, at):
    return {name: CURVATURE[name] * (w - CENTRE[name]) for name, w in weights.items()}


def prox_rows(alpha):
    return lambda delta: {name: d * shrink(d.norm(dim=1, keepdim=True), alpha) for name, d in delta.items()}


def test_gradient_of_a_quadratic_is_its_closed_form():
    rho = 0.3
    found = moreau_gradient(quadratic, W, rho=rho, step_size=0.05, steps=2000, noise=NONE)
    for name, w in W.items():
        # v* = argmin ½λ(v−c)² + (v−w)²/(2ρ)  ⇒  ∇f^ρ(w) = λ/(1 + ρλ)·(w − c)
        expected = CURVATURE[name] / (1 + rho * CURVATURE[name]) * (w - CENTRE[name])
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)


def test_relative_steps_give_each_matrix_its_own_closed_form():
    """ρ_W = ρ̂·‖W‖/‖∇f_W‖ in the closed form above."""
    found = moreau_gradient(quadratic, W, rho=0.1, step_size=0.02, steps=500, noise=NONE, relative=True)
    for name, g in quadratic(W, "").items():
        rho = 0.1 * W[name].norm() / g.norm()
        torch.testing.assert_close(found[name], g / (1 + rho * CURVATURE[name]), atol=1e-5, rtol=1e-5)
        assert (rho * found[name]).norm() <= 0.1 * W[name].norm()  # δ is at most the share ρ̂ of a convex loss's w


@pytest.mark.parametrize("scale", [1e-3, 64.0])
def test_relative_steps_know_no_scale_of_the_loss_or_of_the_weights(scale):
    """∇ of c·f is c times as large; where w is k times as large in the same function, |∇ ⊙ w| is the same."""
    settings = {"rho": 0.3, "step_size": 0.1, "steps": 4, "noise": Noise(0.1, seed=4)}
    louder = {"gradient": lambda w, at: {n: scale * g for n, g in quadratic(w, at).items()}, "weights": W}
    larger = {
        "gradient": lambda w, at: {
            n: g / scale for n, g in quadratic({n: x / scale for n, x in w.items()}, at).items()
        },
        "weights": {name: scale * w for name, w in W.items()},
    }
    found = moreau_gradient(quadratic, W, relative=True, **settings)
    for changed, factor in ((louder, scale), (larger, 1 / scale)):
        relative = moreau_gradient(**changed, relative=True, **settings)
        absolute = moreau_gradient(**changed, **settings)
        for name, g in found.items():
            torch.testing.assert_close(relative[name], factor * g, rtol=1e-4, atol=1e-5 * factor)
            assert not torch.allclose(absolute[name], factor * g, rtol=1e-2, atol=0)


def test_a_matrix_without_gradient_or_without_weights_gets_a_number():
    weights = {"flat": torch.ones(2, 2), "zero": torch.zeros(2, 2)}
    slopes = {"flat": torch.zeros(2, 2), "zero": torch.ones(2, 2)}
    found = moreau_gradient(
        lambda w, at: dict(slopes), weights, rho=0.1, step_size=0.1, steps=2, noise=NONE, relative=True
    )
    for name, g in slopes.items():
        torch.testing.assert_close(found[name], g)


def test_group_sparse_gradient_of_a_quadratic_is_its_closed_form():
    """With one curvature λ for all: δ* = GST_{η/(λ+1/ρ)}(−λ(w−c)/(λ+1/ρ)) per row."""
    rho, eta, step_size, curvature = 0.3, 1.0, 0.05, 0.8
    found = moreau_gradient(
        lambda weights, at: {name: curvature * (w - CENTRE[name]) for name, w in weights.items()},
        W,
        rho=rho,
        step_size=step_size,
        steps=2000,
        noise=NONE,
        prox=prox_rows(step_size * eta),
    )
    rows_at_zero = 0
    for name, w in W.items():
        stiffness = curvature + 1 / rho
        free = -curvature * (w - CENTRE[name]) / stiffness
        norm = free.norm(dim=1, keepdim=True)
        delta = free * (1 - eta / stiffness / norm).clamp_min(0)
        rows_at_zero += int((norm <= eta / stiffness).sum())
        torch.testing.assert_close(found[name], -delta / rho, atol=1e-5, rtol=1e-5)
    assert 0 < rows_at_zero < 6  # both branches of the threshold were taken


def test_one_step_without_noise_is_minus_gamma_times_the_gradient():
    """δ = −γ·∇f, so the result −δ/ρ is (γ/ρ)·∇f."""
    found = moreau_gradient(quadratic, W, rho=0.5, step_size=0.01, steps=1, noise=NONE)
    for name, g in quadratic(W, "").items():
        torch.testing.assert_close(-0.5 * found[name], -0.01 * g)


def smoothed_abs(beta, sigma):
    """∇ of E_z β|w+z| in closed form, β·erf(w/(σ√2)): convex for β > 0, weakly convex for β < 0; |β|-Lipschitz f."""
    return lambda weights, at: {"w": beta * torch.erf(weights["w"] / (sigma * math.sqrt(2)))}


def steepest(beta, sigma, rho, prox=None):
    """The largest slope of the (h-)MoreauGrad on a grid; every row is a group of its own."""
    w = torch.linspace(-2, 2, 801, dtype=torch.float64)[:, None]
    settings = {"rho": rho, "step_size": rho / 5, "steps": 1500, "noise": NONE, "prox": prox}
    gradient = moreau_gradient(smoothed_abs(beta, sigma), {"w": w.float()}, **settings)["w"][:, 0].double()
    return float((gradient[1:] - gradient[:-1]).abs().max() / (w[1, 0] - w[0, 0]))


@pytest.mark.parametrize("eta", [None, 0.1])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("rho_share", [0.1, 0.5, 0.9])
def test_moreau_gradients_are_lipschitz_as_theorems_1_and_2_say(rho_share, sign, eta):
    """f is β-Lipschitz, 0 < ρ < σ/β, β ≤ σ: ∇f_σ^ρ is σ/min(σρ, σ − ρβ)-Lipschitz, with and without group sparsity."""
    beta, sigma = 0.4, 0.5
    rho = rho_share * sigma / beta
    prox = None if eta is None else prox_rows(rho / 5 * eta)
    assert steepest(sign * beta, sigma, rho, prox) <= sigma / min(sigma * rho, sigma - rho * beta) * 1.01


def test_the_proofs_constant_holds_where_that_of_the_theorem_does_not():
    """For β > σ the last line of the proof should read max(1/ρ, β/(σ − ρβ)); the stated σ/min(σρ, σ − ρβ) is too small.

    −β|w| smoothed is as curved as a β-Lipschitz function gets here, and its MoreauGrad exceeds the stated constant.
    """
    beta, sigma = 2.0, 0.5
    rho = 0.9 * sigma / beta
    found = steepest(-beta, sigma, rho)
    # closed form at w = 0: h/(1 + ρh) with h = −β·√(2/π)/σ
    h = -beta * math.sqrt(2 / math.pi) / sigma
    assert found == pytest.approx(abs(h / (1 + rho * h)), rel=0.01)
    assert found > sigma / min(sigma * rho, sigma - rho * beta)
    assert found <= max(1 / rho, beta / (sigma - rho * beta))


def test_smoothed_gradient_converges_to_the_smoothed_loss_gradient():
    """For |w|, E ∇|w+z| = erf(w/(σ√2)) with absolute noise σ."""
    w = {"w": torch.tensor([-0.5, 0.0, 0.2, 1.0])}
    noise = Noise(0.4, relative=False, seed=3)
    found = smoothed_gradient(lambda weights, at: {"w": weights["w"].sign()}, w, noise, draws=4000)
    torch.testing.assert_close(found["w"], torch.erf(w["w"] / (0.4 * math.sqrt(2))), atol=0.05, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 100.0])
def test_group_soft_threshold_is_its_definition(alpha):
    v = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    v[2] = 0
    found = v * shrink(v.norm(dim=1, keepdim=True), alpha)
    for row, got in zip(v, found, strict=True):
        norm = math.sqrt(sum(float(x) ** 2 for x in row))
        expected = torch.zeros(4) if norm <= alpha else (1 - alpha / norm) * row
        torch.testing.assert_close(got, expected)


def test_noise_depends_on_seed_step_draw_and_name_only():
    w = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    noise = Noise(0.1, seed=1)
    first = noise_of(noise, w, "x", 2, 3)
    noise_of(noise, w, "y", 2, 3)  # another draw in between changes nothing
    assert torch.equal(first, noise_of(noise, w, "x", 2, 3))
    others = [noise_of(Noise(0.1, seed=2), w, "x", 2, 3), noise_of(noise, w, "x", 3, 3), noise_of(noise, w, "x", 2, 0)]
    assert not any(torch.equal(first, other) for other in [*others, noise_of(noise, w, "y", 2, 3)])


def test_relative_noise_scales_with_the_weight_and_absolute_noise_does_not():
    w = torch.full((400, 400), 3.0)
    w[:, 0] = 0
    relative = noise_of(Noise(0.1, relative=True), w, "x", 0, 0)
    absolute = noise_of(Noise(0.1, relative=False), w, "x", 0, 0)
    assert not relative[:, 0].any()
    assert relative[:, 1:].std() == pytest.approx(0.3, rel=0.02)
    assert absolute.std() == pytest.approx(0.1, rel=0.02)
    assert abs(float(absolute.mean())) < 0.1 * 5 / 400


def test_average_last_is_the_mean_of_the_last_iterates():
    settings = {"rho": 0.3, "step_size": 0.05, "noise": Noise(0.1, seed=4)}
    singles = [moreau_gradient(quadratic, W, steps=t, **settings) for t in (4, 5, 6)]
    mean = moreau_gradient(quadratic, W, steps=6, average_last=3, **settings)
    for name in W:
        torch.testing.assert_close(mean[name], sum(single[name] for single in singles) / 3)


def test_loss_gradient_equals_autograd_whatever_the_batches(tokens):
    model = tiny_model("qwen2", tie_word_embeddings=True)
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"]
    weights = {name: model.get_parameter(name) for name in names}
    model(input_ids=tokens, labels=tokens).loss.backward()
    expected = {name: model.get_parameter(name).grad.clone() for name in names}
    model.zero_grad()
    for batch_size in (1, 3, 4):
        with scoring_mode(model):
            found = LossGradient(model, list(tokens.split(batch_size)))(weights, at="")
        for name in names:
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4)


def test_non_finite_weights_stop_with_step_and_layer(llama, tokens):
    name = "model.layers.1.mlp.up_proj.weight"
    llama.get_parameter(name).data[3, 5] = float("nan")
    weights = {name: llama.get_parameter(name)}
    with scoring_mode(llama), pytest.raises(NonFiniteError, match=r"step 1, draw 1: the loss is nan.*layers\.1\.mlp"):
        moreau_gradient(LossGradient(llama, [tokens]), weights, rho=0.1, step_size=1e-3, steps=3, noise=Noise(0.05))
