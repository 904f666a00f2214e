"""Tiny random models of each family and a tokenizer, made in memory."""

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from optimum_moreau import PruningPlan
from optimum_moreau.data.parts import parted
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import Kept

FAMILIES = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "smollm3", "olmo",
    "phi3", "cohere", "cohere2", "glm", "glm4", "starcoder2", "nemotron", "seed_oss", "ernie4_5", "exaone4",
    "hunyuan_v1_dense", "apertus", "arcee",
)  # fmt: skip
TEXT = "The quick brown fox jumps over the lazy dog. A small model reads a small text and learns a little of it. "


def tiny_model(model_type="llama", *, seed=0, dtype=torch.float32, **changes):
    """A random causal language model: 3 layers, width 32, 4 heads in 2 KV groups of head width 8, 24 channels."""
    values = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "initializer_range": 0.2,  # large enough that the layers matter
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        **changes,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values), dtype=dtype)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # the defaults 0 and 1 would hide mistakes
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model.eval()


@torch.no_grad()
def own_windows(model, count, length, *, seed=1):
    """Token ids `(count, length)` that the model itself would write: it is better on them than any other model."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (count, 1), generator=generator)
    for _ in range(length - 1):
        odds = model(input_ids=ids, use_cache=False).logits[:, -1].float().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(odds, 1, generator=generator)], dim=1)
    return ids


def in_parts(windows):
    """Two folds to fit on, and a sixth that is held out."""
    return parted(windows, max(len(windows) // 6, 1))


def tiny_tokenizer(begins=()):
    """A byte-level BPE tokenizer with <s> and </s>, about 300 tokens; `begins`: the tokens it puts before a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT], trainer)
    if begins:
        ids = [(token, bpe.token_to_id(token)) for token in begins]
        bpe.post_processor = processors.TemplateProcessing(single=f"{' '.join(begins)} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def cut_plan(model, attention, mlp, seed=0):
    """A plan that removes so many random units from each layer: `attention` and `mlp` have one count per layer."""
    shape = model_shape(model)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for block in shape.blocks:
        gone = {"attention": attention, "mlp": mlp}[block.kind][block.layer]
        kept = torch.randperm(block.total, generator=generator)[gone:].sort().values.tolist()
        layers.setdefault(block.layer, {})[block.kind] = Kept(tuple(kept), block.total)
    return PruningPlan(shape.family.model_type, layers)


def snapshot(model):
    """Everything of a model that a refused or undone action must leave as it was, as comparable values."""
    weights = {name: (weight.dtype, weight.cpu().clone()) for name, weight in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config = model.config.to_dict() | {"architectures": None}  # every save sets it
    return type(model), config, model.training, flags, weights


def assert_same_state(model, before):
    after = snapshot(model)
    assert after[:-1] == before[:-1]
    assert after[-1].keys() == before[-1].keys()
    for name, (dtype, weight) in before[-1].items():
        assert after[-1][name][0] == dtype and torch.equal(after[-1][name][1], weight), name


def weights_in(folder):
    """All tensors of a saved folder."""
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def contents(folder):
    """Everything below a folder, hidden files and empty folders too: path → bytes, `None` for a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
