"""The command line as a client of the loopback Hub, in a process of its own."""

import os
import sys
from pathlib import Path

from tests import warm
from tests.hub_server import TOKEN


def environment(hub, home, token=TOKEN):
    """A client of the loopback Hub alone, with an empty cache."""
    values = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return {**os.environ, **values, **({"HF_TOKEN": token} if token else {})}


def push(hub, tmp_path, *arguments, token=TOKEN):
    """Runs `optimum-moreau push …` in a process of its own."""
    command = [sys.executable, "-m", "optimum_moreau", "push", *map(str, arguments)]
    return warm.run(command, timeout=120, env=environment(hub, tmp_path / "home", token))


def assert_arrived(hub, folder):
    """Every file but the card is there as it is in the folder."""
    there = hub.files("me/pruned")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        assert name == "README.md" or there[name] == path.read_bytes(), name
