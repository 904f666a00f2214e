"""The papers that criteria come from: link → BibTeX entry, of papers.bib."""

from pathlib import Path

MOREAU_PRUNER = "https://arxiv.org/abs/2406.07017"
LLM_PRUNER = "https://arxiv.org/abs/2305.11627"
LORA_PRUNE = "https://arxiv.org/abs/2305.18403"
FILTER_PRUNING = "https://arxiv.org/abs/1608.08710"
SHORT_GPT = "https://arxiv.org/abs/2403.03853"
WANDA_PAPER = "https://arxiv.org/abs/2306.11695"
SPARSE_GPT = "https://arxiv.org/abs/2301.00774"
GBLM_PAPER = "https://arxiv.org/abs/2311.04902"
SYMMETRIC = "https://arxiv.org/abs/2501.18980"
DSNOT_PAPER = "https://arxiv.org/abs/2310.08915"
OWL_PAPER = "https://arxiv.org/abs/2310.05175"
SLIM_LLM = "https://arxiv.org/abs/2505.22689"
ZIP_LM = "https://arxiv.org/abs/2302.04089"
FLAP_PAPER = "https://arxiv.org/abs/2312.11983"
RIA_PAPER = "https://iclr.cc/virtual/2024/poster/18549"

_ENTRIES = Path(__file__).with_name("papers.bib").read_text(encoding="utf-8").removeprefix("% ").strip()
BIBTEX = dict(entry.split("\n", 1) for entry in _ENTRIES.split("\n\n% "))
