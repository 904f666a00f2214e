"""Run as a script in a fresh process: renders one template within bounds, and writes what it gave.

Reads a JSON request from standard input: path (the parent's, so that the same packages are imported), source, values,
seconds, memory (bytes), longest (characters).
"""

from __future__ import annotations

import json
import resource
import sys


def main() -> None:
    """Reads, renders, writes `text`, or `error` and whether only a value was missing."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError

    from optimum_moreau.templates.foreign import unpacked
    from optimum_moreau.templates.sandbox import Sandbox

    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pieces, length = [], 0
    found: dict[str, str | bool]
    try:
        for piece in Sandbox().from_string(request["source"]).generate(**unpacked(request["values"])):
            length += len(piece)
            if length > request["longest"]:
                raise TemplateError(f"writes more than {request['longest']:,} characters")
            pieces.append(piece)
        found = {"text": "".join(pieces)}
    except (TemplateSyntaxError, SecurityError, MemoryError, RecursionError, ValueError, ArithmeticError) as error:
        found = {"error": _words(error), "incomplete": False}
    except UndefinedError as error:
        found = {"error": _words(error), "incomplete": True}
    except TemplateError as error:
        found = {"error": _words(error), "incomplete": False}
    except (TypeError, LookupError, AttributeError) as error:
        found = {"error": _words(error), "incomplete": True}
    json.dump(found, sys.stdout)


def _words(error: BaseException) -> str:
    line = str(error).strip().split("\n")[0][:200]
    return line or ("takes too much memory" if isinstance(error, MemoryError) else type(error).__name__)


if __name__ == "__main__":
    main()
