"""Metadata of the distribution `optimum-moreau`."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "optimum_moreau" / "__init__.py").read_text(), re.M).group(1)

EVAL = ["lm_eval>=0.4.13"]
EVALUATE = ["evaluate>=0.4.6"]
REPORT = ["matplotlib>=3.10"]
DOCS = ["mkdocs-material>=9.7"]
TEST = ["markdown-it-py>=4", "pytest>=8", "hypothesis>=6.130", "pytest-xdist>=3.6", "setuptools>=77"]


setup(
    name="optimum-moreau",
    version=VERSION,
    description="Structured pruning of LLaMA-family language models by the gradient of the loss's Moreau envelope",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="transformers, optimum, pruning, llama, moreau envelope, compression",
    python_requires=">=3.11",
    packages=[
        "optimum_moreau",
        "optimum_moreau.budgets",
        "optimum_moreau.cli",
        "optimum_moreau.compensation",
        "optimum_moreau.config",
        "optimum_moreau.criteria",
        "optimum_moreau.data",
        "optimum_moreau.envelope",
        "optimum_moreau.estimate",
        "optimum_moreau.evaluation",
        "optimum_moreau.evaluation.speed",
        "optimum_moreau.files",
        "optimum_moreau.least_squares",
        "optimum_moreau.loading",
        "optimum_moreau.masks",
        "optimum_moreau.modeling",
        "optimum_moreau.models",
        "optimum_moreau.pipeline",
        "optimum_moreau.planning",
        "optimum_moreau.recovery",
        "optimum_moreau.report",
        "optimum_moreau.run",
        "optimum_moreau.saving",
        "optimum_moreau.scoring",
        "optimum_moreau.surgery",
        "optimum_moreau.templates",
        "optimum.commands.register",
    ],
    # A namespace folder of optimum: optimum-cli finds the verbs there (no __init__.py on the way).
    package_dir={"optimum.commands.register": "optimum_moreau/optimum_cli"},
    package_data={
        "optimum_moreau": [
            "py.typed",
            "criteria/papers.bib",
            "data/calibration.txt",
            "report/page.html.j2",
            "saving/MODEL_CARD_TEMPLATE.md",
        ]
    },
    install_requires=[
        "numpy>=1.26",
        "torch>=2.6",
        "transformers>=5.23,<6",
        "optimum>=2.3",
        "huggingface_hub>=2.4",
        "httpx2>=2",
        "safetensors>=0.6",
        "peft>=0.21",
        "accelerate>=1.15",
        "datasets>=5.0",
        "jinja2>=3.1",
        "pydantic>=2.12",
        "tqdm>=4.67",
        "pyyaml>=6",
        "scipy>=1.14",
    ],
    extras_require={
        "eval": EVAL,
        "evaluate": EVALUATE,
        "report": REPORT,
        "docs": DOCS,
        "test": [*TEST, *EVAL, *EVALUATE, *REPORT],
        "dev": [*TEST, *EVAL, *EVALUATE, *REPORT, "ruff>=0.14", "mypy>=1.18"],
    },
    entry_points={"console_scripts": ["optimum-moreau=optimum_moreau.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
