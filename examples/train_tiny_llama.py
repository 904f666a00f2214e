"""Teach a tiny Llama an invented world, so that pruning has something real to damage.

    seed ── generate_text ──▶ stories ── byte-level BPE ──▶ tokens ── AdamW + cosine ──▶ model.safetensors, 3 MB

The world is small but has rules, and a language model lowers its loss only by learning them:

    facts       each person has one town, job and pet, each animal one class and food     (kept in the weights)
    tracking    who holds what and where it was put; pronouns agree with names            (copied from the context)
    counting    seven without two are five; three days after Monday comes Thursday        (computed)
    causes      the weather decides what happens, what people wear and what they feel     (kept in the weights)

The model is small relative to that task on purpose: an over-parameterised one would shrug off a 20 % cut, and every
pruning criterion would look alike.

    python examples/train_tiny_llama.py OUTPUT [--seed 0] [--steps 500]
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WINDOW = 128  # tokens in a training window
BATCH = 8  # windows in a step
PEAK = 5e-3  # highest learning rate
VOCABULARY = 1024  # tokens, the 256 bytes included
DOCUMENT = 8  # stories in a document: at least two windows

WORDS = """
women   Anna Bella Clara Dora Emma Fay Greta Hanna Iris Julia Kate Lucy Mia Nora Olga
men     Adam Ben Carl David Eric Frank George Hugo Ivan Jack Karl Leo Max Noah Oscar
towns   Ashford Brighton Camden Dunmore Eastham Fairfield Glenwood Hillside Kingston Lakeview
colours red blue green yellow white black brown grey golden silver
things  apple ball book bell button candle coin cup doll drum egg flag hat key lamp map orange pen ring stone
places  kitchen garden barn cellar attic hall library stable tower workshop
boxes   basket box drawer bag chest bucket cupboard jar
numbers no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
days    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
traits  tall old fast strong loud young
jobs    baker/bread/flour farmer/wheat/rain tailor/coats/thread smith/nails/coal fisher/nets/rope
jobs    miller/meal/wind gardener/roses/seeds potter/bowls/clay weaver/cloth/wool joiner/tables/wood
animals robin/robins/bird/fly/worms owl/owls/bird/fly/mice duck/ducks/bird/swim/weeds bee/bees/insect/fly/nectar
animals cat/cats/mammal/climb/mice dog/dogs/mammal/run/bones horse/horses/mammal/run/hay ant/ants/insect/climb/crumbs
animals rabbit/rabbits/mammal/jump/carrots frog/frogs/amphibian/jump/flies newt/newts/amphibian/swim/grubs
"""

# What the sky did / what followed / what people wore / how they felt
WEATHER = """
It rained all day/the road was wet/boots/gloomy
It snowed all night/the hills were white/gloves/merry
The sun was very hot/the grass was dry/a straw hat/thirsty
A strong wind blew/the leaves fell down/a scarf/cold
A thick fog came/nobody could see the bridge/a bright coat/lost
A storm broke out/the boats stayed in the harbour/a cloak/afraid
"""

# A {slot} is filled from the scene, [one|of|these] is drawn by chance, a blank line ends a story.
STORIES = """
[In the morning|Last week|Once|At noon] {A} had {stock} in [a|the|{A.her}] {box}. {A.she}
[gave {less} to {B}|lost {less}|sold {less} to {B}|broke {less}], so {A.she} had {rest}.
[Then {A.she} [found|made|bought] {more} more, and now {A.she} has {total}.|{B} said that {less} from {n} leaves {k}.|]

{A} put {A.her} {colour} {thing} in the {box} and [went to|slept in|worked in] the {place}. {B} took the {thing}
[out of the {box}|from there] and [carried|moved|brought] it to the {place2}. When {A} came back, the {box} was empty.
"Where is my {colour} {thing}?" [asked|cried] {A}. "It is in the {place2}," said {B}.
[So {A} went to the {place2} and found the {thing}.|{A} was [angry|sad|glad].|]

{A} [put|kept|hid] {A.her} {colour} {thing} in the {box}, and {B} [put|kept|hid] {B.her} {colour2} {thing2} in the {box2}.
[Later {A.she} opened the {box} and saw the {colour} {thing}.|Later {B.she} opened the {box2} and saw the {colour2}
{thing2}.|"What is in the {box}?" asked {C}. "A {colour} {thing}," said {A}.|"What is in the {box2}?" asked {C}.
"A {colour2} {thing2}," said {B}.]

{A} is a {A.job.name} who [lives in|comes from|likes] {A.town}. {A.she} [makes|sells|loves] {A.job.ware} and
[needs|buys|wants] {A.job.need} [every {day}|in the {place}|for that]. [{A.she} has a {A.pet.name}, [and it eats
{A.pet.food}|because {A.pet.many} can {A.pet.can}|which is a {A.pet.kind}].|{A.her} friend {B} lives in {B.town}
and has a {B.pet.name}.|{B} is not a {A.job.name} but a {B.job.name} and needs {B.job.need}.]

