"""Zero-shot accuracy on multiple-choice tasks, through lm-eval (extra `eval`).

A task is one of lm-eval's, or a file of one's own: `NAME.yaml` as lm-eval reads it, or `NAME.jsonl` with `question`,
`choices` and `label`; where the blank lies within the text, as in WinoGrande, with `contexts`, `continuation`, `label`.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, DataError, first_line, quiet
from ..files import read_lines
from ..models.undisturbed import plain_outputs, undisturbed
from ..registry import suggestion

# The seven tasks of LLM-Pruner's and MoreauPruner's tables. The papers name no metrics; these are the usual reading of
# their dense rows on LLaMA-7B, which was not run here.
_TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
METRICS = dict.fromkeys(_TASKS, "acc") | dict.fromkeys(("hellaswag", "arc_challenge", "openbookqa"), "acc_norm")
_LONGEST_LINE = 2**20  # bytes of a question
# what lm-eval is told of every file of questions
_ASKED = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}
# the fields with a text, and with several of which the label names one: of a question, and of a text with a blank
_QUESTION, _BLANK = ("question", "choices"), ("continuation", "contexts")


@dataclass(frozen=True)
class TaskResult:
    """Accuracy on one task, a share of its questions, with its standard error.

    Of the metrics, `acc_norm` goes by the log-likelihood per byte of the choice.
    """

    task: str
    metric: str
    value: float
    stderr: float
    samples: int


@dataclass(frozen=True)
class ZeroShot:
    """Accuracies, one result a task, and their mean over the tasks."""

    tasks: tuple[TaskResult, ...]

    @property
    def average(self) -> float:
        """Mean of the values."""
        return sum(one.value for one in self.tasks) / len(self.tasks)

    @property
    def stderr(self) -> float:
        """Standard error of the mean, the tasks taken as independent: √(Σ s²) / number of tasks."""
        return math.sqrt(sum(one.stderr**2 for one in self.tasks)) / len(self.tasks)


@undisturbed()
def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = tuple(METRICS),
    *,
    task_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    trust_remote_code: bool = False,
) -> ZeroShot:
    """Measures the accuracy of a model on tasks, without examples in the prompt.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        tasks: names; by default the seven of the papers.
        task_path: folder of task files, so that nothing is downloaded.
        limit: only the first so many questions of each task.
        batch_size: sequences per forward pass.
        trust_remote_code: read `NAME.yaml` of that folder, whose functions and templates lm-eval runs.

    Raises:
        ConfigError: lm-eval is not installed, a task is unknown, or its file may run code and is not trusted.
        DataError: a task file is missing or damaged, or a task's data cannot be had.
    """
    manager, wanted = find_tasks(tasks, task_path, trust_remote_code=trust_remote_code)
    import lm_eval
    from datasets.exceptions import DatasetsError
    from lm_eval.models.huggingface import HFLM

    # TypeError, AttributeError: of fields that lm-eval was not made for
    unusable = (OSError, ValueError, LookupError, ImportError, DatasetsError, TypeError, AttributeError)
    training = model.training
    try:
        with plain_outputs(model), _less_said():
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
            options = {"num_fewshot": 0, "limit": limit, "bootstrap_iters": 0, "log_samples": False}
            found = lm_eval.simple_evaluate(wrapped, tasks=wanted, task_manager=manager, **options)
    except unusable as error:
        hint = "" if task_path else "; without a network, give task files (--task-path)"
        raise DataError(f"tasks: cannot be evaluated ({type(error).__name__}: {first_line(error)}){hint}") from error
    finally:
        model.train(training)
    return ZeroShot(tuple(_result(task, found) for task in tasks))


@contextmanager
def _less_said() -> Iterator[None]:
    """Without what lm-eval and the libraries under it log, and without its bars where there is no terminal."""
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())  # lm-eval's ask no terminal
    with quiet("lm_eval"), quiet("datasets"), quiet("huggingface_hub"), bars:
        yield


def find_tasks(
    tasks: Sequence[str], task_path: str | Path | None = None, *, trust_remote_code: bool = False
) -> tuple[Any, list[Any]]:
    """Returns lm-eval's manager, and of each task its name, or the settings of its file; arguments as for `zero_shot`.

    Raises:
        ConfigError: lm-eval is not installed, a task is unknown, or its file may run code and is not trusted.
        DataError: a task file is missing or damaged.
    """
    try:
        import lm_eval  # noqa: F401 (whether it is there at all)
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError("tasks: need lm-eval, which is not installed: pip install 'optimum-moreau[eval]'") from error
    if task_path is None:
        manager = TaskManager()
        if unknown := next((task for task in tasks if task not in manager.all_tasks), None):
            raise ConfigError(f"tasks: unknown task '{unknown}'.{suggestion(unknown, manager.all_tasks)}")
        return manager, list(tasks)
    folder = Path(task_path).expanduser()
    found = [_task_of(folder, task) for task in tasks]
    code = next((task for task in found if isinstance(task, str)), None)
    if code and not trust_remote_code:
        raise ConfigError(
            f"{code}.yaml: lm-eval runs the code that such a file names; it is read only where you trust it"
            f" (--trust-remote-code), or as {code}.jsonl"
        )
    # without a path it reads no file of that folder
    return TaskManager(include_path=str(folder) if code else None, include_defaults=False), found


def metric_of(task: str) -> str:
    """The metric a task is judged by: the papers', for their tasks and pieces of them (`hellaswag_2k`); else `acc`."""
    return next((metric for name, metric in METRICS.items() if task == name or task.startswith(f"{name}_")), "acc")


