"""Cards: a template from elsewhere can do nothing but write text, and text from data stays text."""

import json
import re
import shutil
import subprocess
import time
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from optimum_moreau.errors import CheckpointError, DataError
from optimum_moreau.evaluation.records import Measurement
from optimum_moreau.masks.summary import MatrixSparsity, SparsitySummary
from optimum_moreau.recovery import RecoverySummary
from optimum_moreau.saving.card import _known, check_template, of_base_card, template_path, write_card
from optimum_moreau.saving.hub import merged_card
from optimum_moreau.saving.records import Records
from optimum_moreau.templates import ChatTemplate, code, plain
from tests.evaluation.test_speed import side, speed
from tests.tiny import tiny_tokenizer

HEAD = "---\n{{ card_data }}\n---\n"


@pytest.fixture(scope="module")
def records(folders):
    return Records.load(folders["stock"])


@pytest.fixture
def template(tmp_path):
    def write(text):
        (tmp_path / "card.md").write_text(text)
        return tmp_path / "card.md"

    return write


# Templates from elsewhere

REACHING = [
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ lipsum.__globals__['os'].popen('touch ran').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ title.__class__ }}",
    "{{ summary.__init__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ summary.update({}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 'a' * 10 ** 7 }}",
]


@pytest.mark.parametrize("words", REACHING)
def test_a_template_reaches_nothing_but_its_values(records, template, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    file = template(HEAD + words)
    for action in (lambda: check_template(file), lambda: records.rewrite_card(tmp_path, file)):
        with pytest.raises(CheckpointError, match=r"card\.md: cannot be used as a card template"):
            action()
    assert {path.name for path in tmp_path.iterdir()} == {"card.md"}


@pytest.mark.parametrize("words", ENDLESS)
def test_a_template_without_an_end_is_refused_before_any_work(template, monkeypatch, words):
    monkeypatch.setattr("optimum_moreau.templates.foreign.SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"card\.md: cannot be used as a card template") as error:
        check_template(template(HEAD + words))
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 30


def test_a_recipes_template_is_no_other(command, template, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    template(HEAD + REACHING[0])
    (tmp_path / "recipe.yaml").write_text(f"model: {tiny_folder}\noutput: out\ncard_template: card.md\n")
    code, _, err = command("prune", "--config", "recipe.yaml")
    assert code == 2 and "cannot be used as a card template" in err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_the_template_that_ships_is_the_same_from_elsewhere(records, tmp_path):
    for name, file in {"ours": None, "theirs": shutil.copy(template_path(), tmp_path / "mine.md")}.items():
        (tmp_path / name).mkdir()
        check_template(file)
        records.rewrite_card(tmp_path / name, file)
    assert (tmp_path / "ours" / "README.md").read_bytes() == (tmp_path / "theirs" / "README.md").read_bytes()


STRANGERS = {
    "{{ titel }}": "no card holds 'titel'. Did you mean 'title'?",
    "{{ quux }}": "no card holds 'quux'",
    "{% if recovery %}{{ quux.a | code }}{% endif %}": "no card holds 'quux'",
    "{{ quux.a | default('') }}": "no card holds 'quux'",
    "{{ quux() }}": "no card holds 'quux'",
    "{% for x in quux %}{{ x }}{% endfor %}": "no card holds 'quux'",
    "{{ summary.ratio_acheived }}": "no card holds 'summary.ratio_acheived'. Did you mean 'summary.ratio_achieved'?",
    "{{ summary['dtypes'] }}": "no card holds 'summary.dtypes'. Did you mean 'summary.dtype'?",
    "{% if sparsity %}{{ sparsity.achived }}{% endif %}": "no card holds 'sparsity.achived'. Did you mean",
    "{{ settings.ratio_pruning }}": "no card holds 'settings.ratio_pruning'",
}
KNOWN = [
    "{% if quux is defined %}{{ quux.a }}{% endif %}{{ titel | default('') }}{{ quax | d('') }}",
    "{% if summary.quux is not defined %}x{% endif %}{% if 'quux' in settings %}{{ settings.quux.a }}{% endif %}",
    "{% set quux = 1 %}{% block one %}{{ quux }}{{ super is defined }}{% endblock %}{{ self.one() }}",
    "{% macro quux(a) %}{{ a }}{{ varargs }}{{ caller() }}{% endmacro %}{% call quux(1) %}{{ range(3) }}{% endcall %}",
    "{% for quux in layers %}{{ loop.index }}{% endfor %}",
    "{% set n = namespace(x=1) %}{{ n.x }}{% with b = 1 %}{{ b }}{% endwith %}",
    "{{ settings.pruning_ratio }}{{ settings.get('quux') }}",
    "{% for key, value in summary.items() %}{{ key }}{% endfor %}",
    "{{ license }}{{ tags }}{{ summary.compensation.quux }}{{ recovery.earlier.data.source }}{{ unit_names.mlp }}",
]


@pytest.mark.parametrize("words", STRANGERS)
def test_a_template_that_uses_what_no_card_holds_is_refused_before_any_work(template, words):
    with pytest.raises(
        CheckpointError, match=re.escape(f"card.md: cannot be used as a card template ({STRANGERS[words]}")
    ):
        check_template(template(HEAD + words))


@pytest.mark.parametrize("words", KNOWN)
def test_a_template_that_some_card_can_fill_is_not_refused(template, words):
    check_template(template(HEAD + words))


def test_the_names_that_are_known_are_those_that_cards_hold(records, tmp_path, monkeypatch):
    given = {}

    def render(data, _, values):
        given.update(data.to_dict() | {"card_data": data}, **values)
        return ""

    monkeypatch.setattr("optimum_moreau.saving.card._render", render)
    base_card = dict.fromkeys(("license", "license_name", "license_link", "language"), "x")
    write_card(
        tmp_path,
        replace(records.summary, base_card=base_card, calibration={"source": "hub:org/y"}),
        replace(records.plan, base_model="org/x"),
        recovery=RecoverySummary({}, {"source": "x"}, {}, 3),
        speed=speed(side("a"), side("b")),
        sparsity=SparsitySummary("2:4", 0.5, (MatrixSparsity("layers.0.mlp.up_proj", 1, 2, True),), 2),
    )
    known = _known()
    assert known.keys() == given.keys()
    for name, keys in known.items():
        assert not keys or (given[name].keys() <= keys if name == "settings" else given[name].keys() == keys)


# Chat templates


CHATS = {
    "tokens": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}{{ eos_token }}{% endfor %}",
    "blocks": "{%- for m in messages %}\n    {%- if loop.first %}\n<s>\n    {% endif %}\n{{ m.role }}\n{% endfor %}\n",
    "values": "{% for m in messages %}{{ m | tojson(indent=1) }}{{ m }}{{ m.content is none }}{% endfor %}{{ tools }}",
    "answer": "{% if add_generation_prompt %}<|assistant|>{% endif %}{{ messages | length }}",
    "extensions": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') }}",
    "names": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "lacking": "{{ nothing }}{{ unk_token }}{% if reasoning %}x{% endif %}",
}
MESSAGES = [
    {"role": "system", "content": "<b>ä\u2028\U0001f600\ud800 'so'\n", "tool_calls": None},
    {"role": "user", "content": [{"type": "text", "text": "x"}], "odd": (1, 2.5, True, float("inf"), b"", {3: 4})},
    {"role": "assistant", "content": "", "thinking": "{{ 7 * 7 }}"},
]


@pytest.mark.parametrize("template", [*CHATS.values(), {"default": "{{ bos_token }}", "tool_use": "no"}], ids=str)
def test_a_chat_is_what_transformers_writes(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with ChatTemplate(tokenizer, "chats") as chats:
        for messages in (MESSAGES, MESSAGES[:1], MESSAGES[1:]):
            for follows in (True, False):
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=follows)
                assert chats.text(messages, answer_follows=follows) == text


@pytest.mark.parametrize("words", [*ENDLESS[:-1], "{{ 'a' * 10 ** 8 }}"])
def test_a_chat_template_without_an_end_is_refused(monkeypatch, words):
    monkeypatch.setattr("optimum_moreau.templates.foreign.SECONDS", 1)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = words
    start = time.monotonic()
    words = r"^chats: the tokenizer's chat template cannot write it \(.+\)$"
    with ChatTemplate(tokenizer, "chats") as chats, pytest.raises(DataError, match=words) as error:
        chats.text([{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 30


def test_a_chat_template_that_counts_is_refused_where_it_has_no_end(monkeypatch):
    monkeypatch.setattr("optimum_moreau.templates.foreign.SECONDS", 1)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages[0].content == '7' %}{{ 9 ** (9 ** (messages | length + 8)) }}{% endif %}x"
    with ChatTemplate(tokenizer, "chats") as chats:
        assert [chats.text([{"role": "user", "content": str(i)}]) for i in range(7)] == ["x"] * 7
        for _ in range(2):
            with pytest.raises(DataError, match=r"takes more than 1 s, or 1 GiB of memory\)$"):
                chats.text([{"role": "user", "content": "7"}])


def test_what_a_chat_template_refuses_is_said_in_one_line():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate\\nelse') }}"
    with ChatTemplate(tokenizer, "chats") as chats:
        for messages, words in (
            ([{"role": "user"}], "roles must alternate"),
            ([], "Cannot apply chat template to an empty conversation.*"),
            ("hello", ".*"),
            (None, ".*"),
        ):
            with pytest.raises(DataError, match=rf"^chats: the tokenizer's chat template cannot write it \({words}\)$"):
                chats.text(messages)


def test_the_bound_is_of_each_chat_and_one_process_writes_them_all(monkeypatch):
    monkeypatch.setattr("optimum_moreau.templates.foreign.SECONDS", 0.5)
    started, start = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: started.append(start(*args, **kw)) or started[-1])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for i in range(99999) %}{% for j in range(6) %}{% endfor %}{% endfor %}x"
    with ChatTemplate(tokenizer, "chats") as chats:
        assert not started
        assert [chats.text([{"role": "user"}]) for _ in range(15)] == ["x"] * 15
    (process,) = started
    assert process.returncode is not None


# Text from data

HOSTILE = [
    "# heading",
    "a\n\n# heading\n\n---\n",
    "a\r\n```\n<b>\n",
    "[link](https://evil.example)",
    "![image](https://evil.example/x.png)",
    "https://evil.example",
    "www.evil.example",
    "someone@evil.example",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "`` ` ` code ```",
    "` <script>alert(1)</script> `",
    "- list",
    "===",
    "**bold** __bold__ ~~gone~~ $x$",
    "\u2028# heading\u202e",
    "<!-- optimum-moreau: end -->",
    "\\[link\\](https://evil.example)",
    "{{ 7 * 7 }}",
    "a\x00\x1b[31m",
]
HARMLESS = [
    "org/model",
    "2:4",
    "0.2",
    "moreau-gs",
    "moreau_llama",
    "my text.txt",
    "stories_second_half.jsonl",
    "128-token segments",
    "1:5 (end excluded)",
    "hub:org/data_set:config:train",
    "nearest legal plan: 6 heads (--attention-layers 0:5 --uniform)",
    "24.1 ± 1.0 %",
    "-0.5",
    '±0.02, p = 0.5; it\'s "so"',
]


@pytest.mark.parametrize("words", HARMLESS)
def test_what_is_harmless_is_not_changed(words):
    assert plain(words) == words
    assert code(words) == f"`{words}`"


def tokens_of(text):
    """Every Markdown token of a text, as a parser of GitHub's dialect sees it."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for token in markdown.parse(text):
        yield token
        yield from token.children or ()


@pytest.mark.parametrize("words", HOSTILE)
@pytest.mark.parametrize("around", ["{}", "a line\n{}", "# {}", "{}.", "a {} b", "| {} | x |\n|---|---|\n| {} | y |"])
@pytest.mark.parametrize("write", [plain, code])
def test_data_stays_text(words, around, write):
    found = around.format(*[write(words)] * 2)
    assert len(found.splitlines()) == len(around.splitlines())
    allowed = {token.type for token in tokens_of(around.format("x", "x"))} | {"code_inline", "text_special"}
    tokens = list(tokens_of(found))
    assert {token.type for token in tokens} <= allowed, found
    cells = [token.type for token in tokens].count("td_open")
    assert cells == 2 * (around.startswith("|"))
    for token in tokens:
        if token.type == "text":
            assert not any(part in token.content for part in ("https:", "www.", "@evil")), found


def shapes(text):
    """The kinds of a card's tokens, without the text in them."""
    _, _, body = text.partition("\n---\n")
    return [token.type for token in tokens_of(body) if token.type not in ("text", "code_inline", "text_special")]


def hostile_card(records, folder, evil):
    """A card all of whose texts are `evil`."""
    calibration = {"source": evil, "samples": 2, "sequence_length": 16, "seed": 0, "sha256": evil}
    step = {"step": evil, "summary": evil, "paper": evil, "matrices": [], "calibration": calibration}
    base_card = {"license": evil, "license_name": evil, "license_link": evil, "language": [evil, evil]}
    summary = replace(
        records.summary,
        base_model=evil,
        dtype=evil,
        export=evil,
        adjustments=[evil, evil],
        calibration=calibration,
        compensation=step,
        base_card=base_card,
        versions={evil: evil},
    )
    recovery = RecoverySummary(
        {evil: evil, "batch_size": 2},
        {"source": evil, "sha256": evil, "train_sequences": 4, "validation_sequences": 1},
        {"steps": 1, "validation_loss": 0.5},
        3,
        teacher=evil,
        earlier={"data": {"source": evil}},
    )
    measured = [Measurement(stage, evil, "perplexity", evil, 2.0) for stage in ("before", "recovered")]
    folder.mkdir(exist_ok=True)
    plan = replace(records.plan, base_model=evil)
    return write_card(folder, summary, plan, recovery=recovery, measurements=measured).read_text()


@pytest.mark.parametrize("words", HOSTILE)
def test_nothing_of_a_plan_or_a_summary_becomes_markdown(records, tmp_path, words):
    found = hostile_card(records, tmp_path / "evil", words)
    harmless = hostile_card(records, tmp_path / "good", "some words")
    assert shapes(found) == shapes(harmless)
    card, expected = ModelCard(found), ModelCard(harmless)
    assert card.data.to_dict().keys() - {"base_model", "base_model_relation"} == (
        expected.data.to_dict().keys() - {"base_model", "base_model_relation"}
    )
    ours = merged_card(None, card)
    assert ModelCard(ours).text.count("<!-- optimum-moreau: end -->") == 1
    again = merged_card(ModelCard(ours), card)
    assert again == ours  # pushing again replaces it all


def test_a_card_says_which_text_was_calibrated_on_and_where_no_other_was_measured(records, tmp_path):
    def card(calibration, *texts):
        measured = [Measurement("pruned", f"{one}.txt", "perplexity", "8-token segments", 2.0, one) for one in texts]
        summary = replace(records.summary, calibration=calibration)
        return write_card(tmp_path, summary, records.plan, measurements=measured).read_text()

    of = {"source": "a.txt", "samples": 2, "sequence_length": 8, "seed": 0, "sha256": "tokens"}
    for calibration in (of, of | {"text_sha256": "a"}, of | {"source": "b.txt", "text_sha256": "a"}):
        alone = card(calibration, "a")
        assert "of `a.txt`, calibration text | 2.0000 |\n\nMeasured on the calibration text alone: " in alone
        both = card(calibration, "a", "b")
        assert "`a.txt`, calibration text |" in both and "`b.txt`, other text |" in both and "alone" not in both
    for unknown in ({}, of | {"source": "list of strings", "text_sha256": ""}):
        found = card(unknown, "a")
        assert "of `a.txt` | 2.0000 |" in found and "alone" not in found


def test_of_a_base_card_short_texts_are_taken():
    assert of_base_card({"license": "mit", "language": ["en", "de"], "tags": ["x"]}) == {
        "license": "mit",
        "language": ["en", "de"],
    }
    odd = {"license": {"a": 1}, "license_name": 5, "license_link": "x" * 9999, "language": [["en"], 2]}
    assert of_base_card(odd) == {"license_link": "x" * 200}
    assert of_base_card({"license": "a\n---\nb", "language": []}) == {"license": "a --- b"}


def test_a_template_of_ones_own_writes_data_as_text_too(records, template, tmp_path):
    records = replace(records, summary=replace(records.summary, adjustments=["[x](https://evil.example) | <b>"]))
    records.rewrite_card(tmp_path, template(HEAD + "{% for line in summary.adjustments %}{{ line }}{% endfor %}"))
    text = (tmp_path / "README.md").read_text()
    assert "`[x](https://evil.example) \\| <b>`" in text
    assert json.dumps("[x](https://evil.example)") not in text
