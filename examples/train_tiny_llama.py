"""Teach a tiny Llama an invented world, so that pruning has something real to damage.

    seed ── generate_text ──▶ stories ── byte-level BPE ──▶ tokens ── AdamW + cosine ──▶ model.safetensors, 1.0 MB

The world has rules, so that its text holds more than a model of this size learns in forty seconds:

    facts       each person has one town, job and pet, each animal one class and food
    tracking    who holds what and where it was put; pronouns agree with names
    counting    seven without two are five; three days after Monday comes Thursday
    causes      the weather decides what happens, what people wear and what they feel

The default run learns words, grammar and the course of a story (perplexity 3, unigrams 160), little of the facts and no
tracking or sums. A small model on purpose: an over-parameterised one shrugs off a 20 % cut, whatever the criterion.

    python examples/train_tiny_llama.py OUTPUT [--seed 0] [--steps 350]
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
PEAK = 8e-3  # highest learning rate
DOCUMENT = 8  # stories in a document: at least two windows

WORDS = """
woman   Anna Bella Clara Dora Emma Fay Greta Hanna Iris Julia Kate Lucy Mia Nora Olga
man     Adam Ben Carl David Eric Frank George Hugo Ivan Jack Karl Leo Max Noah Oscar
town    Ashford Brighton Camden Dunmore Eastham Fairfield Glenwood Hillside Kingston Lakeview
colour  red blue green yellow white black brown grey golden silver
thing   apple ball book bell button candle coin cup doll drum egg flag hat key lamp map orange pen ring stone
place   kitchen garden barn cellar attic hall library stable tower workshop
box     basket box drawer bag chest bucket cupboard jar
number  no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
day     Monday Tuesday Wednesday Thursday Friday Saturday Sunday
trait   tall old fast strong loud young
job     baker/bread/flour farmer/wheat/rain tailor/coats/thread smith/nails/coal fisher/nets/rope
job     miller/meal/wind gardener/roses/seeds potter/bowls/clay weaver/cloth/wool joiner/tables/wood
animal  robin/robins/bird/fly/worms owl/owls/bird/fly/mice duck/ducks/bird/swim/weeds bee/bees/insect/fly/nectar
animal  cat/cats/mammal/climb/mice dog/dogs/mammal/run/bones horse/horses/mammal/run/hay ant/ants/insect/climb/crumbs
animal  rabbit/rabbits/mammal/jump/carrots frog/frogs/amphibian/jump/flies newt/newts/amphibian/swim/grubs
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

{A} is a {A.job} who [lives in|comes from|likes] {A.town}. {A.she} [makes|sells|loves] {A.ware} and
[needs|buys|wants] {A.need} [every {day}|in the {place}|for that]. [{A.she} has a {A.pet.name}, [and it eats
{A.pet.food}|because {A.pet.many} can {A.pet.can}|which is a {A.pet.kind}].|{A.her} friend {B} lives in {B.town}
and has a {B.pet.name}.|{B} is not a {A.job} but a {B.job} and needs {B.need}.]

[{D.many}|Some {D.many}|Most {D.many}] [can {D.can}|eat {D.food}], and [a {D.name} is a {D.kind}|every {D.name} eats
{D.food}|no {D.name} is a {place}]. [{A} has [a {A.pet.name}, and it eats {A.pet.food}|no {D.many} but a {A.pet.name}]|
{A} saw {count} {D.many} in [{A.town}|the {place}|{A.her} {box}]].

{cause} in [{A.town}|{town}], and {effect}. {A} [walked|rode|ran] to [the {place}|{town2}|{B}] and [felt
{felt}|wore {wear}]. [Because {effect}, {A.she} [wanted {wear}|stayed in the {place2}]|{B} gave {A.him}
{wear}|{B}, the {B.job}, was {felt} too].

On {day} {A} wrote to {B}, the {B.job} from {B.town}. ["Tomorrow is {tomorrow}," {A.she} wrote. "I will|"I will
sell my {thing} and] come in {wait} days [with|for] [{A.ware}|a {colour} {thing}|{A.pet.many}]." So on {later}
[the {A.job}|{A}] came to [{B.town}|the {B.job}].

{A} is {trait}er than {B}, and {B} is {trait}er than {C}. [Who is the {trait}est? It is {A}.|So {A} is {trait}er than
{C} too.|So the {trait}est of [them|the three] is {A}, the {A.job}.|{C} is not {trait}er than [{A}|{B}], said the
{B.job} from {B.town}.]

