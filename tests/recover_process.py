"""Run as a script: recovers a tiny model into FOLDER/adapter, slowly if FOLDER/slow is there."""

import sys
import time
from pathlib import Path

import torch

from optimum_moreau import MoreauRecovery, RecoveryConfig
from optimum_moreau.recovery.training import RecoveryTrainer
from tests.tiny import tiny_model, tiny_tokenizer

RECORDS = [{"instruction": f"say {i}", "input": "", "output": f"{i} {i + 1} {i + 2}"} for i in range(24)]


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    step = RecoveryTrainer.training_step

    def slowly(*args, **kwargs):
        time.sleep(0.2)
        return step(*args, **kwargs)

    if (folder / "slow").exists():
        RecoveryTrainer.training_step = slowly
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    config = RecoveryConfig(max_steps=10, batch_size=4, micro_batch_size=2, save_steps=2, learning_rate=1e-2)
    recovery = MoreauRecovery(config, tokenizer)
    recovery.train(model, RECORDS, work_dir=folder / "work")
    recovery.save(folder)


if __name__ == "__main__":
    main()
