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
RESULTS = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "results").glob("*.md"))}
PAGES = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
MEASURED = ("theory.md", "example_card.md")  # what made them takes hours
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


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{n}" for n in PAGES), *(f"results/{n}" for n in RESULTS)],
)
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
    for name in RESULTS:
        assert f"results/{name}" in site, name


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
def pages(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("pages")


@pytest.mark.parametrize("name", RESULTS)
def test_the_tables_of_results_are_made_of_the_data(pages, name):
    assert pages.made(RESULTS[name]) == RESULTS[name], "make results writes it anew"


def test_a_cell_is_of_its_draws_alone_and_else_of_the_mean_that_was_kept(pages, monkeypatch, tmp_path):
    kept = {"model": "a", "protocol": "20 %", "row": "taylor", "seed": None, "mean": 9.0, "deviation": 1.0, "draws": 3}
    dense = {"model": "a", "protocol": "", "row": "dense", "seed": 0, "perplexity": 5.0}
    draws = [kept | {"model": "b", "seed": seed, "perplexity": 10.0 + 2 * seed} for seed in (0, 1)]
    for run in draws:
        del run["mean"]
    lines = [dense, kept, dense | {"model": "b"}, kept | {"model": "b"}, *draws]
    (tmp_path / "some.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    monkeypatch.setattr(pages, "DATA", tmp_path)
    table = pages.tables({"data": "some", "lines": ["model"], "best": False})
    assert table.splitlines()[2:] == ["| a | 9.00 ± 1.00 |", "| b | 11.00 ± 1.41 |"]


def test_a_gap_is_closed_in_loss_with_the_deviation_of_its_draws_and_what_is_missing_is_listed(
    pages, monkeypatch, tmp_path
):
    one = {"model": "a", "protocol": "20 %", "seed": 0, "measured": ["perplexity"]}
    losses = {"dense": [2.0], "taylor": [4.0], "better": [2.5, 3.5]}
    runs = [
        one | {"row": row, "seed": seed, "loss": loss, "protocol": "" if row == "dense" else "20 %"}
        for row, draws in losses.items()
        for seed, loss in enumerate(draws)
    ]
    (tmp_path / "some.jsonl").write_text("\n".join(json.dumps(run) for run in runs))
    monkeypatch.setattr(pages, "DATA", tmp_path)
    column = {"show": "closed", "by": "loss", "as": "closed"}
    table = pages.tables({"data": "some", "split": "protocol", "dense": True, "columns": [column]})
    assert table.splitlines()[2:] == ["| dense | 100 % |", "| taylor | 0 % |", "| better | 50 ± 35 % |"]

    study = importlib.import_module("study")
    fields = {"criterion": "taylor"}
    asked = study.Study(
        "", ["a"], 2, 1, {"20 %": {}, "30 %": {}}, {"taylor": fields, "better": fields}, {"perplexity": None}
    )
    monkeypatch.setattr(study, "read_study", lambda file: asked)
    assert pages.missing("some").splitlines()[2:] == [
        "| 20 % | 1 | taylor |", "| 30 % | 0 | all |", "| 30 % | 1 | all |"
    ]  # fmt: skip


def test_one_page_of_results_has_todays_defaults():
    assert len(RESULTS["README.md"].splitlines()) <= 80
    for name in RESULTS:
        assert name == "README.md" or f"]({name})" in RESULTS["README.md"], name


def test_every_row_of_quality_has_five_draws_on_every_model_and_every_step_three_recovered(pages):
    models = ("stories260K", "babyllama-char105", "wikitext-llama-5m")
    for data, draws, shares, count in (
        ("quality", 5, ("20 %", "30 %", "50 %"), 35),
        ("recovery", 3, ("20 %", "50 %"), 6),
    ):
        others = ("dense", "fast", "best", "best, by search")  # today's presets, of 20 % and three draws
        runs = [run for run in pages.read(data) if run["model"] in models and run["row"] not in others]
        rows = {run["row"] for run in runs}
        assert len(rows) == count
        found = Counter((run["model"], run["protocol"], run["row"]) for run in runs)
        assert found == dict.fromkeys(itertools.product(models, shares, rows), draws), data


def test_the_readmes_figures_are_of_the_data(pages):
    table = re.search(r"\| row \| WikiText-2 \|.*?\n\n", README, re.S)[0]
    assert table in RESULTS["README.md"]


UNKNOWN_TO_READERS = re.compile(
    r"(?i)\b(?:DESIGN|METHODS|ECOSYSTEM|STYLE)\.md\b|\bwas lent\b|\bchecker ran\b|\bother (?:jobs|work)\b"
    "|this workplace"
)


def test_no_public_file_names_what_its_readers_do_not_have():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        file = ROOT / name
        if name.endswith(".jsonl") or not file.is_file() or file == Path(__file__):
            continue
        text = file.read_bytes().decode("utf-8", errors="ignore")
        assert not (found := UNKNOWN_TO_READERS.search(text)), f"{name}: {found}"
