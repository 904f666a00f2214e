"""What a kill leaves: 60 runs that are killed (SIGKILL) at random points, and what lies there then.

    python benchmarks/kills.py [--shared ../shared] [--output results/data/kills.jsonl] [--kills 10] [--seed 0]

Each command runs twice undisturbed, for its length (the shorter), and is then killed so many times as --kills says:
most are at a random point of each equal part of that length, three within 60 ms after the last file of the result was
begun, which is where it takes its place. A run that has ended before its kill is made again, and killed sooner. After
every kill: a target that was absent is absent or whole, one that was there is the old one or the new one, whole. Then
the same command runs to its end, after which nothing may be left beside the target or in the temporary folder.

Whole is: the files are those of the old target, or the model loads, all its records are read, and its weights and plan
are those of the undisturbed run.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from study import commit
from texts import SHARED

from optimum_moreau.cli import main as command
from optimum_moreau.loading import load_model
from optimum_moreau.saving.records import Records

AIMED = 3  # of the kills of each command
QUICK = "--samples 8 --compensation-samples 8 --seq-len 64"
TUNING = "--{0}max-steps 4 --{0}batch-size 4 --{0}validation 0 --{0}seq-len 64 --{0}save-steps 2"
RECOVER, CHAIN = TUNING.format(""), TUNING.format("recover-")
CASES = {  # name → command, in a folder with what `inputs` puts there; its targets, and what is there before
    "prune": (f"prune base -o out {QUICK}", {"out": None}),
    "prune --overwrite": (f"prune base -o out --overwrite {QUICK}", {"out": "other"}),
    "apply --overwrite": ("apply plan.json base -o out --overwrite", {"out": "other"}),
    "recover --overwrite": (f"recover pruned -o out --data records.json --overwrite {RECOVER}", {"out": "other"}),
    "prune and recover (the chain)": (
        f"prune base -o out {QUICK} --recover-data records.json {CHAIN}",
        {"out": None, "out-recovered": None},
    ),
    "report --overwrite": (
        "report pruned -o out.html --base base --new-tokens 32 --overwrite",
        {"out.html": "old.html"},
    ),
}
LOG = Path("log.txt")
FOUND = "killed", "absent", "old", "new", "broken", "lost"
FOUND += "leftovers", "broken after the next run", "left after the next run"


def inputs(model: Path) -> None:
    """What the commands read, in the working folder."""
    shutil.copytree(model, "base")
    records = [{"text": f"Once upon a time there was a dog called Rex. He ran {n} times."} for n in range(32)]
    Path("records.json").write_text(json.dumps(records))
    Path("old.html").write_text("the old page")
    run(f"prune base -o pruned {QUICK}")
    run("prune base -o other --criterion magnitude --preset plain --ratio 0.1")
    run("plan base -o plan.json --criterion taylor --preset plain --samples 8")


def started(line: str) -> int:
    """Starts the command in a copy of this process, so that a kill meets its work and not its imports."""
    process = os.fork()
    if process:
        return process
    with LOG.open("w") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    os._exit(command(line.split()))


def run(line: str) -> float:
    """Runs the command to its end; returns the seconds."""
    start = time.perf_counter()
    status = os.waitstatus_to_exitcode(os.waitpid(started(line), 0)[1])
    if status:
        raise SystemExit(f"{line}: exit {status}\n{LOG.read_text()}")
    return time.perf_counter() - start


def digest(path: Path) -> str:
    """Of a file, or of all files in a folder."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(f"{file.relative_to(path)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def essence(path: Path) -> str:
    """What two runs of one command have in common: weights and units; of a page, that it is whole."""
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        return "page" if text.startswith("<!DOCTYPE html>") and text.rstrip().endswith("</html>") else "broken"
    plan = json.loads((path / "pruning_plan.json").read_text())
    return hashlib.sha256((path / "model.safetensors").read_bytes() + json.dumps(plan["layers"]).encode()).hexdigest()


def state(path: Path, before: str | None, made: str) -> str:
    """`absent`, `lost`, `old`, `new` or `broken`, by what was there before and what an undisturbed run made."""
    if not path.exists():
        return "absent" if before is None else "lost"
    if before is not None and digest(path) == digest(Path(before)):
        return "old"
    try:
        if path.is_dir():
            Records.load(path)
            load_model(str(path), device="cpu")
        return "new" if essence(path) == made else "broken"
    except Exception as error:  # whatever is wrong with it, it is broken
        print(f"{path.name}: {error}", file=sys.stderr)
        return "broken"


def left(outputs: dict[str, str | None]) -> list[str]:
    """What lies beside the targets and in the temporary folder that is no result."""
    inside = [str(path) for name in outputs for path in Path(name).glob(".*")]
    return [path.name for path in Path().glob(".*")] + inside + os.listdir(tempfile.gettempdir())


def prepare(outputs: dict[str, str | None]) -> None:
    """Puts the targets as they are before the command."""
    for name, before in outputs.items():
        target = Path(name)
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if before is not None:
            (shutil.copytree if Path(before).is_dir() else shutil.copy)(before, target)


def killed(line: str, pause: float, target: str | None) -> float | None:
    """Kills the command after a pause, from its start or from a target's last file.

    Returns:
        The seconds that it ran, or nothing if it had ended.
    """
    begun = time.perf_counter()
    process = started(line)
    if target:
        wait_for_the_last_file(target, process)
    time.sleep(pause)
    at = time.perf_counter() - begun
    os.kill(process, signal.SIGKILL)  # one that has ended already is still to be waited for
    return at if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) < 0 else None


