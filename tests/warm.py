"""Processes that start warm: forked from one that has imported torch and transformers, and nothing of this package.

`run` stands for `subprocess.run` of this interpreter. Its arguments, environment, folder and streams are those of a
fresh process; only the seconds of importing are saved. What a test says of memory, of imports or of several processes
needs true ones.
"""

import importlib
import io
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ENVIRONMENT = dict(os.environ)  # before any test changes it
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["torch", "transformers.models.llama.modeling_llama", "transformers.trainer", "peft", "datasets", "pydantic"]
)


def run(command, *, input=None, env=None, cwd=None, timeout=None, **_):
    """Runs `[sys.executable, "-P", FILE | "-c", CODE | "-m", MODULE, …]`; returns what `subprocess.run` does."""
    with tempfile.TemporaryDirectory() as folder:
        return finished(start(command, folder, input=input, env=env, cwd=cwd), folder, timeout)


def run_together(command, *, env, timeout, **_):
    """Runs it as the two processes that `torchrun` starts; returns what the worse of them did."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        ranks = {folder: {"RANK": rank, "LOCAL_RANK": rank} for rank, folder in zip("01", (one, two), strict=True)}
        both = [(start(command, folder, env={**env, **place, **rank}), folder) for folder, rank in ranks.items()]
        return max((finished(*one, timeout) for one in both), key=lambda done: abs(done.returncode))


def finished(process, folder, timeout=None):
    """Waits for a process that `start` began in a folder; returns what `subprocess.run` does."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(process.name, timeout)
    out, err = (Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess(process.name, process.exitcode, out, err)


def start(command, folder, *, input=None, env=None, cwd=None):
    """Starts it as a `multiprocessing.Process`; its output comes into the files `out` and `err` of a folder."""
    now = dict(os.environ)
    try:  # the server's environment is no test's
        _set_environment(_ENVIRONMENT)
        forkserver.ensure_running()
    finally:
        _set_environment(now)
    words = [str(word) for word in command[1:]]
    process = _SERVER.Process(target=_become, args=(words, input, env or now, str(cwd or os.getcwd()), str(folder)))
    process.start()
    return process


def _set_environment(values):
    os.environ.clear()
    os.environ.update(values)


def _become(words, given, environment, folder, streams):
    """In the forked process: what a fresh interpreter does with these words of a command line."""
    for number, name in enumerate(("out", "err"), start=1):
        os.dup2(os.open(Path(streams, name), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.stdin = io.StringIO(given or "")
    os.chdir(folder)
    _set_environment(environment)
    _read_environment_again()
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*paths, *(path for path in sys.path if path != str(ROOT))]
    del sys.modules["tests.warm"], sys.modules["tests"]
    words = [word for word in words if word not in ("-P", "-I")]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _read_environment_again():
    """What the libraries read from the environment when they were imported, they read again."""
    import datasets
    import huggingface_hub
    import transformers

    loaded = [module for name, module in sys.modules.items() if name.startswith(("huggingface_hub", "transformers"))]
    for constants in (huggingface_hub.constants, datasets.config):
        before = dict(vars(constants))
        importlib.reload(constants)
        changed = {
            name: value for name, value in vars(constants).items() if name.isupper() and value != before.get(name)
        }
        for module in loaded:
            for name in changed.keys() & vars(module).keys():
                setattr(module, name, changed[name])
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
    modules = os.environ.get("HF_MODULES_CACHE", os.path.join(huggingface_hub.constants.HF_HOME, "modules"))
    transformers.utils.hub.HF_MODULES_CACHE = transformers.dynamic_module_utils.HF_MODULES_CACHE = modules
