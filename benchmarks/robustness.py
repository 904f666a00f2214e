"""Which threatens the choice of units, the dtype or the calibration draw? A table for docs/results.md.

    python benchmarks/robustness.py [--shared ../shared] [--seeds 5] [--models NAME …]

Every shared real model, bfloat16 against float16 and one calibration draw against another, 20 % of the parameters in
the default scope. Perplexity on the text of the other tables, first 200 segments.
"""

import argparse
import logging
import os
from pathlib import Path

from transformers.utils import logging as transformers_logging

from optimum_moreau.evaluation.robustness import robustness
from optimum_moreau.loading import load_model, load_tokenizer
from results import SUBJECTS

CRITERIA = ("moreau", "moreau-gs", "taylor")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Overlap of kept units under perturbations.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=[subject.model for subject in SUBJECTS])
    parser.add_argument("--criteria", nargs="*", default=CRITERIA)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    print("| model | criterion | bf16 – fp16: kept | removed | rank | Diff | draws: kept | removed | rank |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for subject in (subject for subject in SUBJECTS if subject.model in args.models):
        folder = str(args.shared / "models" / subject.model)
        calibration, evaluation = subject.documents(args.shared)
        for criterion in args.criteria:
            found = robustness(
                lambda folder=folder: load_model(folder, device="cpu"),
                load_tokenizer(folder),
                calibration,
                criteria=[criterion],
                perturbations=f"bf16,fp16,seeds:{args.seeds}",
                evaluate=evaluation,
                max_segments=200,
            )
            dtypes = next(one for one in found if set(one.between) == {"bf16", "fp16"})
            draws = next(one for one in found if one.is_draw)
            cells = [
                f"{side[0]:.3f} ± {side[1]:.3f}"
                for one in (dtypes, draws)
                for side in ((one.kept, one.kept_deviation), (one.removed, one.removed_deviation))
            ]
            dtype_cells = [*cells[:2], f"{dtypes.rank:.4f}", f"{dtypes.difference:.3f}"]
            row = [subject.model, criterion, *dtype_cells, *cells[2:], f"{draws.rank:.3f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
