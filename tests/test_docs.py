"""What README, the pages of docs/ and CONTRIBUTING print works as printed; tables are the code's, or of runs kept.

Blocks of `console` and `python` run here, in the order of the page, in a folder as `make demo` leaves it. What needs a
network, another model or minutes stands in blocks of `sh`.
"""

import importlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from optimum_moreau.cli import main
from optimum_moreau.registry import CRITERIA
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
PAGES = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
MEASURED = ("results.md", "performance.md", "theory.md", "example_card.md")  # what made them takes hours
TASKS = {name: page for name, page in PAGES.items() if name not in MEASURED}
_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.S)


def blocks(text, language):
    return [body for found, body in _BLOCK.findall(text) if found == language]


@pytest.fixture
def after_the_demo(tmp_path, monkeypatch, tiny_folder, text):
    """A folder that looks as it does after `make demo`."""
    folder = tmp_path / "demo_output" / "tiny-llama"
    shutil.copytree(tiny_folder, folder)
    for name in ("calibration", "heldout"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in (text, text[::2])))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block):
    """The commands of a block, without those of make and of the shell."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("optimum-moreau ", "optimum-cli moreau "))]


def run_command(line, capsys):
    capsys.readouterr()
    words = shlex.split(line)
    arguments = words[2:] if words[0] == "optimum-cli" else words[1:]
    file = arguments[-1] if ">" in arguments else None
    assert main(arguments[:-2] if file else arguments) == 0, f"{line}\n{capsys.readouterr().err}"
    if file:
        Path(file).write_text(capsys.readouterr().out)


def run_page(name, page, capsys):
    for language, block in _BLOCK.findall(page):
        if language == "console":
            for line in commands(block):
                run_command(line, capsys)
        elif language == "python":
            exec(compile(block, name, "exec"), {})


def test_readme_runs_as_printed_and_its_model_is_smaller(after_the_demo, capsys):
    assert sum(len(commands(block)) for block in blocks(README, "console")) >= 4
    assert len(blocks(README, "python")) == 1
    run_page("README.md", README, capsys)
    summary = json.loads((after_the_demo / "pruned" / "pruning_summary.json").read_text())
    assert summary["parameters_after"] < summary["parameters_before"]


@pytest.mark.parametrize("name", [name for name, page in TASKS.items() if blocks(page, "console")])
def test_a_page_runs_as_printed(name, after_the_demo, capsys):
    run_page(name, TASKS[name], capsys)


def test_pages_show_every_kind_of_block_only_as_the_tests_know_it():
    for name, page in {"README.md": README, **TASKS}.items():
        assert {language for language, _ in _BLOCK.findall(page)} <= {"console", "python", "sh", ""}, name
        for block in blocks(page, ""):
            assert "optimum-moreau " not in block, f"{name}: a command in a block that no test reads"


def test_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert all(len(line) <= 120 for line in README.splitlines())
    prose = [line for line in _BLOCK.sub("", README).splitlines() if not line.startswith("|")]
    assert len(" ".join(prose).split()) <= 900


@pytest.fixture
def generate(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generate")


@pytest.mark.parametrize("name", TASKS)
def test_what_commands_print_on_a_page_is_the_codes_own(generate, name):
    assert generate.generated(TASKS[name]) == TASKS[name], "python docs/generate.py writes it anew"


def test_the_tables_of_all_methods_are_there(generate):
    shown = {page: [command for _, command, _ in generate.GENERATED.findall(TASKS[page])] for page in TASKS}
    assert shown["criteria.md"] == ["criteria", *(f"criteria {name}" for name in CRITERIA)]
    assert shown["families.md"] == ["families"]
    assert "budgets" in shown["sizes-and-targets.md"]
    assert shown["compensation.md"][0] == "compensations"


def anchors(page):
    """Those that GitHub gives the headings of a page."""
    found = Counter()
    for title in re.findall(r"^#+ +(.+)$", _BLOCK.sub("", page), re.M):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        yield slug if not found[slug] else f"{slug}-{found[slug]}"
        found[slug] += 1


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{name}" for name in PAGES)])
def test_relative_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in [*anchors(target.read_text(encoding="utf-8"))], f"{name}: {link}"


def test_every_page_is_in_the_readmes_map_and_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in PAGES:
        assert name in site, name
        assert name in ("index.md", "example_card.md") or f"](docs/{name})" in README, name


def test_the_criterion_of_contributing_prunes(monkeypatch, llama, tmp_path):
    source, line = blocks(CONTRIBUTING, "python")[:2]
    (tmp_path / "power.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    name, target = re.fullmatch(r'"(\w+)": f"\{_CRITERIA\}\.(\w+:\w+)",\n', line).groups()
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))  # forgotten after the test
    CRITERIA.register(name, target)

    from optimum_moreau import MoreauPruner, MoreauPrunerConfig

    before = sum(p.numel() for p in llama.parameters())
    MoreauPruner(MoreauPrunerConfig(criterion="power", p=2.0, pruning_ratio=0.1)).prune(llama)
    assert sum(p.numel() for p in llama.parameters()) < before


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("quality")


@pytest.fixture
def runs(quality):
    return quality.read_runs(ROOT / "docs" / "quality-runs.json")


def test_every_row_of_quality_has_five_draws_on_every_model_and_every_step_three_recovered(quality, runs):
    draws = Counter(key[:3] for key in runs)
    models = [subject.model for subject in quality.SUBJECTS]
    expected = dict.fromkeys(itertools.product(models, quality.ROWS, quality.SHARES), 5)
    recovered = [quality.tuned(row, 100) for row in quality.RECOVERED]
    expected |= dict.fromkeys(itertools.product(models, recovered, (0.2, 0.5)), 3)
    expected |= {(model, "dense", 0.0): 1 for model in models}
    assert draws == expected


@pytest.mark.parametrize("model", ["stories260K", "babyllama-char105", "wikitext-llama-5m"])
def test_the_tables_of_quality_are_of_the_runs_that_are_kept(quality, runs, model):
    others = [row for row in quality.ROWS if row not in quality.STEPS]
    whole = quality.read_runs(ROOT / "docs" / "quality-runs-whole.json")
    on_all_segments = ("taylor", "+ refit", "wanda, 128 samples, refit", "+ wanda for taylor")
    for table in (
        quality.table(model, runs, quality.STEPS, quality.SHARES),
        quality.table(model, runs, others, quality.SHARES),
        quality.table(model, whole, on_all_segments, (0.2, 0.5)),
        quality.recovery_table(model, runs, quality.RECOVERED, (0.2, 0.5), 100),
    ):
        assert "\n".join(["", *table, "", ""]) in RESULTS


def test_the_readmes_table_of_quality_is_of_the_runs_that_are_kept(quality, runs):
    _, _, *lines = re.search(r"\| perplexity, untuned.*?\n\n", README, re.S)[0].strip().split("\n")
    rows = itertools.product([subject.model for subject in quality.SUBJECTS], (0.2, 0.5))
    for line, (model, share) in zip(lines, rows, strict=True):
        found = (quality.drawn(runs, model, row, share).values() for row in quality.STEPS)
        cells = [quality.spread([value for value, _ in draws]) for draws in found]
        head = f"{model} ({runs[model, 'dense', 0.0, 0][0]:.2f}), {100 * share:.0f} %"
        assert line == f"| {' | '.join([head, *cells])} |"


UNKNOWN_TO_READERS = re.compile(
    r"(?i)\b(?:DESIGN|METHODS|ECOSYSTEM|STYLE)\.md\b|\bwas lent\b|\bchecker ran\b|\bother jobs\b|this workplace"
)


def test_no_public_file_names_what_its_readers_do_not_have():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        file = ROOT / name
        if name.endswith(".jsonl") or not file.is_file() or file == Path(__file__):
            continue
        text = file.read_bytes().decode("utf-8", errors="ignore")
        assert not (found := UNKNOWN_TO_READERS.search(text)), f"{name}: {found}"
