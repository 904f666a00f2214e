"""Why babyllama-char105 varies so much between calibration draws: the KV groups removed, and each half of a plan.

    python benchmarks/kv_group_draws.py [--shared ../shared]

Prunes by 20 % as results.py does, prints the KV groups each seed removes, and then exchanges the attention half of the
worst seed's plan with that of the best.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, PruningPlan, apply_plan, perplexity
from results import SUBJECTS

SUBJECT = next(subject for subject in SUBJECTS if subject.model == "babyllama-char105")
SEEDS = range(3)
SEGMENTS = 200  # of 128 tokens


def crossed(attention: PruningPlan, mlp: PruningPlan) -> PruningPlan:
    """The attention half of one plan with the MLP half of another."""
    layers = {i: {"attention": attention.layers[i]["attention"], "mlp": mlp.layers[i]["mlp"]} for i in mlp.layers}
    return replace(mlp, layers=layers)


def main() -> None:
    """Prints one line per criterion and seed, and two per criterion for the exchange."""
    parser = argparse.ArgumentParser(description="Which KV groups go, and what each half of a plan costs.")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    shared = parser.parse_args().shared
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    folder = shared / "models" / SUBJECT.model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    calibration, evaluation = SUBJECT.documents(shared)

    def quality(plan: PruningPlan) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder)
        apply_plan(model, plan)
        return perplexity(model, tokenizer, evaluation, max_segments=SEGMENTS).perplexity

    for criterion in ("taylor", "moreau", "taylor-second"):
        found = []
        for seed in SEEDS:
            config = MoreauPrunerConfig(criterion=criterion, pruning_ratio=0.2, seed=seed)
            model = AutoModelForCausalLM.from_pretrained(folder)
            plan, _ = MoreauPruner(config, tokenizer=tokenizer).plan(model, calibration)
            found.append((quality(plan), plan))
            gone = [sorted(set(range(b["attention"].total)) - set(b["attention"].kept)) for b in plan.layers.values()]
            print(f"{criterion:14} seed {seed}: {found[-1][0]:6.2f}, KV groups removed per layer {gone}")
        best, worst = (pick(found, key=lambda pair: pair[0])[1] for pick in (min, max))
        print(f"{'':14} worst attention, best MLP: {quality(crossed(worst, best)):6.2f}")
        print(f"{'':14} best attention, worst MLP: {quality(crossed(best, worst)):6.2f}")


if __name__ == "__main__":
    main()