[{D.many}|Some {D.many}|Most {D.many}] [can {D.can}|eat {D.food}], and [a {D.name} is a {D.kind}|every {D.name} eats
{D.food}|no {D.name} is a {place}]. [{A} has [a {A.pet.name}, and it eats {A.pet.food}|no {D.many} but a {A.pet.name}]|
{A} saw {count} {D.many} in [{A.town}|the {place}|{A.her} {box}]].

{sky.cause} in [{A.town}|{town}], and {sky.effect}. {A} [walked|rode|ran] to [the {place}|{town2}|{B}] and [felt
{sky.felt}|wore {sky.wear}]. [Because {sky.effect}, {A.she} [wanted {sky.wear}|stayed in the {place2}]|{B} gave {A.him}
{sky.wear}|{B}, the {B.job.name}, was {sky.felt} too].

On {day} {A} wrote to {B}, the {B.job.name} from {B.town}. ["Tomorrow is {tomorrow}," {A.she} wrote. "I will|"I will
sell my {thing} and] come in {wait} days [with|for] [{A.job.ware}|a {colour} {thing}|{A.pet.many}]." So on {later}
[the {A.job.name}|{A}] came to [{B.town}|the {B.job.name}].

{A} is {trait}er than {B}, and {B} is {trait}er than {C}. [Who is the {trait}est? It is {A}.|So {A} is {trait}er than
{C} too.|So the {trait}est of [them|the three] is {A}, the {A.job.name}.|{C} is not {trait}er than [{A}|{B}], said the
{B.job.name} from {B.town}.]

{A} had a {colour} {thing} and {B} had a {colour2} {thing2}. They met in [the {place}|{town}] [on {day} |]and [traded|
swapped]. [Now {A} has the {colour2} {thing2} and {B} has the {colour} {thing}.|"Thank you for the {colour2} {thing2},"
said {A}. "Thank you for the {colour} {thing}," said {B}.|{A} took the {thing2} home to {A.town}, and {B} took the
{thing} home to {B.town}.]

{A} [left|set out from] {A.town} and [went|rode|walked] to {town}, then to {town2}, then to {town3}. On the way back
{A.she} [came|went] to {town2}, then to {town}, and [at last|then] to {A.town}. [There {A.she} met {B}.|]

