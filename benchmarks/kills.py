"""What a kill leaves: 60 runs that are killed (SIGKILL) at random points, and what lies there then.

    python benchmarks/kills.py [--shared ../shared] [--output results/kills.md] [--kills 10] [--seed 0]

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
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from optimum_moreau.cli import main as command
from optimum_moreau.loading import load_model
from optimum_moreau.saving.records import Records

QUICK = ("--samples", "8", "--compensation-samples", "8", "--seq-len", "64")
AIMED = 3  # of the kills of each command
TUNING = ("max-steps", "4"), ("batch-size", "4"), ("validation", "0"), ("seq-len", "64"), ("save-steps", "2")


@dataclass
class Case:
    """A command and what it writes.

    Attributes:
        name: in the table.
        arguments: of the command, which runs in a folder with `base`, `plan.json`, `pruned`, `text.txt`, records.
        outputs: target → what is there before, of that folder; `None`: nothing.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: dict[str, str | None]
    seconds: float = 0.0
    made: dict[str, str] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)


RECOVER = tuple(part for name, value in TUNING for part in (f"--{name}", value))
CHAIN = tuple(part for name, value in TUNING for part in (f"--recover-{name}", value))
CASES = [
    Case("prune", ("prune", "base", "-o", "out", *QUICK), {"out": None}),
    Case("prune --overwrite", ("prune", "base", "-o", "out", "--overwrite", *QUICK), {"out": "other"}),
    Case("apply --overwrite", ("apply", "plan.json", "base", "-o", "out", "--overwrite"), {"out": "other"}),
    Case(
        "recover --overwrite",
        ("recover", "pruned", "-o", "out", "--data", "records.json", "--overwrite", *RECOVER),
        {"out": "other"},
    ),
    Case(
        "prune and recover (the chain)",
        ("prune", "base", "-o", "out", *QUICK, "--recover-data", "records.json", *CHAIN),
        {"out": None, "out-recovered": None},
    ),
    Case(
        "report --overwrite",
        ("report", "pruned", "-o", "out.html", "--base", "base", "--new-tokens", "32", "--overwrite"),
        {"out.html": "old.html"},
    ),
]


def started(arguments: tuple[str, ...], log: Path) -> int:
    """Starts the command in a copy of this process, so that a kill meets its work and not its imports."""
    process = os.fork()
    if process:
        return process
    with log.open("w") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    os._exit(command(list(arguments)))


def run(arguments: tuple[str, ...], log: Path) -> float:
    """Runs the command to its end; returns the seconds."""
    start = time.perf_counter()
    status = os.waitstatus_to_exitcode(os.waitpid(started(arguments, log), 0)[1])
    if status:
        raise SystemExit(f"{' '.join(arguments)}: exit {status}\n{log.read_text()}")
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


def state(path: Path, old: str | None, new: str) -> str:
    """`absent`, `old`, `new` or `broken`."""
    if not path.exists():
        return "absent" if old is None else "lost"
    if old is not None and digest(path) == old:
        return "old"
    try:
        if path.is_dir():
            Records.load(path)
            load_model(str(path), device="cpu")
        return "new" if essence(path) == new else "broken"
    except Exception as error:  # whatever is wrong with it, it is broken
        print(f"{path.name}: {error}", file=sys.stderr)
        return "broken"


def left(work: Path, temporary: Path, outputs: dict[str, str | None]) -> list[str]:
    """What lies beside the targets and in the temporary folder that is no result."""
    hidden = [path.name for path in work.iterdir() if path.name.startswith(".")]
    inside = [f"{name}/{path.name}" for name in outputs for path in (work / name).glob(".*")]
    return hidden + inside + [path.name for path in temporary.iterdir()]


def prepare(case: Case, work: Path) -> dict[str, str | None]:
    """Puts the targets as they are before the command; returns their digests."""
    found: dict[str, str | None] = {}
    for name, before in case.outputs.items():
        target = work / name
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        found[name] = None
        if before is not None:
            copy: Callable[..., object] = shutil.copytree if (work / before).is_dir() else shutil.copy
            copy(work / before, target)
            found[name] = digest(target)
    return found


