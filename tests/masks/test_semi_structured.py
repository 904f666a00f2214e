"""2:4 masks are what PyTorch's semi-structured tensors hold: packed and unpacked, every matrix is what it was."""

import pytest
import torch

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.errors import PlanError
from optimum_moreau.masks.semi_structured import check_semi_structured
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.models.units import model_shape
from tests.tiny import tiny_model

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def masked(pattern, dtype=torch.float32, device="cpu", **changes):
    model = tiny_model("llama", dtype=dtype, **{**WIDE, **changes}).to(device)
    config = MoreauPrunerConfig(criterion="magnitude", pattern=pattern).resolve(model.config)
    return model, sparsify(model, model_shape(model), None, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_matrix_survives_packing(dtype):
    model, found = masked("2:4", dtype)
    assert check_semi_structured(model, found) == len(found.matrices) == 21
    model, found = masked("1:4", dtype)  # 2:4 holds it
    assert check_semi_structured(model, found) == 21


def test_one_weight_too_many_is_found_and_named():
    model, found = masked("2:4")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5, 8:12] = 1.0
    with pytest.raises(PlanError, match=r"layers\.1\.mlp\.up_proj: more than two of four"):
        check_semi_structured(model, found)
    model, found = masked("4:8")
    with pytest.raises(PlanError, match=r"layers\.0\.self_attn\.q_proj"):
        check_semi_structured(model, found)


def test_matrices_of_other_shapes_are_left_out_of_the_count():
    model, found = masked("2:4", intermediate_size=68)  # 68 is no multiple of 32
    assert check_semi_structured(model, found) == 3 * 4


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs CUDA of compute capability 8.0 or above",
)
def test_the_kernels_tensors_multiply_as_the_dense_weight():
    model, found = masked("2:4", torch.float16, "cuda")
    assert check_semi_structured(model, found) == 21
    w = model.model.layers[0].mlp.up_proj.weight.detach()
    x = torch.randn(64, w.shape[1], dtype=torch.float16, device="cuda")
    sparse = torch.nn.functional.linear(x, torch.sparse.to_sparse_semi_structured(w))
    torch.testing.assert_close(sparse, torch.nn.functional.linear(x, w), rtol=1e-2, atol=1e-2)