def _result(task: str, found: Any) -> TaskResult:
    values, metric = found["results"][task], metric_of(task)
    accuracy, samples = values[f"{metric},none"], found["n-samples"][task]["effective"]
    # lm-eval's standard error of a mean of zeros and ones, which it leaves out without bootstrap
    stderr = math.sqrt(accuracy * (1 - accuracy) / (samples - 1)) if samples > 1 else 0.0
    return TaskResult(task, metric, accuracy, stderr, samples)


def _task_of(folder: Path, task: str) -> str | dict[str, Any]:
    """The task of a file: its name for lm-eval's own format, its settings for a file of questions."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of task files")
    if (folder / f"{task}.yaml").is_file():
        return task
    file = folder / f"{task}.jsonl"
    if not file.is_file():
        known = sorted({path.stem for path in folder.iterdir() if path.suffix in (".yaml", ".jsonl")})
        raise DataError(f"{folder}: holds no task '{task}' (.yaml or .jsonl).{suggestion(task, known)}")
    asked: dict[str, Any] = {"doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "label"}
    if _fields_of(file) == _BLANK:  # each context is completed by one continuation, and the likeliest wins
        asked = {"doc_to_text": "label", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
        asked["target_delimiter"] = ""
    return {"task": task, "dataset_kwargs": {"data_files": {"test": str(file)}}, **_ASKED, **asked}


def _fields_of(file: Path) -> tuple[str, str]:
    """Reads a file of questions, all of one kind; returns which: `_QUESTION` or `_BLANK`.

    lm-eval would count a label that names no choice as a wrong answer.
    """
    fields, kind = _QUESTION, None
    for number, row in read_lines(file, "a question", DataError, longest=_LONGEST_LINE):
        where = f"{file}: line {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: cannot be read as a question: {row!r:.40} is no dictionary of fields")
        if kind is None and row.keys() >= {*_BLANK, "label"}:
            fields = _BLANK
        if not row.keys() >= {*fields, "label"}:
            found, wanted = ", ".join(sorted(row)), ", ".join((*fields, "label"))
            other = "; or contexts, continuation, label" if kind is None else ", as in its first line"
            raise DataError(f"{where}: has the fields {found:.80}; needed are {wanted}{other}")
        if problem := _problem(row, fields, kind):
            raise DataError(f"{where}: {problem}")
        kind = type(row["label"])
    if kind is None:
        raise DataError(f"{file}: holds no questions")
    return fields


def _problem(row: dict[str, Any], fields: tuple[str, str], kind: type | None) -> str:
    """What is wrong with a question, if anything; its label is of the kind that those before it are of."""
    text, several = fields
    choices, label = row[several], row["label"]
    if not isinstance(row[text], str) or (fields == _BLANK and not row[text]):
        return f"{text} is {row[text]!r:.40}, no text; put it in quotes"
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        return f"{several} {choices!r:.40} is no list of two or more texts, none of them empty"
    count = len(choices)
    by_place = type(label) is int and 0 <= label < count
    if not by_place and (fields == _BLANK or not isinstance(label, str) or label not in choices):
        return f"label {label!r:.40} names none of its {count} {several}; they count from 0 to {count - 1}"
    if kind not in (None, type(label)):
        return f"label {label!r:.40} is of another kind than in its first line; give all as numbers"
    return ""