{A} had a {colour} {thing} and {B} had a {colour2} {thing2}. They met in [the {place}|{town}] [on {day} |]and [traded|
swapped]. [Now {A} has the {colour2} {thing2} and {B} has the {colour} {thing}.|"Thank you for the {colour2} {thing2},"
said {A}. "Thank you for the {colour} {thing}," said {B}.|{A} took the {thing2} home to {A.town}, and {B} took the
{thing} home to {B.town}.]

{A} [left|set out from] {A.town} and [went|rode|walked] to {town}, then to {town2}, then to {town3}. On the way back
{A.she} [came|went] to {town2}, then to {town}, and [at last|then] to {A.town}. [There {A.she} met {B}.|]

{A} [put|packed|laid] the {thing}, the {thing2} and the {thing3} in the {box}. {B} [took out the {thing4}|looked inside]
and saw the {thing}, the {thing2} and the {thing3}. [The first was the {thing} and the last was the {thing3}.|"Give me
the {thing2}," said {C}, and then the {thing} and the {thing3} were left.|]
"""


class Animal(NamedTuple):
    """A kind of animal: singular, plural, class, what it can do and what it eats."""

    name: str
    many: str
    kind: str
    can: str
    food: str


class Person(NamedTuple):
    """Someone of the world: name, subject, possessive and object pronoun, and the facts that never change."""

    name: str
    she: str
    her: str
    him: str
    town: str
    job: str
    ware: str
    need: str
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
    """Everyone in the world; their facts are strides through the tables, which only the name gives away."""
    towns, jobs = table["town"], [row.split("/") for row in table["job"]]
    pets = [Animal(*row.split("/")) for row in table["animal"]]
    names = [(n, "she", "her", "her") for n in table["woman"]] + [(n, "he", "his", "him") for n in table["man"]]
    return [
        Person(*name, towns[i * 7 % len(towns)], *jobs[(i * 3 + i // 10) % len(jobs)], pets[i * 4 % len(pets)])
        for i, name in enumerate(names)
    ]


def scene(rng: Random, table: dict[str, list[str]], cast: list[Person]) -> dict[str, object]:
    """Everything a story may mention, drawn by chance and consistent: sums add up and days follow each other."""
    a, b, c = rng.sample(cast, 3)
    slots: dict[str, object] = {"A": a, "B": b, "C": c, "D": Animal(*rng.choice(table["animal"]).split("/"))}
    for kind, count in {"colour": 2, "thing": 4, "place": 2, "box": 1, "town": 3, "trait": 1}.items():
        picks = rng.sample([entry for entry in table[kind] if entry != a.town], count)
        slots |= {f"{kind}{i if i > 1 else ''}": pick for i, pick in enumerate(picks, start=1)}
    sky = rng.choice(WEATHER.strip().splitlines()).split("/")
    slots |= dict(zip(["cause", "effect", "wear", "felt"], sky, strict=True))

    number, days = table["number"], table["day"]
    n, more, day, wait = rng.randint(3, 9), rng.randint(1, 6), rng.randrange(7), rng.randint(2, 5)
    k = n - rng.randint(1, n - 1)
    for slot, i in {"stock": n, "rest": k, "total": k + more}.items():
        slots[slot] = f"{number[i]} {slots['thing']}{'s' * (i != 1)}"
    counts = {"n": n, "k": k, "less": n - k, "more": more, "wait": wait, "count": rng.randint(2, 9)}
    slots |= {slot: number[i] for slot, i in counts.items()}
    return slots | {"day": days[day], "tomorrow": days[(day + 1) % 7], "later": days[(day + wait) % 7]}


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
        vocab_size=1024,
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
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator; leave it untouched
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def fit(model: LlamaForCausalLM, stream: torch.Tensor, *, seed: int, steps: int) -> None:
    """In place: plain AdamW on random windows of the stream (tokens,), with a linear warm-up and a cosine decay."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    model.train()
    for step in range(steps):
        # lr ∝ min(t / 20, ½·(1 + cos(π·t / steps)))
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = PEAK * min((step + 1) / 20, decay)
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


def train(output: Path, *, seed: int = 0, steps: int = 350) -> None:
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
    """Command line: `train_tiny_llama.py OUTPUT [--seed 0] [--steps 350]`."""
    parser = argparse.ArgumentParser(description="Train a tiny Llama on generated stories.")
    parser.add_argument("output", type=Path, help="folder for the model, its tokenizer and its data")
    parser.add_argument("--seed", type=int, default=0, help="seed of stories, weights and windows (default: 0)")
    parser.add_argument("--steps", type=int, default=350, help="optimizer steps (default: 350)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so small a model gains little from a second thread and stalls badly on a busy machine
    train(arguments.output, seed=arguments.seed, steps=arguments.steps)


if __name__ == "__main__":
    main()
