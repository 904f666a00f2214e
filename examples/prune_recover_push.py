"""Prune a model, recover it with LoRA, measure it at each stage, and publish it.

python examples/prune_recover_push.py MODEL REPO --calibration TEXT --data RECORDS --heldout TEXT [--max-steps 200]
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, RecoveryConfig


def main():
    """Runs the chain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of the base model")
    parser.add_argument("repo", help="namespace/name to publish as")
    parser.add_argument("--calibration", required=True, help="text to score on")
    parser.add_argument("--data", required=True, help="records to tune on")
    parser.add_argument("--heldout", required=True, help="text to measure perplexity on")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--criterion", default="wanda")
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--seq-len", type=int, default=128)
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    config = MoreauPrunerConfig.best(pruning_ratio=args.ratio, criterion=args.criterion, sequence_length=args.seq_len)
    pruner = MoreauPruner(config, tokenizer=tokenizer)

    pruner.evaluate(model, args.heldout)
    pruner.prune(model, args.calibration)
    pruner.evaluate(args.heldout)
    pruner.recover(args.data, RecoveryConfig(max_steps=args.max_steps, sequence_length=args.seq_len))
    pruner.evaluate(args.heldout)
    for one in pruner.measurements:
        print(f"{one.stage:10} {one.metric} {one.value:.4f}")
    print(pruner.push_to_hub(args.repo).url)


if __name__ == "__main__":
    main()
