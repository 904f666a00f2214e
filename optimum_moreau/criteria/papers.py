"""The papers that criteria come from: link → BibTeX entry."""

MOREAU_PRUNER = "https://arxiv.org/abs/2406.07017"
LLM_PRUNER = "https://arxiv.org/abs/2305.11627"
FILTER_PRUNING = "https://arxiv.org/abs/1608.08710"
SHORT_GPT = "https://arxiv.org/abs/2403.03853"

BIBTEX = {
    MOREAU_PRUNER: """@article{wang2024moreaupruner,
  title = {MoreauPruner: Robust Pruning of Large Language Models against Weight Perturbations},
  author = {Wang, Zixiao and Zhang, Jingwei and Zhao, Wenqian and Farnia, Farzan and Yu, Bei},
  journal = {arXiv preprint arXiv:2406.07017},
  year = {2024}
}""",
    LLM_PRUNER: """@inproceedings{ma2023llmpruner,
  title = {LLM-Pruner: On the Structural Pruning of Large Language Models},
  author = {Ma, Xinyin and Fang, Gongfan and Wang, Xinchao},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}
}""",
    FILTER_PRUNING: """@inproceedings{li2017pruning,
  title = {Pruning Filters for Efficient ConvNets},
  author = {Li, Hao and Kadav, Asim and Durdanovic, Igor and Samet, Hanan and Graf, Hans Peter},
  booktitle = {International Conference on Learning Representations},
  year = {2017}
}""",
    SHORT_GPT: """@article{men2024shortgpt,
  title = {ShortGPT: Layers in Large Language Models are More Redundant Than You Expect},
  author = {Men, Xin and Xu, Mingyu and Zhang, Qingyu and Wang, Bingning and Lin, Hongyu and Lu, Yaojie and
            Han, Xianpei and Chen, Weipeng},
  journal = {arXiv preprint arXiv:2403.03853},
  year = {2024}
}""",
}
