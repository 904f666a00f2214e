"""A result is saved in the dtype that is asked for, and measured as it is saved."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.errors import ConfigError, MoreauError
from tests.tiny import TEXT, tiny_model, weights_in

FLAGS = ("--criterion", "magnitude", "--budget", "uniform", "--compensation", "none", "--unit-ratio", "0.5")


@pytest.fixture
def windows():
    return torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(3))


def test_a_cast_model_is_saved_verified_and_described_so(windows, tmp_path):
    model = tiny_model("llama")
    pruner = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", unit_ratio=0.5))
    with pytest.raises(MoreauError, match="nothing was pruned yet"):
        pruner.cast("bfloat16")
    pruner.prune(model, windows)
    with pytest.raises(ConfigError, match="'int8' is none of float32, bfloat16, float16"):
        pruner.cast("int8")
    frequencies = model.model.rotary_emb.inv_freq.clone()
    pruner.cast("bfloat16")
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)  # no checkpoint holds it
    pruner.save_pretrained(tmp_path / "out")
    assert {tensor.dtype for tensor in weights_in(tmp_path / "out").values()} == {torch.bfloat16}
    summary = json.loads((tmp_path / "out" / "pruning_summary.json").read_text())
    assert summary["dtype"] == "bfloat16" and summary["bytes_after"] == 2 * summary["parameters_after"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16 and torch.equal(again(windows).logits, model(windows).logits)


def test_the_command_line_casts_before_it_measures(tiny_folder, tmp_path, command):
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 30)
    out = tmp_path / "out"
    call = ("prune", tiny_folder, "-o", out, *FLAGS, "--save-dtype", "bf16", "--evaluate", text, "--json")
    code, printed, _ = command(*map(str, call))
    assert code == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    code, again, _ = command("evaluate", str(out), "--text", str(text), "--json")
    assert code == 0
    assert (
        json.loads(printed)["perplexity"]["pruned"] in json.loads(again).values()
        or str(json.loads(printed)["perplexity"]["pruned"]) in again
    )


def test_another_dtype_is_refused_before_anything_is_read(tmp_path, command):
    code, _, errors = command("prune", "nowhere", "-o", str(tmp_path / "out"), "--save-dtype", "int8")
    assert code == 2 and "--save-dtype" in errors and len(errors.strip().splitlines()) == 1
