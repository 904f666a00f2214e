"""peft finds the layers of own types where it finds those of the families they extend."""

import subprocess
import sys

import pytest
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from peft.utils import constants

from optimum_moreau.surgery.apply import apply_plan
from tests.tiny import FAMILIES, cut_plan, tiny_model

TABLES = {name: table for name, table in vars(constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")}


def adapted(model, config):
    """The names of the layers that an adapter goes on; what peft says where it knows none."""
    try:
        tuned = get_peft_model(model, config(task_type="CAUSAL_LM"))
    except ValueError as error:
        return str(error)
    return {name for name, _ in tuned.named_modules() if name.endswith(tuple(tuned.base_model.targeted_module_names))}


@pytest.mark.parametrize("config", [LoraConfig, IA3Config, VeraConfig], ids=lambda config: config.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_own_type_has_the_targets_of_its_family(family, config):
    own = tiny_model(family)
    apply_plan(own, cut_plan(own, [0, 0, 0], [4, 4, 4]), "custom")
    assert own.config.model_type == f"moreau_{family}"
    assert adapted(own, config) == adapted(tiny_model(family), config)


@pytest.mark.parametrize("table", TABLES)
def test_own_types_have_an_entry_where_their_families_have(table):
    for family in FAMILIES:
        assert TABLES[table].get(f"moreau_{family}") == TABLES[table].get(family)


LOOK = """
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as table
assert "moreau_llama" in table
"""


@pytest.mark.parametrize("imports", ["import optimum_moreau, peft", "import peft, optimum_moreau"])
def test_peft_knows_the_own_types_in_either_order_of_import(imports):
    done = subprocess.run([sys.executable, "-c", f"{imports}\n{LOOK}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
