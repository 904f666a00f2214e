"""Fixtures: tiny models and a tokenizer made in memory, text, and the shared real models where they are present."""

import os

# Before torch is imported: two xdist workers share two cores, and nothing may reach for the network.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "FALSE",
}

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from optimum_moreau.cli import main
from tests import warm
from tests.hub_server import Hub
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
STARTING = ("optimum_moreau.saving.verification", "optimum_moreau.evaluation.speed.measurement")
SHARED = ROOT.parent / "shared"
# Few tests that take long: begun first, so that no worker is left alone with them at the end.
LONG = ("docs", "zero_shot", "recovery", "speed", "packaging", "shared_models", "chain", "hub", "report", "contract")


def pytest_collection_modifyitems(items):
    """Puts the files of long tests first; each file's own order stays."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_levels():
    """What a command or a benchmark makes quiet is heard again in the next test."""
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if "optimum_moreau" in name]
    levels = [logger.level for logger in loggers]
    yield
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.name.startswith("optimum_moreau"):
            logger.setLevel(logging.NOTSET)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _warm_processes():
    """The processes that reload a saved model, or measure its speed, start warm; see `fresh_processes`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in STARTING:
            patch.setattr(f"{module}.subprocess", SimpleNamespace(run=warm.run))
        yield


@pytest.fixture
def fresh_processes(monkeypatch):
    """They are new interpreters, as for users: in tests of those processes themselves."""
    for module in STARTING:
        monkeypatch.setattr(f"{module}.subprocess", subprocess)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer():
    """The same, which begins every text with <s>."""
    return tiny_tokenizer(["<s>"])


@pytest.fixture
def llama():
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tokens():
    """Calibration windows for tiny models, `(4, 16)`."""
    return torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def text():
    return Path(ROOT / "optimum_moreau" / "data" / "calibration.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tokenizer):
    """A saved tiny LLaMA with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def command(capsys):
    """Runs `optimum-moreau VERB …` in this process: arguments → (exit code, standard output, standard error).

    What standard error announces of a run that went well so far (`INFO: …`) is left out.
    """

    def run(*arguments):
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        libraries = [
            handler
            for name in ("transformers", "datasets", "huggingface_hub")
            for handler in logging.getLogger(name).handlers
            if isinstance(handler, logging.StreamHandler)
        ]
        streams = [handler.stream for handler in libraries]
        root.handlers[:] = []  # the command makes its own, and closes those it finds
        for handler in libraries:  # they hold the stream of when they were made
            handler.setStream(sys.stderr)
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            for handler, stream in zip(libraries, streams, strict=True):
                handler.setStream(stream)
        out, err = capsys.readouterr()
        return code, out, "".join(line for line in err.splitlines(keepends=True) if not line.startswith("INFO: "))

    return run


@pytest.fixture
def hub():
    with Hub() as found:
        yield found


@pytest.fixture(scope="session")
def folders(tiny_folder, tmp_path_factory, text):
    """A pruned model of its own type, and a stock one."""
    from optimum_moreau import MoreauPruner, MoreauPrunerConfig
    from optimum_moreau.loading import load_model, load_tokenizer

    found = {}
    for kind, scope in {"own": (1, 2), "stock": (0, 3)}.items():
        config = MoreauPrunerConfig(
            criterion="taylor", unit_ratio=0.5, attention_layers=scope, mlp_layers=scope, sequence_length=32
        )
        pruner = MoreauPruner(config, tokenizer=load_tokenizer(str(tiny_folder)))
        pruner.prune(load_model(str(tiny_folder)), [text])
        found[kind] = tmp_path_factory.mktemp("pruned") / kind
        pruner.save_pretrained(found[kind])
    return found


@pytest.fixture
def unverified(monkeypatch):
    """Skips the fresh process, in tests of what surrounds it."""
    from optimum_moreau.saving.verification import Verification

    monkeypatch.setattr(
        "optimum_moreau.pruner.verify", lambda model, folder, tokens, **_: Verification(0.0, tokens.numel())
    )


@pytest.fixture
def unguarded(monkeypatch):
    """No compensation is taken back, in tests of what it does: they fit to any text, whose loss says nothing."""
    monkeypatch.setattr("optimum_moreau.compensation.compensate.mean_loss", lambda *_, **__: 1.0)


@pytest.fixture(scope="session")
def shared():
    """The folder of real models and texts beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the checkout: real models are not tested here")
    return SHARED
