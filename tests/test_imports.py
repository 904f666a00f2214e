"""The rooms: data flows one way, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "optimum_moreau"
# Top to bottom; a module imports only from rooms above its own (and inside its own room, if that is a folder).
ROOMS = [
    ["errors"],
    ["registry", "distributed"],
    ["files"],
    ["templates", "config"],
    ["models"],
    ["modeling", "data"],
    ["loading"],
    ["envelope", "least_squares"],
    ["criteria"],
    ["scoring"],
    ["budgets"],
    ["planning"],
    ["surgery"],
    ["compensation", "masks"],
    ["estimate"],
    ["evaluation", "recovery"],
    ["saving"],
    ["report"],
    ["run"],
    ["pruner"],
    ["pipeline"],
    ["cli"],
    ["optimum_cli", "__main__"],
]
ROW = {room: row for row, rooms in enumerate(ROOMS) for room in rooms}
FILES = [file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or file.name != "__init__.py"]


def imported_rooms(file):
    """The rooms of this package that a file imports, wherever in the file."""
    package = ["optimum_moreau", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")]
            for alias in node.names:
                parts = [part for part in [*module, alias.name] if part]
                if parts[0] == "optimum_moreau" and parts[1] in ROW:
                    yield parts[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_above(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported_rooms(file):
        assert other == room or ROW[other] < ROW[room], f"{room} imports {other}"


def test_every_room_exists():
    assert {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES} == set(ROW)


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_no_torch():
    run("import sys, optimum_moreau; assert 'torch' not in sys.modules and 'transformers' not in sys.modules")


KNOWN = (
    "from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as m\n"
    "from transformers.models.auto.configuration_auto import CONFIG_MAPPING as c\n"
    "assert c['moreau_llama'] in m and c['moreau_qwen3'] in m"
)


@pytest.mark.parametrize(
    "imports",
    [
        "import optimum_moreau\nfrom transformers import AutoConfig",
        "from transformers import AutoModelForCausalLM\nimport optimum_moreau",
        "import optimum_moreau\nfrom transformers.models.llama import modeling_llama\nfrom transformers import Trainer",
    ],
)
def test_auto_classes_know_the_own_types_in_either_order_of_import(imports):
    run(f"{imports}\n{KNOWN}")


def test_the_file_that_travels_with_a_checkpoint_is_self_contained():
    assert not list(imported_rooms(PACKAGE / "modeling" / "modeling_moreau.py"))
