"""The paper's figures on a shared real model, for results/paper.md.

    python benchmarks/insight.py [--shared ../shared] [--model stories260K] [--seeds 3] [--output results/insight]

Channel ranks of the first two criteria, perplexity when single layers are pruned, over the ratio, and over the settings
of the first; on the text of the other tables, first 200 segments.
"""

import argparse
import json
from pathlib import Path

from measures import BOS
from study import quiet
from texts import SHARED, subjects

from optimum_moreau.evaluation.findings import Insight
from optimum_moreau.evaluation.study import Study
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.planning import fingerprint
from optimum_moreau.report import draw_insight, save_figure

CRITERIA = ("moreau-gs", "taylor", "moreau", "taylor-second", "magnitude", "random")


def main():
    """Writes insight.json and the figures."""
    parser = argparse.ArgumentParser(description="The paper's figures on a shared real model.")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--model", default="stories260K", choices=subjects(SHARED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("results/insight"))
    args = parser.parse_args()
    quiet()
    subject = subjects(args.shared)[args.model]
    model, tokenizer = load_model(str(subject.folder), device="cpu"), load_tokenizer(str(subject.folder))
    study = Study(model, tokenizer, *subject.documents(), seeds=args.seeds, max_segments=200, bos=BOS)
    found = Insight(
        subject.name,
        fingerprint(model),
        subject.text,
        study.protocol,
        args.seeds,
        ranking=study.ranks(CRITERIA[:2]),
        layers=study.single_layers(CRITERIA),
        ratios=study.over_ratios(CRITERIA),
        sensitivity=study.sensitivity(CRITERIA[0]),
        plans={name: study.plan(name) for name in CRITERIA[:2]},
    )
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "insight.json").write_text(json.dumps(found.to_dict()) + "\n")
    for name, figure in draw_insight(found).items():
        print(*save_figure(figure, args.output, name), sep="\n")


if __name__ == "__main__":
    main()
