"""The dry run from Python: what the commands print, of a folder, a config, or a model in hand."""

import json
import re

import pytest
import torch

from optimum_moreau import Estimate, MoreauPrunerConfig, estimate_pruning
from optimum_moreau.errors import ConfigError, DataError
from tests.tiny import tiny_model

UNITS = {"criterion": "wanda", "pruning_ratio": 0.3}
MASK = {"criterion": "wanda", "pattern": "2:4"}


def timeless(text):
    return re.sub(r'"seconds": [^,}]+|roughly \d+ \w+', "", text)


@pytest.mark.parametrize("verb, settings", [("plan", UNITS), ("prune", UNITS), ("prune", MASK)])
def test_is_what_the_commands_print(verb, settings, command, tmp_path):
    model = tiny_model("llama", num_hidden_layers=4)
    model.config.save_pretrained(tmp_path)
    flags = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", value)]
    _, lines, _ = command(verb, tmp_path, *flags, "--dry-run")
    _, values, _ = command(verb, tmp_path, *flags, "--dry-run", "--json")
    for given in (str(tmp_path), model.config, model):
        found = estimate_pruning(given, **settings)
        assert isinstance(found, Estimate)
        assert timeless(f"{found}\n") == timeless(lines) and timeless(json.dumps(found.to_dict())) == timeless(
            values.strip()
        )
    assert repr(found) == str(found) and found.scoring.device == "cpu"
    assert all(not parameter.is_meta for parameter in model.parameters())  # the model is as it was


def test_takes_a_config_as_the_pruner_does():
    config = tiny_model("llama").config
    small = [
        estimate_pruning(config, MoreauPrunerConfig(criterion="magnitude", pruning_ratio=0.3)),
        estimate_pruning(config, {"criterion": "magnitude"}, budget="uniform", compensation="none", pruning_ratio=0.3),
        estimate_pruning(config, "magnitude", budget="uniform", compensation="none", pruning_ratio=0.3),
    ]
    assert len({found.parameters_after for found in small}) == 1 and small[0].compensation is None
    assert small[0].to_dict()["compensation"] == {}
    with pytest.raises(ConfigError, match="is no config"):
        estimate_pruning(config, 3)
    with pytest.raises(DataError, match="no such file"):
        estimate_pruning(config, calibration="/nowhere/text.txt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda:0", "cuda"])
def test_of_a_device_that_is_not_here_all_but_the_time_is_known(device, command, tmp_path):
    tiny_model("llama").config.save_pretrained(tmp_path)
    code, out, err = command("plan", tmp_path, "--ratio", 0.3, "--device", device, "--dry-run")
    assert code == 0, err
    assert "1 forward pass" in out and "only a machine with the device can tell" in out and "roughly" not in out
    found = estimate_pruning(str(tmp_path), pruning_ratio=0.3, device=device)
    assert found.scoring.device == "cuda" and found.scoring.seconds is None and found.compensation.seconds is None
    assert (
        found.scoring.peak_memory_bytes < estimate_pruning(str(tmp_path), pruning_ratio=0.3).scoring.peak_memory_bytes
    )
    with pytest.raises(ConfigError, match="device: 'nonsense' cannot be used here"):
        estimate_pruning(str(tmp_path), device="nonsense")
