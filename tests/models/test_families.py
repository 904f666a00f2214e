"""What the table of families says of a model is true of the model."""

import pytest
from torch import nn

from optimum_moreau.errors import UnsupportedModelError
from optimum_moreau.models.families import FAMILIES as ROWS
from optimum_moreau.models.families import family_of
from tests.tiny import FAMILIES, tiny_model

BIASES = {
    "none": set(),
    "optional": set(),
    "q, k, v": {"q_proj", "k_proj", "v_proj"},
    "all": {"q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_and_norms_are_those_of_the_model(family):
    row, layer = ROWS[family], tiny_model(family).model.layers[0]
    linears = {name.split(".")[-1]: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, module in linears.items() if module.bias is not None} == BIASES[row.biases]
    switches = [key for key in tiny_model(family).config.to_dict() if key.endswith("bias")]
    assert bool(switches) == (row.biases == "optional") or row.biases in ("q, k, v", "all")
    kinds = {type(module).__name__ for name, module in layer.named_children() if "norm" in name}
    assert all(("RMSNorm" in kind) == (row.norms == "RMS") for kind in kinds)
    assert any("norm" in name for name, _ in layer.self_attn.named_children()) == row.qk_norms


def test_a_multi_modal_wrapper_is_refused_by_its_text_model():
    from transformers import AutoConfig

    config = AutoConfig.for_model("llava", text_config={"model_type": "llama"})
    with pytest.raises(
        UnsupportedModelError, match="'llava' is multi-modal; save its text model, a 'llama', by itself"
    ):
        family_of(config)
