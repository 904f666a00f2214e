"""What is no model is named as what it is, with the way out; and which device a name stands for."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from optimum_moreau import MoreauPruner
from optimum_moreau.errors import CheckpointError, ConfigError
from optimum_moreau.loading import load_config, load_model, load_skeleton, load_tokenizer
from optimum_moreau.models.placement import check_device
from tests.hub_client import environment
from tests.tiny import contents, cut_plan, tiny_model

GGUF = r"for llama\.cpp; prune the safetensors model it was made from"
MERGE = (
    r"is a LoRA adapter of 'org/base'; merge it first \(peft: AutoPeftModelForCausalLM\.from_pretrained\(…\)"
    r"\.merge_and_unload\(\)\), then prune the merged folder"
)
ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
KINDS = {
    "adapter": ({"adapter_config.json": ADAPTER, "adapter_model.safetensors": "", "tokenizer.json": "{}"}, MERGE),
    "other adapter": ({"adapter_config.json": '{"peft_type": "IA3"}'}, "is a PEFT adapter of None; merge it first"),
    "odd adapter": ({"adapter_config.json": "[]"}, "is a PEFT adapter of None; merge it first"),
    "damaged adapter": ({"adapter_config.json": "{"}, r"adapter_config\.json: cannot be read as an adapter's config"),
    "folder of GGUF": ({"model-q4.gguf": "GGUF", "README.md": ""}, f"holds GGUF files only, {GGUF}"),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    """A folder that holds no model, and what is to be said of it."""
    files, message = KINDS[request.param]
    (tmp_path / "given").mkdir()
    for name, text in files.items():
        (tmp_path / "given" / name).write_text(text)
    return tmp_path / "given", message


def test_what_is_no_model_is_named_by_every_load(kind):
    folder, message = kind
    for load in (load_config, load_model, load_skeleton, MoreauPruner.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(str(folder))


VERBS = {
    "prune": "prune {given} -o out --calibration text.txt",
    "dry run": "prune {given} --dry-run",
    "plan": "plan {given} -o new.json --calibration text.txt",
    "apply": "apply plan.json {given} -o out",
    "evaluate": "evaluate {given} --text text.txt",
}


@pytest.mark.parametrize("kind", ["adapter", "folder of GGUF"], indirect=True)
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_model_is_named_by_every_verb(command, kind, tmp_path, monkeypatch, verb):
    (tmp_path / "text.txt").write_text("A text. " * 200)
    cut_plan(tiny_model("llama"), [1, 0, 0], [1, 0, 0]).save(tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    code, out, err = command(*VERBS[verb].format(given=kind[0]).split())
    assert (code, out, err.count("\n")) == (2, "", 1) and re.search(kind[1], err), err
    assert contents(tmp_path) == before


def test_a_file_of_gguf_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=f"model.gguf: is a GGUF file, {GGUF}"):
        load_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(("files", "message"), [({"adapter_config.json": ADAPTER}, MERGE), ({"a.gguf": "GGUF"}, GGUF)])
def test_a_repository_that_holds_no_model_is_named(hub, tmp_path, files, message):
    hub.repositories["me/odd"] = {}
    hub.commit("me/odd", "main", {name: text.encode() for name, text in files.items()})
    done = subprocess.run(
        [sys.executable, "-m", "optimum_moreau", "evaluate", "me/odd", "--text", "text.txt"],
        capture_output=True,
        text=True,
        env=environment(hub, tmp_path / "home"),
    )
    assert done.returncode == 2 and re.search(f"error: me/odd: .*{message}", done.stderr), done.stderr


@pytest.mark.parametrize("config", ["{}", '{"tokenizer_class": "LlamaTokenizer"}', None])
def test_a_folder_without_a_tokenizer_is_named(tiny_folder, tmp_path, config):
    """Of some classes transformers makes a tokenizer without a vocabulary, which reads no token of any text."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    if config:
        (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(
        CheckpointError, match=r"model: has no tokenizer \(tokenizer\.json, .*: text cannot be read; copy "
    ):
        load_tokenizer(str(folder))
    load_model(str(folder))  # token ids can be read


def test_an_estimate_is_for_devices_that_are_not_here(monkeypatch):
    for name in ("cuda:0", "cuda:7", "cuda", "cpu"):
        assert check_device(name, present=False) == torch.device(name)
    with pytest.raises(ConfigError, match="device: 'tpu' cannot be used here"):
        check_device("tpu", present=False)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device: 'cuda:0' cannot be used here"):
            check_device("cuda:0")
