"""Makes docs/example_card.md: the card that a real run leaves on the Hub, here one on the loopback.

    python benchmarks/example_card.py [--shared ../shared]

stories260K, cut by 20 % with the defaults on the first half of the stories, tuned on them, measured on the second half.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.hub_server import TOKEN, Hub  # noqa: E402 (the tests are no package that is installed)

RECIPE = """
output: pruned
calibration: stories_first_half.jsonl
evaluate: stories_second_half.jsonl
prune: {pruning_ratio: 0.2}
recover:
  {data: stories_first_half.jsonl, max_steps: 100, batch_size: 16, micro_batch_size: 16, learning_rate: 1.0e-3,
   sequence_length: 128}
push: {repo: me/stories260K-pruned, verify: true}
"""


def main():
    """Runs the chain and keeps the card."""
    parser = argparse.ArgumentParser(description="Makes docs/example_card.md.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    shared = parser.parse_args().shared.resolve()
    stories = (shared / "data" / "tinystories_1k.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as work, Hub() as hub:
        for name, half in (("first", stories[: len(stories) // 2]), ("second", stories[len(stories) // 2 :])):
            (Path(work) / f"stories_{name}_half.jsonl").write_text("".join(half), encoding="utf-8")
        model = json.dumps(str(shared / "models" / "stories260K"))
        (Path(work) / "recipe.yaml").write_text(f"model: {model}{RECIPE}")
        client = {"HF_ENDPOINT": hub.url, "HF_HOME": work, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        command = [sys.executable, "-m", "optimum_moreau", "prune", "--config", "recipe.yaml"]
        subprocess.run(command, cwd=work, env={**os.environ, **client}, check=True)
        (ROOT / "docs" / "example_card.md").write_bytes(hub.files("me/stories260K-pruned")["README.md"])


if __name__ == "__main__":
    main()
