"""A mistake of the user gets one line that says where, what and what to do; nothing is written, no model is changed."""

import errno
import io
import json
import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan, apply_plan, perplexity
from optimum_moreau.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    MoreauError,
    NonFiniteError,
    PlanError,
    UnsupportedModelError,
)
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.models.families import family_of
from tests import warm
from tests.tiny import TEXT, assert_same_state, contents, cut_plan, snapshot, tiny_model

SMALL = {"calibration_samples": 2, "sequence_length": 16}
SMALL_FLAGS = ("--samples", 2, "--seq-len", 16)


@contextmanager
def refusal(error, message):
    """The block raises `error`, in one line that holds `message`."""
    with pytest.raises(error, match=message) as caught:
        yield
    assert isinstance(caught.value, MoreauError) and "\n" not in str(caught.value)


@contextmanager
def untouched(model):
    """The block leaves the model as it was: weights, flags, modes, config, class, and no gradients."""
    before, modes = snapshot(model), [module.training for module in model.modules()]
    yield
    assert_same_state(model, before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def model(tokenizer):
    """A model in training with a frozen and an idle part, so that a flag or mode that is not restored shows."""
    model = tiny_model("llama", vocab_size=len(tokenizer)).train()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].eval()
    return model


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A copy of a saved model, to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "base")


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 10, encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.fixture
def refused(command, tmp_path):
    """Runs a verb that must refuse: exit code 2, one line on standard error, nothing written or changed."""

    def run(message, verb, *arguments):
        before = contents(tmp_path)
        code, out, err = command(verb, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith(f"optimum-moreau {verb}: error: ") and re.search(message, err), err
        assert contents(tmp_path) == before

    return run


# Settings ------------------------------------------------------------------------------------------------------------

FLAGS = {
    "--criterion morau": r"unknown criterion 'morau'\. Did you mean 'moreau'\? Known: moreau-gs, ",
    "--criterion xyz": r"unknown criterion 'xyz'\. Known: moreau-gs, ",
    "--critrion taylor": r"unknown argument '--critrion'\. Did you mean '--criterion'\?",
    "--unit-raito=0.2": r"unknown argument '--unit-raito'\. Did you mean '--unit-ratio'\?",
    "--budget globl": r"unknown budget 'globl'\. Did you mean 'global'\?",
    "--targets atention": r"targets: unknown 'atention'\. Did you mean 'attention'\?",
    "--ratio 1": r"argument --ratio: '1' is not a share in \[0, 1\)",
    "--ratio -0.1": r"argument --ratio: '-0\.1' is not a share",
    "--ratio nan": r"argument --ratio: 'nan' is not a share",
    "--unit-ratio 20": r"unit_ratio: 20\.0 is not a share in \[0, 1\); 20 % is 0\.2",
    "--unit-ratio 0.1,0.2,0.3": r"unit_ratio: .* is not one number, or one for each target \(attention, mlp\)",
    "--target-parameters 5.5X": r"target_parameters: '5\.5X' is not a size such as 5\.5B",
    "--target-parameters 9B": r"target_parameters 9,000,000,000 leaves nothing to prune: the model has [\d,]+ p",
    "--target-bytes 9GB": r"target_bytes 9,000,000,000 leaves nothing to prune: the model has [\d,]+ bytes",
    "--target-parameters 10": r"target_parameters 10 cannot be reached in this scope, which leaves [\d,]+; widen ",
    "--target-bytes 10": r"target_bytes 10 cannot be reached in this scope, which leaves [\d,]+; widen ",
    "--engine vllm --tensor-parallel 3": r"layers\.0\.attention: no number of its 2 KV groups of 2 heads can be taken:"
    r" vllm splits heads over tensor_parallel=3; tensor_parallel may be 1, 2, 4",
    "--engine vllm --tensor-parallel 32": r"layers\.0\.(attention|mlp): ",
    "--engine vllm --attention-layers 1:2": r"attention_layers: vllm reads layers of one shape only; leave 1:2 out",
    "--engine llama.cpp": r"layers\.0\.mlp: no multiple of 32 can be kept of its 24 channels \(llama\.cpp quantises",
    "--engine vllm --tensor-parallel 3 --targets mlp --unit-ratio 0.5": r"layers\.0\.attention: 4 heads in 2 KV groups"
    r" cannot be split over tensor_parallel=3; add 'attention' to the targets, or choose another number",
    "--dryrun": r"unknown argument '--dryrun'\. Did you mean '--dry-run'\?",
    "--engine llama.cpp --tensor-parallel 2": r"tensor_parallel: llama\.cpp splits",
    "--targets layers --whole-layers 0:4": r"whole_layers: 0:4 lies outside the model's layers 0:3",
    "--targets layers --ratio 0.9": r"pruning_ratio 0\.9 cannot be reached in this scope, which reaches from 0 to 0\.",
    "--targets hidden --multiple-of 64": r"hidden: no multiple of 64 can be kept of its 32 channels \(multiple_of 64",
    "--uniform --budget global": r"uniform=True wants one; leave one out",
    "--ratio 0.2 --unit-ratio 0.2": r"pruning_ratio .* and unit_ratio .* are both given; give one",
    "--ratio 0.9": r"pruning_ratio 0\.9 cannot be reached in this scope, which reaches from 0 to 0\.\d+; widen ",
    "--attention-layers 0:4": r"attention_layers: 0:4 lies outside the model's layers 0:3",
    "--mlp-layers 3:9": r"mlp_layers: 3:9 lies outside the model's layers 0:3",
    "--mlp-layers 2:2": r"mlp_layers: \(2, 2\) is not \(start, end\)",
    "--ratio abc": r"argument --ratio: 'abc' is not a share",
    "--unit-ratio a,b": r"argument --unit-ratio: 'a,b' is not one share, .* one for each target",
    "--attention-layers 4-30": r"argument --attention-layers: '4-30' is not START:END, e\.g\. 4:30",
    "--steps 1.5": r"argument --steps: '1\.5' is not a whole number",
    "--samples 0": r"calibration_samples: 0 is not a whole number ≥ 1",
    "--dtype fp8": r"dtype: unknown value 'fp8'\. Known: auto, float32, bfloat16, float16",
    "--device gpu": r"device: 'gpu' cannot be used here",
    "--device meta": r"is on the meta device",
    "--export stock --mlp-layers 1:2 --unit-ratio 0.5": r"export='stock': layer 1 has .*; nearest legal plan: ",
}
SETTINGS = {
    "layer range": ({"mlp_layers": (1, 4)}, ConfigError, r"mlp_layers: 1:4 lies outside the model's layers 0:3"),
    "ratio": ({"pruning_ratio": 0.9}, PlanError, r"pruning_ratio 0\.9 cannot be reached .* from 0 to 0\.\d+; widen "),
    "export": (
        {"export": "stock", "mlp_layers": (1, 2), "unit_ratio": 0.5},
        ExportError,
        r"export='stock': .*; nearest legal plan: ",
    ),
}
INCOMPLETE = {
    "": "optimum-moreau: error: the following arguments are required: VERB",
    "prnue model": "optimum-moreau: error: argument VERB: invalid choice: 'prnue' .*prune",
    "prune": r"optimum-moreau prune: error: model: is missing; give it \(MODEL\)",
    "prune model": r"optimum-moreau prune: error: output: is missing; give it \(--output\)",
    "evaluate model": "optimum-moreau evaluate: error: --text: give a text to measure the perplexity on, or --tasks",
    "evaluate model --text t --seq-len 1": "optimum-moreau evaluate: error: --sequence-length: 1 is not .* ≥ 2",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_wrong_flag_is_refused(refused, tiny_folder, text_file, tmp_path, flags):
    arguments = ("prune", tiny_folder, "-o", tmp_path / "out", "--calibration", text_file, *SMALL_FLAGS)
    refused(FLAGS[flags], *arguments, *flags.split())


@pytest.mark.parametrize("line", INCOMPLETE)
def test_an_incomplete_command_is_refused(command, line):
    code, out, err = command(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and re.match(INCOMPLETE[line], err), err


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with refusal(ConfigError, r"unknown field 'pruning_rate'\. Did you mean 'pruning_ratio'\?"):
        MoreauPrunerConfig.from_dict({"pruning_rate": 0.2})


@pytest.mark.parametrize(("settings", "error", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_do_not_fit_the_model_leave_it_alone(model, tokens, settings, error, message):
    with untouched(model), refusal(error, message):
        MoreauPruner(MoreauPrunerConfig(**SMALL | settings)).prune(model, tokens)


# Models --------------------------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """A model inside another module, as real wrappers hold it; those need a process group, or a dependency."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def wrapper(name, **attributes):
    return lambda model: type(name, (Wrapper,), attributes)(model)


def adapted(model):
    model.peft_config = {"default": object()}  # as `model.add_adapter` does
    return model


def quantised(model):
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return model


def compiled_in_place(model):
    model.compile()
    return model


def gpt2(_):
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=2))


def t5(_):
    return T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


MODELS = {
    "unsupported type": (gpt2, r"'gpt2' is not supported\. Supported: llama, .*mistral, .*qwen2, .*qwen3"),
    "encoder-decoder": (t5, r"'t5' is an encoder-decoder; only decoder-only models"),
    "quantised": (quantised, r"is quantised; load it in bfloat16, prune, and quantise the result"),
    "PeftModel": (wrapper("PeftModel", peft_config={}), r"PeftModel: carries adapters; .*merge_and_unload"),
    "adapters": (adapted, r"LlamaForCausalLM: carries adapters; .*merge_and_unload"),
    "DDP": (wrapper("DistributedDataParallel"), r"DistributedDataParallel: .*prune model\.module before wrapping"),
    "DataParallel": (nn.DataParallel, r"DataParallel: .*prune model\.module before wrapping"),
    "FSDP": (wrapper("FullyShardedDataParallel"), r"FullyShardedDataParallel: .*prune before wrapping"),
    "FSDP2": (wrapper("FSDPLlamaForCausalLM"), r"FSDPLlamaForCausalLM: .*prune before wrapping"),
    "torch.compile": (torch.compile, r"OptimizedModule: .*prune model\._orig_mod, then compile"),
    "model.compile": (compiled_in_place, r"LlamaForCausalLM: is compiled .*prune it first, then compile"),
    "no LM head": (lambda model: model.model, r"LlamaModel has no LM head; load it with AutoModelForCausalLM"),
    "a name": (lambda _: "org/model", r"str is not a model; .*AutoModelForCausalLM"),
    "any module": (lambda _: nn.Linear(2, 2), r"Linear has no config; .*AutoModelForCausalLM"),
}
ACTIONS = {
    "prune": lambda model, tokens: MoreauPruner(MoreauPrunerConfig(**SMALL)).prune(model, tokens),
    "apply": lambda model, _: apply_plan(model, PruningPlan("llama", {})),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize(("make", "message"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_be_pruned_is_refused_untouched(model, tokens, action, make, message):
    given = make(model)
    with untouched(given if hasattr(given, "config") else model), refusal(UnsupportedModelError, message):
        action(given, tokens)


def detached(model):
    forward = model.model.forward

    def without_history(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.detach()
        return output

    model.model.forward = without_history
    return model


def made_in_inference_mode(_):
    with torch.inference_mode():
        return tiny_model("llama")


@pytest.mark.parametrize("make", [detached, made_in_inference_mode])
@pytest.mark.parametrize("criterion", ["moreau", "taylor", "taylor-second"])
def test_a_criterion_that_needs_gradients_refuses_a_model_without(model, tokens, criterion, make):
    given = make(model)
    config = MoreauPrunerConfig(**{**SMALL, "criterion": criterion})
    with untouched(given), refusal(UnsupportedModelError, r"gradient.*\(magnitude, random\)"):
        MoreauPruner(config).prune(given, tokens)
    assert MoreauPruner(MoreauPrunerConfig(**{**SMALL, "criterion": "magnitude"})).prune(given, tokens)


@pytest.mark.parametrize(
    "mark", [{"ds_id": 3}, {"__class__": type("DTensor", (nn.Parameter,), {})}], ids=["ZeRO", "DTensor"]
)
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_a_sharded_weight_is_refused_by_name(model, tokens, action, mark):
    for name, value in mark.items():
        setattr(model.model.norm.weight, name, value)
    with refusal(UnsupportedModelError, r"model\.norm\.weight is sharded over processes; prune before sharding"):
        action(model, tokens)


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_a_weight_that_is_not_loaded_is_refused_by_name(model, tokens, action):
    model.model.norm.to("meta")
    with refusal(UnsupportedModelError, r"model\.norm\.weight is on the meta device .*; load it whole"):
        action(model, tokens)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("moreau-gs", r"step 1, draw 1: the loss is (nan|inf); model\.layers\.1\.mlp\.down_proj is the first"),
        ("smoothgrad", r"pass 1: the loss is (nan|inf); model\.layers\.1\.mlp\.down_proj is the first"),
        ("taylor-mixed", r"taylor-mixed: the loss is (nan|inf); model\.layers\.1\.mlp\.down_proj is the first"),
        ("magnitude", r"layers\.1\.mlp: the scores of magnitude are not finite"),
    ],
)
def test_a_non_finite_weight_stops_with_step_and_layer(model, tokens, criterion, message):
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with untouched(model), refusal(NonFiniteError, message):
        MoreauPruner(MoreauPrunerConfig(criterion=criterion, **SMALL)).prune(model, tokens)


# Folders -------------------------------------------------------------------------------------------------------------


def file_of(name, content):
    """Damages a folder: overwrites a file, or removes it for `None`."""
    return lambda folder: (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()


def config_with(**values):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def weights_with(change):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def small_vocabulary(folder):
    config_with(vocab_size=100)(folder)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    weights_with(lambda weights: weights.update({name: weights[name][:100].clone() for name in names}))(folder)


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
FOLDERS = {
    "missing": (shutil.rmtree, r"/base: no such folder$"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), r"/base: is a file; give the folder"),
    "no config.json": (file_of("config.json", None), r"/base: holds no config\.json; give the folder of a"),
    "config.json damaged": (
        file_of("config.json", b'{"model_type":'),
        r"/base/config\.json: cannot be read as a model's config: not JSON \(.* line 1 column 14\); get the file anew",
    ),
    "config.json binary": (file_of("config.json", b"\xff\x00"), r"/base/config\.json: cannot be read as .*: not JSON"),
    "config.json a list": (
        file_of("config.json", b"[]"),
        r"/base/config\.json: cannot be read as a model's config: \[\] is no dictionary; get the file anew",
    ),
    "a size a word": (
        config_with(hidden_size="x"),
        r"/base/config\.json: cannot be read as a model's config: hidden_size 'x' is none .*; give a whole number",
    ),
    "no heads": (config_with(num_attention_heads=0), r"/base/config\.json: .*: num_attention_heads 0 is none"),
    "a value of another type": (
        config_with(rms_norm_eps="x"),
        r"/base/config\.json: .*: Field 'rms_norm_eps' expected float, got str \(value: 'x'\)",
    ),
    "config.json impossible": (
        config_with(num_attention_heads=5),
        r"config\.json: .*The hidden size \(32\) is not a multiple of",
    ),
    "type unsupported": (config_with(model_type="gpt2"), r"'gpt2' is not supported\. Supported: llama, "),
    "type unknown": (config_with(model_type="lama"), r"/base/config\.json: cannot be read .*`lama`"),
    "encoder-decoder": (config_with(model_type="t5", is_encoder_decoder=True), r"'t5' is an encoder-decoder"),
    "quantised": (config_with(quantization_config={"quant_method": "awq"}), r"is quantised; prune the unquantised"),
    "pickle": (pickled, r"pickle weights only \(pytorch_model\.bin\); weights must be safetensors"),
    "no weights": (file_of("model.safetensors", None), r"no weights; weights must be safetensors"),
    "weights damaged": (
        file_of("model.safetensors", b"\0" * 64),
        r"the weights cannot be loaded \(.*/base/model\.safetensors: .*header",
    ),
    "weights empty": (
        file_of("model.safetensors", b""),
        r"the weights cannot be loaded \(.*/base/model\.safetensors: .*header",
    ),
    "weights truncated": (
        truncated,
        r"the weights cannot be loaded \(.*/base/model\.safetensors: .*incomplete.*; get the file anew",
    ),
    "a weight missing": (weights_with(lambda weights: weights.pop(Q_PROJ)), rf"1 of .* not in its files .*{Q_PROJ}"),
    "a layer missing": (config_with(num_hidden_layers=4), r"9 of .* not in its files \(first: model\.layers\.3\."),
    "a weight misshapen": (
        weights_with(lambda weights: weights.update({Q_PROJ: torch.zeros(4, 32)})),
        rf"{Q_PROJ} is \(4, 32\) in the file, \(32, 32\) by config\.json",
    ),
    "no tokenizer": (without_tokenizer, r"/base: has no tokenizer \(tokenizer\.json, .*\): text cannot be read; copy "),
    "tokenizer damaged": (
        file_of("tokenizer.json", b"{"),
        r"/base/tokenizer\.json: cannot be read as a tokenizer: not JSON \(.* line 1 column 1\); get the file anew",
    ),
    "tokenizer deep": (
        file_of("tokenizer.json", b"[" * 10**5),
        r"/base/tokenizer\.json: cannot be read as a tokenizer",
    ),
    "tokenizer a list": (file_of("tokenizer.json", b"[5]"), r"/base/tokenizer\.json: .*: \[5\] is no dictionary"),
    "tokenizer of nothing": (file_of("tokenizer.json", b"{}"), r"/base: no tokenizer that can be loaded; add "),
    "added tokens damaged": (
        file_of("added_tokens.json", b'{"a": NaN}'),
        r"/base/added_tokens\.json: cannot be read as a list of added tokens: not JSON",
    ),
    "special tokens deep": (
        file_of("special_tokens_map.json", b'{"a":' * 100 + b"1" + b"}" * 100),
        r"/base/special_tokens_map\.json: cannot be read as a map of special tokens: .*nested more than 64 deep",
    ),
    "template not text": (
        file_of("chat_template.jinja", b"\xff"),
        r"/base/chat_template\.jinja: cannot be read as a chat template: not UTF-8 text \(.* at byte 0\); get the file",
    ),
    "template long": (
        file_of("chat_template.jinja", b" " * (2**20 + 1)),
        r"/base/chat_template\.jinja: cannot be read as a chat template: more than 1 MiB",
    ),
    "generation damaged": (
        file_of("generation_config.json", b'{"do_sample": tru'),
        r"/base/generation_config\.json: cannot be read as settings of generation: not JSON",
    ),
    "another tokenizer": (small_vocabulary, r"token id 2\d\d is outside the model's vocabulary of 100; is this the "),
}


@pytest.mark.parametrize(("damage", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_holds_no_such_model_is_refused(refused, folder, text_file, tmp_path, damage, message):
    damage(folder)
    refused(message, "prune", folder, "-o", tmp_path / "out", "--calibration", text_file, *SMALL_FLAGS)
    refused(message, "evaluate", folder, "--text", text_file, "--seq-len", 16)
    with refusal((CheckpointError, UnsupportedModelError, DataError), message):
        perplexity(load_model(str(folder)), load_tokenizer(str(folder)), text_file, sequence_length=16)


@pytest.mark.parametrize("name", ["org/no-such-model", "no-such-model", "./no-such-model", "/a/b/c"])
def test_a_name_that_stands_for_nothing_is_refused(refused, text_file, name):
    refused(rf"{name}: no such folder", "evaluate", name, "--text", text_file)


def test_nan_weights_stop_pruning_and_evaluation(refused, folder, text_file, tmp_path):
    weights_with(lambda weights: weights["model.layers.1.mlp.down_proj.weight"].fill_(torch.nan))(folder)
    arguments = ("-o", tmp_path / "out", "--calibration", text_file, *SMALL_FLAGS)
    refused(r"inputs are not finite; model\.layers\.1\.mlp\.down_proj is the first", "prune", folder, *arguments)
    refused(r"the loss is nan; check the model's weights", "evaluate", folder, "--text", text_file, "--seq-len", 16)


# Texts ---------------------------------------------------------------------------------------------------------------

TEXTS = {
    "missing.txt": (None, r"/missing\.txt: no such file; a path, or hub:id"),
    "short.txt": (b"The quick", r"(short\.txt|evaluation text): .*\d tokens.* needs 1[56]; give longer text"),
    "empty.txt": (b"", r"empty\.txt: holds no text"),
    "blank.txt": (b" \n\t\n", r"blank\.txt: holds no text"),
    "binary.txt": (bytes(range(256)), r"binary\.txt: not UTF-8 text \(.* at byte 128\)"),
    "paper.pdf": (b"%PDF", r"paper\.pdf: unknown file type '\.pdf'; use \.txt, \.jsonl"),
    "empty.jsonl": (b"", r"empty\.jsonl: the file is empty"),
    "empty.json": (b"[]", r"empty\.json: damaged, or holds no json records"),
    "header.csv": (b"text\n", r"header\.csv: damaged, or holds no csv records"),
    "binary.jsonl": (bytes(range(256)), r"binary\.jsonl: line 2: not UTF-8"),
    "damaged.csv": (b'text,n\na,b,c\n"x\n', r"damaged\.csv: damaged, or holds no csv records"),
    "damaged.parquet": (b"PAR1", r"damaged\.parquet: damaged, or holds no parquet records"),
    "columns.jsonl": (
        b'{"title": "a", "body": "b", "n": 1}\n',
        r"columns\.jsonl: no text column 'text'\. Columns of text: title, body; choose one with (calibration_)?column",
    ),
    "numbers.jsonl": (b'{"n": 1}\n', r"numbers\.jsonl: no text column 'text'\. Columns of text: none"),
}
SOURCES = {
    "no strings": ([], r"list of strings: holds no text"),
    "numbers": ([1.5, 2.5], r"a list must hold strings or records; only calibration takes token ids"),
    "ids too high": (torch.full((1, 16), 300), r"token ids: token id 300 is outside the model's vocabulary of \d+"),
    "ids below zero": (torch.full((1, 16), -1), r"token ids: token id -1 is outside the model's vocabulary of \d+"),
    "ids not whole": (torch.zeros(1, 16), r"token ids: \(1, 16\) of torch\.float32; pass integers"),
    "ids too few": (torch.zeros(1, 15, dtype=torch.int64), r"token ids: .*15 tokens, a window needs 16"),
    "hub": ("hub:org/no-such-dataset", r"hub:org/no-such-dataset: cannot be loaded"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_cannot_serve_is_refused(refused, model, tokenizer, tiny_folder, tmp_path, name):
    content, message = TEXTS[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with untouched(model), refusal(DataError, message):
        MoreauPruner(MoreauPrunerConfig(**SMALL), tokenizer=tokenizer).prune(model, path)
    refused(message, "prune", tiny_folder, "-o", tmp_path / "out", "--calibration", path, *SMALL_FLAGS)
    refused(message, "evaluate", tiny_folder, "--text", path, "--seq-len", 16)


@pytest.mark.parametrize("source", SOURCES)
def test_calibration_that_cannot_serve_leaves_the_model_alone(model, tokenizer, source):
    given, message = SOURCES[source]
    with untouched(model), refusal(DataError, message):
        MoreauPruner(MoreauPrunerConfig(**SMALL), tokenizer=tokenizer).prune(model, given)


def test_a_column_that_is_not_there_is_refused_with_the_nearest_name(refused, tiny_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"story": "a", "title": "b"}\n')
    message = r"no text column 'storey'\. Did you mean 'story'\? Columns of text: story, title"
    calibration = ("--calibration", tmp_path / "rows.jsonl", "--calibration-column", "storey")
    refused(message, "prune", tiny_folder, "-o", tmp_path / "out", *calibration)
    refused(message, "evaluate", tiny_folder, "--text", tmp_path / "rows.jsonl", "--text-column", "storey")


def test_a_verb_names_its_own_flag_for_the_column(command, tiny_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"story": "a", "title": "b"}\n')
    flags = {"prune": ("-o", tmp_path / "out", "--calibration"), "evaluate": ("--text",)}
    own = {"prune": "--calibration-column)", "evaluate": "evaluate --text-column)"}
    for verb, given in flags.items():
        code, _, err = command(verb, tiny_folder, *given, tmp_path / "rows.jsonl")
        assert code == 2 and [name for name in own if own[name] in err] == [verb], err
    chained = ("--calibration-column", "story", "--evaluate", tmp_path / "rows.jsonl")
    _, _, err = command("prune", tiny_folder, *flags["prune"], tmp_path / "rows.jsonl", *chained)
    assert "call the one to read 'text'" in err and "--text-column" not in err, err


def test_text_without_a_tokenizer_is_refused(model):
    with untouched(model), refusal(DataError, r"a tokenizer is needed .*MoreauPruner\(config, tokenizer="):
        MoreauPruner(MoreauPrunerConfig(**SMALL)).prune(model, [TEXT])


# Plans ---------------------------------------------------------------------------------------------------------------


def plan_with(**changes):
    """The JSON of a good plan, changed; a change to `None` leaves the key out."""

    def make(model):
        values = cut_plan(model, (1, 1, 1), (6, 6, 6)).to_dict() | changes
        return json.dumps({key: value for key, value in values.items() if key not in changes or value is not None})

    return make


def block(kept, total=24):
    return plan_with(layers={"0": {"mlp": {"kept": kept, "total": total}}})


KEPT = r"layers\.0\.mlp: 'kept' must "
PLANS = {
    "not JSON": (lambda _: "{", r"/plan\.json: cannot be read as a pruning plan: not JSON"),
    "empty": (lambda _: "", r"/plan\.json: cannot be read as a pruning plan: not JSON"),
    "a list": (lambda _: "[]", r"/plan\.json: plan: 'format_version' is missing; is this a pruning_plan\.json\?"),
    "no layers": (plan_with(layers=None), r"plan: 'layers' is missing"),
    "of a later version": (plan_with(format_version=9), r"plan: format version 9, this package reads 1"),
    "layers a list": (plan_with(layers=[]), r"plan: 'layers' is damaged"),
    "layer has a name": (plan_with(layers={"first": {}}), r"plan: 'layers' is damaged"),
    "block a list": (plan_with(layers={"0": {"mlp": []}}), KEPT),
    "unknown kind": (plan_with(layers={"0": {"foo": {}}}), r"layers\.0 must hold 'attention' and 'mlp'"),
    "layer twice": (plan_with(layers={"00": {}}), r"'00' is no layer index"),
    "version true": (plan_with(format_version=True), r"format version True, this package reads 1"),
    "kept a number": (block(3), KEPT),
    "kept fractions": (block([0.5]), KEPT),
    "kept unsorted": (block([1, 0]), KEPT + r"be sorted, distinct, not empty, and within 0\.\.23"),
    "kept twice": (block([1, 1]), KEPT),
    "kept outside": (block([0, 24]), KEPT),
    "kept below zero": (block([-1, 0]), KEPT),
    "kept nothing": (block([]), KEPT),
    "total a word": (block([0], "24"), KEPT),
    "hidden a number": (plan_with(hidden=5), r"plan: hidden: 'kept' must list unit indices"),
    "hidden out of range": (plan_with(hidden={"kept": [0, 40], "total": 32}), r"plan: hidden: 'kept' must be sorted"),
    "no layers kept": (plan_with(kept_layers=[]), r"plan: kept_layers: 'kept' must be .* not empty, and within 0\.\.2"),
    "layers out of range": (plan_with(kept_layers=[0, 3]), r"plan: kept_layers: 'kept' must be"),
    "layers unsorted": (plan_with(kept_layers=[1, 0]), r"plan: kept_layers: 'kept' must be sorted"),
    "adjustments a word": (
        plan_with(adjustments="x"),
        r"plan: cannot be read as a pruning plan: adjustments: .* not 'x'",
    ),
    "config a list": (plan_with(config=[1]), r"plan: cannot be read as the record of a run: config: .* not \[1\]"),
}
OTHERS = {
    "type": ({"model_type": "qwen2"}, r"plan is for model type 'qwen2', this model is 'llama'"),
    "depth": ({"num_hidden_layers": 4}, r"plan has 4 layers, this model has 3: layers\.3 is in one only"),
    "heads": ({"num_key_value_heads": 4}, r"layers\.0\.attention: plan has 4 units, this model has 2 units"),
    "channels": ({"intermediate_size": 32}, r"layers\.0\.mlp: plan has 32 units, this model has 24 units"),
    "weights": ({"seed": 1}, r"the weights are not those of the model that the plan was made for"),
}


@pytest.mark.parametrize(("make", "message"), PLANS.values(), ids=PLANS)
def test_a_damaged_plan_is_refused(refused, model, tiny_folder, tmp_path, make, message):
    (tmp_path / "plan.json").write_text(make(model))
    with refusal(PlanError, message):
        PruningPlan.load(tmp_path / "plan.json")
    refused(message, "apply", tmp_path / "plan.json", tiny_folder, "-o", tmp_path / "out")


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS)
def test_a_plan_for_another_model_is_refused_by_the_first_mismatch(
    refused, model, tokens, tokenizer, tiny_folder, tmp_path, changes, message
):
    other = tiny_model(**{"model_type": "llama", "vocab_size": len(tokenizer)} | changes)
    plan, _ = MoreauPruner(MoreauPrunerConfig(criterion="random")).plan(other)
    with untouched(model), refusal(PlanError, message):
        apply_plan(model, plan)
    plan.save(tmp_path / "plan.json")
    refused(message, "apply", tmp_path / "plan.json", tiny_folder, "-o", tmp_path / "out")


def test_a_plan_with_an_unknown_setting_is_refused_before_the_cut(model):
    values = json.loads(plan_with(config={"ratio": 0.2})(model))
    with refusal(PlanError, r"unknown field 'ratio'"):
        PruningPlan.from_dict(values)
    plan = replace(PruningPlan.from_dict(values | {"config": {}}), config={"ratio": 0.2})
    with untouched(model), refusal(ConfigError, r"unknown field 'ratio'"):
        MoreauPruner().apply(model, plan)


@pytest.mark.parametrize(
    ("name", "message"), [("none.json", "no such file"), ("", r"pruning_plan\.json: no such file")]
)
def test_a_plan_that_is_not_there_is_refused(refused, tiny_folder, tmp_path, name, message):
    plan = tmp_path / name if name else tiny_folder  # a folder without a plan
    refused(message, "apply", plan, tiny_folder, "-o", tmp_path / "out")


# Targets -------------------------------------------------------------------------------------------------------------

TARGETS = {
    "full": (r"/full: is not empty; choose another folder, or overwrite \(--overwrite\)", ()),
    "full with --overwrite": (r"/full: holds no saved model", ("--overwrite",)),
    "file": (r"/file: is a file; give a folder", ()),
    "file/out": (r"/file/out: cannot be written, .*/file is not a writable folder", ()),
    "file/a/b/out": (r"/out: cannot be written, .*/file is not a writable folder", ()),
}
PLAN_TARGETS = {
    "full": r"/full: is a folder; give a file",
    "nowhere/plan.json": r"/plan\.json: cannot be written, .*/nowhere is not a writable folder",
    "file/plan.json": r"/plan\.json: cannot be written, .*/file is not a writable folder",
}


@pytest.fixture
def places(tmp_path):
    """A folder that is not empty, and a file."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_may_not_be_written_is_refused(refused, tiny_folder, places, target):
    message, flags = TARGETS[target]
    output = ("-o", places / target.split()[0], *flags)
    refused(message, "prune", tiny_folder, *output, "--criterion", "random")
    refused(message, "apply", places / "any.json", tiny_folder, *output)

    model, pruner = tiny_model("llama"), MoreauPruner(MoreauPrunerConfig(criterion="random"))
    pruner.prune(model)
    before = contents(places)
    with untouched(model), refusal(CheckpointError, message):
        pruner.save_pretrained(places / target.split()[0], overwrite=bool(flags))
    assert contents(places) == before


@pytest.mark.parametrize("target", PLAN_TARGETS)
def test_a_plan_that_may_not_be_written_is_refused(refused, tiny_folder, places, target):
    refused(PLAN_TARGETS[target], "plan", tiny_folder, "-o", places / target, "--criterion", "random")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which stands for a full disk")
def test_a_plan_on_a_full_disk_is_refused(refused, tiny_folder):
    message = r"/dev/full: cannot be written \(No space left on device\)"
    refused(message, "plan", tiny_folder, "-o", "/dev/full", "--preset", "plain", "--criterion", "random")


def test_saving_before_pruning_is_refused(tmp_path):
    with refusal(MoreauError, r"nothing was pruned yet; call prune, apply or from_pretrained first"):
        MoreauPruner().save_pretrained(tmp_path / "out")
    assert contents(tmp_path) == {}


# Processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [("optimum-moreau",), ("optimum-cli", "moreau")], ids=" ".join)
def test_a_process_ends_with_one_line_and_code_2(program, tiny_folder, tmp_path):
    (tmp_path / "short.txt").write_text("The quick")
    arguments = ("prune", tiny_folder, "-o", tmp_path / "out", "--calibration", tmp_path / "short.txt")
    process = warm.run([sys.executable, Path(sys.executable).parent / program[0], *program[1:], *arguments])
    (line,) = process.stderr.splitlines()
    assert process.returncode == 2 and process.stdout == ""
    assert line.startswith("optimum-moreau prune: error: short.txt: the longest document has ")
    assert set(contents(tmp_path)) == {tmp_path / "short.txt"}


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("olmo2", {}, "its q and k norms span all heads"),
        ("stablelm", {}, "derives the head width"),
        ("diffllama", {}, "heads work in pairs"),
        ("cohere", {"use_qk_norm": True}, "weights per head"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ("mixtral", {"num_local_experts": 4}, "mixture of experts"),
    ],
)
def test_a_look_alike_is_refused_with_the_reason(model_type, changes, reason):
    config = SimpleNamespace(model_type=model_type, **changes)
    with pytest.raises(UnsupportedModelError, match=f"model type '{model_type}' cannot be pruned: .*{reason}"):
        family_of(config)


def test_a_misspelled_folder_is_not_looked_for_on_the_hub(refused, tiny_folder, tmp_path, text_file, monkeypatch):
    monkeypatch.chdir(tiny_folder.parent)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)  # what would ask the Hub
    message = r"tiny-lama: no such folder\. Did you mean 'tiny-llama'\? An id of the Hub has the form org/name"
    refused(message, "evaluate", "tiny-lama", "--text", text_file)


# What a file may be in the place of ----------------------------------------------------------------------------------

PLAIN = ("--preset", "plain", "--criterion")
TAYLOR = (*PLAIN, "taylor", *SMALL_FLAGS)
ARGUMENTS = {
    "model": ("plan", "{}", "-o", "out", *PLAIN, "magnitude"),
    "calibration": ("prune", "base", "-o", "out", *TAYLOR, "--calibration", "{}"),
    "calibration of a dry run": ("plan", "base", "--dry-run", *TAYLOR, "--calibration", "{}"),
    "card template": ("apply", "pruned", "base", "-o", "out", "--card-template", "{}"),
    "recipe": ("prune", "-o", "out", "--config", "{}"),
    "scores": ("plan", "base", "-o", "out", "--from-scores", "{}"),
    "plan": ("apply", "{}", "base", "-o", "out"),
    "other plan": ("plan-diff", "pruned", "{}"),
    "records": ("recover", "pruned", "-o", "out", "--data", "{}", "--max-steps", 1, "--seq-len", 64),
    "adapter": ("recover", "pruned", "-o", "out", "--adapter", "{}"),
    "text": ("evaluate", "base", "--text", "{}"),
    "tasks": ("evaluate", "base", "--tasks", "mine", "--task-path", "{}"),
    "evidence": ("report", "pruned", "-o", "out", "--no-generate", "--evidence", "{}"),
    "pushed": ("push", "{}", "me/name", "--dry-run"),
}
# An empty template is one, and a dry run reads no text.
KINDS = {"folder": "", "missing": "", "empty": "card template, calibration of a dry run", "/dev/null": ""}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_what_is_no_file_of_its_kind_is_one_line(argument, kind, place_of_files, refused):
    if argument in KINDS[kind].split(", "):
        pytest.skip("may be empty")
    (place_of_files / "folder").mkdir()
    (place_of_files / "empty").write_text("")
    refused("", *[kind if part == "{}" else part for part in ARGUMENTS[argument]])


@pytest.mark.parametrize("argument", ["calibration", "card template", "recipe", "plan", "records", "text"])
@pytest.mark.parametrize("suffix", ["", ".jsonl", ".parquet"])
def test_a_file_that_may_not_be_read_is_one_line(argument, suffix, place_of_files, refused, monkeypatch):
    name = f"private{suffix}"
    (place_of_files / name).write_text("{}")
    unreadable(monkeypatch, name)
    refused("Permission denied", *[name if part == "{}" else part for part in ARGUMENTS[argument]])


def test_a_template_that_may_not_be_read_is_an_error_of_ours(tmp_path, monkeypatch):
    from optimum_moreau.saving.card import check_template

    (tmp_path / "card.md").write_text("{{ title }}")
    unreadable(monkeypatch, tmp_path / "card.md")
    with refusal(CheckpointError, r"card\.md: cannot be read \(Permission denied\)"):
        check_template(tmp_path / "card.md")


@pytest.fixture
def place_of_files(tmp_path, tiny_folder, folders, monkeypatch):
    """A working folder with a base model and a pruned one."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    shutil.copytree(folders["stock"], tmp_path / "pruned")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unreadable(monkeypatch, file):
    """A file cannot be opened by this name, as where its mode forbids it (but to root, who may run the tests)."""

    def refuse(path, *arguments, opened=io.open, **options):
        if str(path) == str(file):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    for where in ("io.open", "builtins.open"):
        monkeypatch.setattr(where, refuse)
