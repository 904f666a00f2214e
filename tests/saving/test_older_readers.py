"""A stock export is the same network, with the same tokens, for transformers 4.57 and for 5."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.saving.older_readers import spell_for_older_readers
from optimum_moreau.saving.verification import Verification
from tests.models.test_rope import ROPES, roped
from tests.tiny import FAMILIES, cut_plan, tiny_model, tiny_tokenizer

VERSION = "4.57.6"
PACKAGES = (f"transformers=={VERSION}", "huggingface-hub==0.36.0", "tokenizers==0.22.1")
PROMPTS = ["The quick brown fox", "  two  spaces\n", "<s> a <tool> b</s>", "größer 🦊"]
SCRIPT = Path(__file__).parents[1] / "older_process.py"
STOCK = MoreauPrunerConfig(
    criterion="magnitude", unit_ratio=0.5, attention_layers=(0, 3), mlp_layers=(0, 3), export="stock"
)
LENGTHS = (16, 96)
SHALLOW = ("gemma2", "cohere2", "smollm3", "qwen2", "exaone4")  # what a layer is follows from its index


@pytest.fixture(scope="session")
def older():
    """A folder with an older transformers and what it needs, installed once and kept."""
    folder = Path(
        os.environ.get("MOREAU_TRANSFORMERS_4", f"~/.cache/optimum-moreau/transformers-{VERSION}")
    ).expanduser()
    if not (folder / "transformers").is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            target = ["--no-deps", "--disable-pip-version-check", "--quiet", "--target", f"{work}/made"]
            pip = [sys.executable, "-m", "pip", "install", "--retries", "0", "--timeout", "15", *target, *PACKAGES]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"transformers {VERSION} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
            if not folder.exists():
                Path(work, "made").rename(folder)
    return folder


def talking_tokenizer():
    """With a chat template, and a special token of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    return tokenizer


def saved(model, folder, tokenizer=None):
    """Pruned to a stock export and saved as `MoreauPruner` saves."""
    pruner = MoreauPruner(STOCK, tokenizer=tokenizer)
    pruner.prune(model)
    pruner.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Every family, and a LLaMA with every kind of RoPE: name → its folder."""
    root, tokenizer = tmp_path_factory.mktemp("stock"), talking_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_moreau.pruner.verify", lambda *_, **__: Verification(0.0, 1))
        for family in FAMILIES:
            dtype = torch.bfloat16 if family == "apertus" else torch.float32
            theta = {} if family == "gemma3_text" else {"rope_theta": 5e5}
            saved(tiny_model(family, dtype=dtype, vocab_size=len(tokenizer), **theta), root / family, tokenizer)
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        parameters = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0},
        }
        gemma = tiny_model("gemma3_text", vocab_size=len(tokenizer), layer_types=layers, rope_parameters=parameters)
        saved(gemma, root / "gemma3 scaled", tokenizer)
        for family in SHALLOW:
            model = tiny_model(family, vocab_size=len(tokenizer), rope_theta=5e5)
            pruner = MoreauPruner(MoreauPrunerConfig(export="stock"), tokenizer=tokenizer)
            pruner.apply(model, replace(cut_plan(model, [0, 0, 0], [0, 0, 0]), kept_layers=(0, 2)))
            pruner.save_pretrained(root / f"{family} shallow")
        for rope in ROPES:
            saved(roped(rope), root / f"llama {rope}")
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def read(older, exports, tmp_path_factory):
    """What the older transformers makes of them, all in one process."""
    results = tmp_path_factory.mktemp("older") / "logits.safetensors"
    folders = {
        name: {"folder": str(folder), "lengths": LENGTHS, "tokenizer": (folder / "tokenizer.json").is_file()}
        for name, folder in exports.items()
    }
    request = {"version": VERSION, "folders": folders, "prompts": PROMPTS, "tokens": tokens(), "results": str(results)}
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(older)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(results), json.loads(done.stdout)


def tokens():
    return torch.randint(3, 64, (max(LENGTHS),), generator=torch.Generator().manual_seed(0)).tolist()


NAMES = [*FAMILIES, "gemma3 scaled", *(f"{family} shallow" for family in SHALLOW), *(f"llama {rope}" for rope in ROPES)]


@pytest.mark.parametrize("name", NAMES)
def test_the_older_reader_computes_the_same_logits(read, exports, name):
    model = AutoModelForCausalLM.from_pretrained(exports[name], attn_implementation="eager").eval()
    assert read[1][name]["dtype"] == str(model.dtype)
    for length in LENGTHS:
        with torch.no_grad():
            expected = model(torch.tensor([tokens()[:length]]), use_cache=False).logits.float()
        difference = (read[0][f"{name} {length}"] - expected).abs().max()
        assert difference <= 1e-5 * expected.abs().max(), f"{length}: {difference}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_older_reader_makes_the_same_tokens(read, family):
    tokenizer, found = talking_tokenizer(), read[1][family]
    assert found["ids"] == [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert found["special"] == sorted(tokenizer.all_special_tokens) and "<tool>" in found["special"]
    assert found["chat"] == tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert found["plain"] == tokenizer.decode(tokenizer("<s> a <tool> b")["input_ids"], skip_special_tokens=True)


# What this transformers reads


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", ["llama", "glm", "nemotron", "mistral"])
def test_this_transformers_reads_what_it_read_before(tmp_path, family, rope, caplog):
    factors = {key: [2.0, 3.0] for key in ("short_factor", "long_factor") if rope == "longrope"}
    parameters = {"rope_type": rope, **ROPES[rope], **(factors if family in ("glm", "nemotron") else {})}
    tiny_model(family, rope_parameters=parameters).save_pretrained(tmp_path)
    before, plain = AutoConfig.from_pretrained(tmp_path), (tmp_path / "config.json").read_text()
    caplog.clear()
    assert spell_for_older_readers(tmp_path) == ()
    assert (tmp_path / "config.json").read_text() != plain
    after = AutoConfig.from_pretrained(tmp_path)
    assert after.rope_parameters == before.rope_parameters and after.dtype == before.dtype
    assert {key: after.to_dict()[key] for key in before.to_dict()} == before.to_dict()
    assert not caplog.records


def test_this_transformers_loads_the_same_tokenizer(tmp_path):
    tokenizer = talking_tokenizer()
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    spell_for_older_readers(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(tokenizer) and again.get_vocab() == tokenizer.get_vocab()
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again.extra_special_tokens == ["<tool>"] and again.chat_template == tokenizer.chat_template


# What cannot be spelled is said

SLIDING = {
    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0},
    "full_attention": {"rope_type": "default", "rope_theta": 900.0},
}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: tiny_model("gemma3_text", rope_parameters=SLIDING), "RoPE of its sliding layers is scaled"),
        (lambda: roped("longrope", initializer_range=0.1), None),
        (
            lambda: tiny_model(rope_parameters={"rope_type": "longrope", **ROPES["longrope"], "factor": 5.0}),
            "its longrope has a factor of its own",
        ),
        (lambda: tiny_model("gemma2"), "transformers older than 5 needs attn_implementation='eager' for it"),
    ],
)
def test_what_the_older_reader_reads_otherwise_is_on_the_card(tmp_path, unverified, model, words):
    saved(model(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("ransformers older than 5" in card) == (words is not None)
    assert words is None or words[1:] in card


def test_saving_again_says_it_once(tmp_path, unverified):
    saved(tiny_model("gemma2"), tmp_path / "out", tiny_tokenizer())
    MoreauPruner.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text().count("needs attn_implementation") == 1