def wait_for_the_last_file(target: str, process: int) -> None:
    """Returns when the card is in the folder that will take the target's place, or the page is begun; or at the end."""
    page = target.endswith(".html")
    while not any(page or (path / "README.md").exists() for path in Path().glob(f".{target}.partial-*")):
        time.sleep(0.0005)
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return


def study(name: str, kills: int, chance: random.Random) -> tuple[float, Counter[str]]:
    """Kills the command so many times; returns the seconds of an undisturbed run, and how often what was found."""
    line, outputs = CASES[name]
    lengths = []
    for _ in range(2):
        prepare(outputs)
        lengths.append(run(line))
    seconds, spread, found = min(lengths), max(kills - AIMED, 1), Counter[str]()
    made = {target: essence(Path(target)) for target in outputs}
    for part in range(kills):
        sooner, at = 1.0, None
        while at is None:
            prepare(outputs)
            target = None if part < spread else list(outputs)[part % len(outputs)]
            pause = 0.06 * chance.random() if target else seconds * (part + chance.random()) / spread
            at = killed(line, pause * sooner, target)
            sooner *= 0.8
        states = [state(Path(target), before, made[target]) for target, before in outputs.items()]
        after_kill = left(outputs)
        run(line)
        after_next = left(outputs)
        broken = any(essence(Path(target)) != made[target] for target in outputs)
        found.update(["killed", *states])
        found.update(what for what, so in zip(FOUND[-3:], (after_kill, broken, after_next), strict=True) if so)
        print(f"{name}: {at:.2f} s: {', '.join(states)}; left {after_kill}; then {after_next}", flush=True)
    return seconds, found


def main() -> None:
    """Writes a line for each command, of which pages.py makes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--output", type=Path, default=Path("results/data/kills.jsonl"))
    parser.add_argument("--kills", type=int, default=10, help="of each of the six commands")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    output, model = args.output.resolve(), args.shared.resolve() / "models" / "stories260K"
    chance, lines = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as top:
        work, temporary = Path(top) / "work", Path(top) / "temporary"
        work.mkdir(), temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.chdir(work)
        inputs(model)
        for name in CASES:
            seconds, found = study(name, args.kills, chance)
            line = {"model": model.name, "protocol": "", "row": name, "seed": None, "seconds": round(seconds, 1)}
            lines.append({**line, **{what: found[what] for what in FOUND}, "commit": commit()})
    output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
