"""What belongs to tokenizer and licence goes along with a pruned model; a config says what is there."""

import json
import os
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.saving.contents import carry_over
from tests import warm
from tests.hub_client import environment
from tests.tiny import tiny_model

LICENCES = {"LICENSE": b"be kind", "NOTICE.txt": b"made by", "USE_POLICY.md": b"no harm", "licence-of-data.md": b"also"}
TOKENIZER = {"tokenizer.model": b"\x0a\x05", "qwen.tiktoken": b"IQ== 0", "merges.txt": b"a b"}
OTHERS = {
    "LICENSE.py": b"print()",
    "NOTICE.sh": b"rm",
    "LICENSE.safetensors": b"0",
    "modeling_evil.py": b"print()",
    "pytorch_model.bin": b"0",
    "optimizer.pt": b"0",
    "notes.txt": b"mine",
    "LICENSED_USERS.csv": b"ada",
    "LICENSE.html": b"<script>",
}
CONFIG = MoreauPrunerConfig(criterion="magnitude", unit_ratio=0.5)


@pytest.fixture
def base(tmp_path, tokenizer):
    """A base model with much beside its weights."""
    folder = tmp_path / "base"
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in (LICENCES | TOKENIZER | OTHERS).items():
        (folder / name).write_bytes(content)
    return folder


def pruned(base, folder):
    pruner = MoreauPruner(CONFIG, tokenizer=load_tokenizer(str(base)))
    pruner.prune(load_model(str(base)))
    pruner.save_pretrained(folder)
    return folder


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_licence_and_tokenizer_files_go_along_and_nothing_else(base, tmp_path, unverified):
    out = pruned(base, tmp_path / "out")
    assert {name: (out / name).read_bytes() for name in LICENCES | TOKENIZER} == LICENCES | TOKENIZER
    assert not names(out) & OTHERS.keys()


def test_they_go_along_through_a_recovery(base, tmp_path, unverified, text):
    from optimum_moreau import RecoveryConfig

    pruner = MoreauPruner.from_pretrained(pruned(base, tmp_path / "out"))
    pruner.recover([text], RecoveryConfig(sequence_length=16, max_steps=1, batch_size=1))
    pruner.save_pretrained(tmp_path / "recovered")
    assert (LICENCES | TOKENIZER).keys() <= names(tmp_path / "recovered")


def test_a_written_file_is_not_replaced_by_the_bases(base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "LICENSE").write_text("the new one")
    carry_over(out, str(base))
    assert (out / "LICENSE").read_text() == "the new one" and (out / "NOTICE.txt").is_file()


def test_files_of_another_vocabulary_stay_behind(base, tmp_path, unverified):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    pruner = MoreauPruner(CONFIG, tokenizer=tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    pruner.prune(model)
    pruner.save_pretrained(tmp_path / "out")
    assert names(tmp_path / "out") & (LICENCES | TOKENIZER).keys() == LICENCES.keys()


def test_links_out_of_the_folder_and_large_files_stay_behind(base, tmp_path):
    (tmp_path / "secret").write_text("key")
    (base / "COPYING").symlink_to(tmp_path / "secret")
    (base / "LICENSE-inside").symlink_to("LICENSE")
    (base / "NOTICE.md").write_bytes(b"0" * (2**20 + 1))
    (base / "LICENSE.d.txt").mkdir()
    os.mkfifo(base / "COPYRIGHT")
    (out := tmp_path / "out").mkdir()
    carry_over(out, str(base))
    assert names(out) & names(base) == LICENCES.keys() | {"LICENSE-inside"}


@pytest.mark.parametrize("name", [None, "", "no/such", "no/such/folder", "../there", "org/name with space"])
def test_a_base_that_is_not_there_leaves_the_folder_as_it_is(tmp_path, name):
    carry_over(tmp_path, name, tokenizer=name)
    assert not names(tmp_path)


FROM_HUB = """
import sys
from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.saving.verification import Verification
import optimum_moreau.pruner
optimum_moreau.pruner.verify = lambda *_, **__: Verification(0.0, 1)
pruner = MoreauPruner(MoreauPrunerConfig(criterion="magnitude", unit_ratio=0.5), tokenizer=load_tokenizer("org/base"))
pruner.prune(load_model("org/base"))
pruner.save_pretrained(sys.argv[1])
"""


@pytest.mark.parametrize("reached", [True, False])
def test_a_hub_models_licence_is_fetched_where_the_hub_answers(hub, base, tmp_path, reached):
    hub.repositories["org/base"] = {}
    hub.commit("org/base", "main", {path.name: path.read_bytes() for path in base.iterdir()})
    if not reached:
        hub.failures += [("GET", "/api/models/org/base/revision", 500)] * 20
    done = warm.run(
        [sys.executable, "-P", "-c", FROM_HUB, tmp_path / "out"], timeout=120, env=environment(hub, tmp_path / "home")
    )
    assert done.returncode == 0, done.stderr
    found = names(tmp_path / "out")
    assert found & LICENCES.keys() == (LICENCES.keys() if reached else set())
    assert not found & OTHERS.keys()
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


# A config says what is there


@pytest.mark.parametrize("export", ["stock", "custom"])
def test_weights_that_are_not_tied_are_not_said_to_be(tmp_path, export):
    model = tiny_model("llama", tie_word_embeddings=True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + torch.randn_like(model.lm_head.weight))
    scope = {"attention_layers": (0, 3), "mlp_layers": (0, 3)} if export == "stock" else {}
    MoreauPruner(MoreauPrunerConfig(criterion="magnitude", unit_ratio=0.5, export=export, **scope)).prune(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path), torch.arange(16)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_weights_that_are_tied_are_said_to_be(tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    MoreauPruner(CONFIG).prune(model)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers"])
def test_layers_that_are_not_loaded_are_not_counted(tmp_path, key):
    model = tiny_model("qwen2", **{key: 1, "mtp_note": "kept", "num_untouched": 3})
    MoreauPruner(CONFIG).prune(model)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written[key], written["mtp_note"], written["num_untouched"]) == (0, "kept", 3)
    assert getattr(AutoConfig.from_pretrained(tmp_path), key) == 0
