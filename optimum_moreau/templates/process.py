"""Run as a script in a fresh process: renders one template, once or often, within bounds.

Reads lines of JSON from standard input. The first: path (the parent's, so that the same packages are imported), kind
(`card`, `names` or `chat`), source, tokens, and the bounds of each text: seconds, memory (bytes), longest (characters).
Every further line: the values of a text, for which it writes a line: `text`, or `error` and whether only a value was
missing.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Write = Callable[[dict[str, Any]], str]


def main() -> None:
    """Reads, renders, writes, until there is nothing more to read."""
    request = json.loads(sys.stdin.readline())
    sys.path[:] = request["path"]
    from optimum_moreau.templates.foreign import unpacked

    write = _writer(request["kind"], request["source"], request["tokens"])
    memory = request["memory"] + _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGPROF, signal.SIGALRM):  # they end it, also within one call into C
        signal.signal(number, signal.SIG_DFL)
    for line in sys.stdin:
        values = unpacked(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        signal.setitimer(signal.ITIMER_REAL, 3 * request["seconds"])
        answer = _answer(write, values, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _writer(kind: str, source: str, tokens: dict[str, str]) -> Write:
    """What writes a text of a template; a chat as transformers does for a tokenizer with these special tokens."""
    if kind == "chat":
        from transformers.tokenization_utils_base import PreTrainedTokenizerBase

        parts = {"__init__": lambda self: None, "chat_template": source, "special_tokens_map": tokens}
        tokenizer = type("Tokenizer", (PreTrainedTokenizerBase,), parts)()
        return lambda values: str(tokenizer.apply_chat_template(**values, tokenize=False))
    from optimum_moreau.templates.sandbox import names_used, render

    if kind == "names":
        return lambda _: json.dumps(names_used(source))
    return lambda values: render(source, values)


def _answer(write: Write, values: dict[str, Any], request: dict[str, Any]) -> str:
    from jinja2 import TemplateError, UndefinedError

    try:
        text = write(values)
        if len(text) > request["longest"]:
            raise TemplateError(f"writes more than {request['longest']:,} characters")
        return json.dumps({"text": text})
    except MemoryError:
        words = f"takes more than {request['memory'] / 2**30:g} GiB of memory"
        return json.dumps({"error": words, "incomplete": False})
    except Exception as error:  # a template may raise anything
        other = isinstance(error, (TypeError, LookupError, AttributeError)) and not isinstance(error, TemplateError)
        words = str(error).strip().split("\n")[0][:200] or type(error).__name__
        return json.dumps({"error": words, "incomplete": other or isinstance(error, UndefinedError)})


def _address_space() -> int:
    """Bytes that the packages take, where the system says so (Linux): a thread for each core may hold some."""
    sizes = Path("/proc/self/statm")
    return int(sizes.read_text().split()[0]) * resource.getpagesize() if sizes.is_file() else 0


if __name__ == "__main__":
    main()