def study(case: Case, work: Path, temporary: Path, kills: int, chance: random.Random) -> None:
    """Kills the command so many times; fills in what was found."""
    log = work / "log.txt"
    prepare(case, work)
    case.seconds = run(case.arguments, log)
    prepare(case, work)
    case.seconds = min(case.seconds, run(case.arguments, log))
    case.made = {name: essence(work / name) for name in case.outputs}
    for part in range(kills):
        sooner, at = 1.0, None
        while at is None:
            before = prepare(case, work)
            at = killed(case, work, part, kills, chance, sooner)
            sooner *= 0.8
        states = [state(work / name, before[name], case.made[name]) for name in case.outputs]
        after_kill = left(work, temporary, case.outputs)
        run(case.arguments, log)
        after_next = left(work, temporary, case.outputs)
        whole = all(essence(work / name) == case.made[name] for name in case.outputs)
        case.found += ["killed", *states]
        case.found += ["leftovers"] * bool(after_kill) + ["left after the next run"] * bool(after_next)
        case.found += [] if whole else ["broken after the next run"]
        print(f"{case.name}: {at:.2f} s: {', '.join(states)}; left {after_kill}; then {after_next}", flush=True)


def killed(case: Case, work: Path, part: int, kills: int, chance: random.Random, sooner: float) -> float | None:
    """Starts the command and kills it; returns the seconds between, or nothing if it had ended."""
    spread = max(kills - AIMED, 1)
    begun = time.perf_counter()
    process = started(case.arguments, work / "log.txt")
    if part < spread:
        time.sleep(case.seconds * (part + chance.random()) / spread * sooner)
    else:
        wait_for_the_last_file(work, list(case.outputs)[part % len(case.outputs)], process)
        time.sleep(0.06 * chance.random() * sooner)
    at = time.perf_counter() - begun
    os.kill(process, signal.SIGKILL)  # one that has ended already is still to be waited for
    return at if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) < 0 else None


def wait_for_the_last_file(work: Path, target: str, process: int) -> None:
    """Returns when the card is in the folder that will take the target's place, or the page is begun; or at the end."""
    page = target.endswith(".html")
    while not any(page or (path / "README.md").exists() for path in work.glob(f".{target}.partial-*")):
        time.sleep(0.0005)
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return


def table(cases: list[Case]) -> list[str]:
    """One row a command."""
    columns = ("killed", "absent", "old", "new", "broken", "lost", "leftovers")
    columns += ("broken after the next run", "left after the next run")
    heads = ["command", "seconds", *columns]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    rows += [[one.name, f"{one.seconds:.1f}", *(str(one.found.count(name)) for name in columns)] for one in cases]
    return [f"| {' | '.join(row)} |" for row in rows]


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("results/kills.md"))
    parser.add_argument("--kills", type=int, default=10, help="of each of the six commands")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    output, shared = args.output.resolve(), args.shared.resolve()
    with tempfile.TemporaryDirectory() as top:
        work, temporary = Path(top) / "work", Path(top) / "temporary"
        work.mkdir(), temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.chdir(work)
        shutil.copytree(shared / "models" / "stories260K", work / "base")
        records = [{"text": f"Once upon a time there was a dog called Rex. He ran {n} times."} for n in range(32)]
        (work / "records.json").write_text(json.dumps(records))
        (work / "old.html").write_text("the old page")
        log = work / "log.txt"
        run(("prune", "base", "-o", "pruned", *QUICK), log)
        run(("prune", "base", "-o", "other", "--criterion", "magnitude", "--preset", "plain", "--ratio", "0.1"), log)
        run(("plan", "base", "-o", "plan.json", "--criterion", "taylor", "--preset", "plain", "--samples", "8"), log)
        chance = random.Random(args.seed)
        for case in CASES:
            study(case, work, temporary, args.kills, chance)
    found = [word for case in CASES for word in case.found]
    lines = [
        "# What a kill leaves",
        "",
        f"`python benchmarks/kills.py --kills {args.kills} --seed {args.seed}`: {args.kills * len(CASES)} runs on"
        " stories260K, killed (SIGKILL) at random points spread over their length, three of each command while the"
        " result takes its place. `seconds` is the length of a run that was not disturbed. Then how many targets were"
        " absent (they had been before), the old one, the new one; broken, or lost that had been there. `leftovers`:"
        " kills after which files of the run lay beside the target or in the temporary folder. Then the same command"
        " was run to its end.",
        "",
        *table(CASES),
        "",
        f"Broken targets: {found.count('broken') + found.count('broken after the next run')}. Lost:"
        f" {found.count('lost')}. Runs after which something was left that the next run did not remove:"
        f" {found.count('left after the next run')}.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread.",
    ]
    output.parent.mkdir(exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