{A} [put|packed|laid] the {thing}, the {thing2} and the {thing3} in the {box}. {B} [took out the {thing4}|looked inside]
and saw the {thing}, the {thing2} and the {thing3}. [The first was the {thing} and the last was the {thing3}.|"Give me the
{thing2}," said {C}, and then the {thing} and the {thing3} were left.|]
"""


class Job(NamedTuple):
    """A trade, what it makes and what it uses up."""

    name: str
    ware: str
    need: str


class Animal(NamedTuple):
    """A kind of animal: singular, plural, class, what it can do and what it eats."""

    name: str
    many: str
    kind: str
    can: str
    food: str


class Sky(NamedTuple):
    """A kind of weather and what follows from it."""

    cause: str
    effect: str
    wear: str
    felt: str


class Person(NamedTuple):
    """Someone of the world: name, subject, possessive and object pronoun, and the facts that never change."""

    name: str
    she: str
    her: str
    him: str
    town: str
    job: Job
    pet: Animal

    def __str__(self) -> str:
        return self.name


def words() -> dict[str, list[str]]:
    """The rows of `WORDS` by kind; rows of one kind are joined."""
    table: dict[str, list[str]] = {}
    for kind, *entries in map(str.split, WORDS.strip().splitlines()):
        table.setdefault(kind, []).extend(entries)
    return table


def people(table: dict[str, list[str]]) -> list[Person]:
    """Everyone in the world; their facts come from strides through the tables, so that none follows from another."""
    towns = table["towns"]
    jobs = [Job(*row.split("/")) for row in table["jobs"]]
    pets = [Animal(*row.split("/")) for row in table["animals"]]
    names = [(name, "she", "her", "her") for name in table["women"]] + [
        (name, "he", "his", "him") for name in table["men"]
    ]
    return [
        Person(*name, towns[i * 7 % len(towns)], jobs[(i * 3 + i // 10) % len(jobs)], pets[i * 4 % len(pets)])
        for i, name in enumerate(names)
    ]


def scene(rng: Random, table: dict[str, list[str]], cast: list[Person]) -> dict[str, object]:
    """Everything a story may mention, drawn by chance and consistent: sums add up and days follow each other."""
    a, b, c = rng.sample(cast, 3)
    n, more, day, wait = rng.randint(3, 9), rng.randint(1, 6), rng.randrange(7), rng.randint(2, 5)
    k = n - rng.randint(1, n - 1)
    drawn = {"A": a, "B": b, "C": c, "D": Animal(*rng.choice(table["animals"]).split("/"))}
    for kind, count in {"colour": 2, "thing": 4, "place": 2, "box": 2, "town": 3, "trait": 1}.items():
        rows = table["boxes" if kind == "box" else f"{kind}s"]
        picks = rng.sample([row for row in rows if row != a.town], count)
        drawn |= {f"{kind}{i or ''}": pick for i, pick in zip([0, 2, 3, 4], picks, strict=False)}
    amounts = {"stock": n, "rest": k, "total": k + more}
    number, days = table["numbers"], table["days"]
    return drawn | {
        **{slot: f"{number[i]} {drawn['thing']}{'s' * (i != 1)}" for slot, i in amounts.items()},
        **{"n": number[n], "k": number[k], "less": number[n - k], "more": number[more], "wait": number[wait]},
        **{"day": days[day], "tomorrow": days[(day + 1) % 7], "later": days[(day + wait) % 7]},
        **{"count": number[rng.randint(2, 9)], "sky": Sky(*rng.choice(WEATHER.strip().splitlines()).split("/"))},
    }


def tell(rng: Random, story: str, slots: dict[str, object]) -> str:
    """A story from its pattern: choices drawn, slots filled, articles and capitals put right."""
    while "[" in story:  # innermost choices first
        story = re.sub(r"\[([^][]*)\]", lambda choice: rng.choice(choice[1].split("|")), story)
    text = " ".join(story.format(**slots).split())
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return re.sub(r'(^|[.?!] "?)([a-z])', lambda start: start[1] + start[2].upper(), text)


def generate_text(seed: int, stories: int) -> list[str]:
    """Tells short stories about the invented world.

    Args:
        seed: Seed of the story-teller; the world itself, its people and its facts, never changes.
        stories: How many stories to tell.

    Returns:
        One string per story, of two to six sentences.
    """
    rng, table = Random(seed), words()
    cast, patterns = people(table), STORIES.strip().split("\n\n")
    return [tell(rng, rng.choice(patterns), scene(rng, table, cast)) for _ in range(stories)]


def documents(seed: int, count: int) -> list[str]:
    """Stories bound into documents of `DOCUMENT` stories, one story per line."""
    stories = generate_text(seed, count * DOCUMENT)
    return ["\n".join(stories[i : i + DOCUMENT]) for i in range(0, len(stories), DOCUMENT)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which can spell any text; `<s>` is 0, `</s>` is 1, and `<s>` opens every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def new_model(seed: int, vocabulary: int) -> LlamaForCausalLM:
    """An untrained Llama with grouped-query attention: two query heads share each key/value head."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.05,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator; leave it untouched
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def fit(model: LlamaForCausalLM, stream: torch.Tensor, *, seed: int, steps: int) -> None:
    """In place: plain AdamW on random windows of the stream (tokens,), with linear warm-up and cosine decay."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    warmup = max(1, steps // 20)
    model.train()
    for step in range(steps):
        # lr ∝ min(t / warmup, ½·(1 + cos(π·t / steps)))
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = PEAK * min((step + 1) / warmup, decay)
        start = torch.randint(len(stream) - WINDOW, (BATCH, 1), generator=generator)
        tokens = stream[start + torch.arange(WINDOW)]  # (batch, window)
        tokens[::2, 0] = 0  # half the windows open with <s>, as prompts do; the others begin anywhere
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}", file=sys.stderr)
    model.eval()


def train(output: Path, *, seed: int = 0, steps: int = 400) -> None:
    """Trains a tiny Llama on generated stories and saves it with its tokenizer and data.

    Writes `model.safetensors` and its configuration, the tokenizer, and `calibration.jsonl` and `heldout.jsonl`,
    documents that the model has not seen (field `text`, one document per line).

    Args:
        output: Folder to write, made if missing.
        seed: Seed of the stories, of the initial weights and of the order of the windows.
        steps: Optimizer steps of `BATCH` windows of `WINDOW` tokens.
    """
    texts = documents(3 * seed, 500)
    tokenizer = train_tokenizer(texts)
    model = new_model(seed, len(tokenizer))
    stream = [token for ids in tokenizer(texts).input_ids for token in [*ids, tokenizer.eos_token_id]]
    fit(model, torch.tensor(stream), seed=seed, steps=steps)

    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    for offset, name in enumerate(["calibration", "heldout"], start=1):
        lines = [json.dumps({"text": text}) + "\n" for text in documents(3 * seed + offset, 64)]
        (Path(output) / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Command line: `train_tiny_llama.py OUTPUT [--seed 0] [--steps 400]`."""
    parser = argparse.ArgumentParser(description="Train a tiny Llama on generated stories.")
    parser.add_argument("output", type=Path, help="folder for the model, its tokenizer and its data")
    parser.add_argument("--seed", type=int, default=0, help="seed of stories, weights and windows (default: 0)")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps (default: 400)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    train(arguments.output, seed=arguments.seed, steps=arguments.steps)


if __name__ == "__main__":
    main()
