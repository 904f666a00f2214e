"""The papers that criteria come from: link → BibTeX entry."""

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
FLAP_PAPER = "https://arxiv.org/abs/2312.11983"
RIA_PAPER = "https://iclr.cc/virtual/2024/poster/18549"

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
    LORA_PRUNE: """@inproceedings{zhang2024loraprune,
  title = {LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning},
  author = {Zhang, Mingyang and Chen, Hao and Shen, Chunhua and Yang, Zhen and Ou, Linlin and Yu, Xinyi and
            Zhuang, Bohan},
  booktitle = {Findings of the Association for Computational Linguistics},
  year = {2024}
}""",
    FILTER_PRUNING: """@inproceedings{li2017pruning,
  title = {Pruning Filters for Efficient ConvNets},
  author = {Li, Hao and Kadav, Asim and Durdanovic, Igor and Samet, Hanan and Graf, Hans Peter},
  booktitle = {International Conference on Learning Representations},
  year = {2017}
}""",
    WANDA_PAPER: """@inproceedings{sun2024wanda,
  title = {A Simple and Effective Pruning Approach for Large Language Models},
  author = {Sun, Mingjie and Liu, Zhuang and Bair, Anna and Kolter, J. Zico},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}""",
    SPARSE_GPT: """@inproceedings{frantar2023sparsegpt,
  title = {SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot},
  author = {Frantar, Elias and Alistarh, Dan},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}""",
    GBLM_PAPER: """@article{das2023gblm,
  title = {Beyond Size: How Gradients Shape Pruning Decisions in Large Language Models},
  author = {Das, Rocktim Jyoti and Sun, Mingjie and Ma, Liqun and Shen, Zhiqiang},
  journal = {arXiv preprint arXiv:2311.04902},
  year = {2023}
}""",
    SYMMETRIC: """@article{yi2025symmetric,
  title = {Symmetric Pruning of Large Language Models},
  author = {Yi, Kai and Richt{\\'a}rik, Peter},
  journal = {arXiv preprint arXiv:2501.18980},
  year = {2025}
}""",
    RIA_PAPER: """@inproceedings{zhang2024ria,
  title = {Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models},
  author = {Zhang, Yingtao and Bai, Haoli and Lin, Haokun and Zhao, Jialin and Hou, Lu and Cannistraci, Carlo Vittorio},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}""",
    DSNOT_PAPER: """@inproceedings{zhang2024dsnot,
  title = {Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs},
  author = {Zhang, Yuxin and Zhao, Lirui and Lin, Mingbao and Sun, Yunyun and Yao, Yiwu and Han, Xingjia and
            Tanner, Jared and Liu, Shiwei and Ji, Rongrong},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}""",
    OWL_PAPER: """@inproceedings{yin2024owl,
  title = {Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity},
  author = {Yin, Lu and Wu, You and Zhang, Zhenyu and Hsieh, Cheng-Yu and Wang, Yaqing and Jia, Yiling and Li, Gen and
            Jaiswal, Ajay and Pechenizkiy, Mykola and Liang, Yi and Bendersky, Michael and Wang, Zhangyang and
            Liu, Shiwei},
  booktitle = {International Conference on Machine Learning},
  year = {2024}
}""",
    SLIM_LLM: """@inproceedings{guo2025slimllm,
  title = {SlimLLM: Accurate Structured Pruning for Large Language Models},
  author = {Guo, Jialong and Chen, Xinghao and Tang, Yehui and Wang, Yunhe},
  booktitle = {International Conference on Machine Learning},
  year = {2025}
}""",
    FLAP_PAPER: """@inproceedings{an2024flap,
  title = {Fluctuation-based Adaptive Structured Pruning for Large Language Models},
  author = {An, Yongqi and Zhao, Xu and Yu, Tao and Tang, Ming and Wang, Jinqiao},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2024}
}""",
    SHORT_GPT: """@article{men2024shortgpt,
  title = {ShortGPT: Layers in Large Language Models are More Redundant Than You Expect},
  author = {Men, Xin and Xu, Mingyu and Zhang, Qingyu and Wang, Bingning and Lin, Hongyu and Lu, Yaojie and
            Han, Xianpei and Chen, Weipeng},
  journal = {arXiv preprint arXiv:2403.03853},
  year = {2024}
}""",
}
