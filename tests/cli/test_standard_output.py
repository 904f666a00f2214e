"""Whoever reads standard output may stop, close it, or have no room: no traceback, and a code that says so."""

import io
import os
import subprocess
import sys

import pytest

from optimum_moreau.cli import main

FAMILIES = f"{sys.executable} -P -m optimum_moreau families"


def shell(line, **environment):
    """Runs a line of bash: exit codes of its pipeline, standard output and standard error."""
    script = f'{line}; echo "codes ${{PIPESTATUS[*]}}" >&2'
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()} | environment,
    )
    *err, codes = done.stderr.splitlines()
    return [int(code) for code in codes.split()[1:]], done.stdout, "\n".join(err)


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("flags", ["", "--json", "--help"])
def test_a_reader_that_is_gone_ends_it_quietly(flags, buffered):
    codes, _, err = shell(f"(sleep 0.5; {FAMILIES} {flags}; exit $?) | true", PYTHONUNBUFFERED=buffered)
    assert (
        codes in ([141, 0], [0, 0] if flags == "--help" and buffered else None) and err == ""
    )  # argparse says nothing


def test_a_reader_of_one_line_gets_it():
    codes, out, err = shell(f"{FAMILIES} | head -1")
    assert codes[0] in (0, 141) and out.startswith("| model type |") and out.count("\n") == 1 and err == ""


@pytest.mark.parametrize(
    "program", [FAMILIES, f"{FAMILIES} --json", f"{sys.executable} -P -m optimum_moreau --version"]
)
def test_a_full_disk_is_one_line(program):
    codes, _, err = shell(f"{program} > /dev/full")
    assert codes == [2] and err.endswith(": error: standard output cannot be written (No space left on device)")
    assert "\n" not in err


def test_a_closed_stream_is_written_to_by_nobody():
    assert shell(f"{FAMILIES} >&-") == ([0], "", "")
    codes, out, _ = shell(f"{FAMILIES} --json 2>&-")
    assert codes == [0] and out.startswith("{") and out.count("\n") == 1
    assert shell(f"{FAMILIES} --nonsense 2>&-") == ([2], "", "")


def test_an_encoding_without_the_letters_prints_without_them(monkeypatch):
    for encoding in ("ascii", "utf-8"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert main(["criteria"]) == 0
        out = sys.stdout.buffer.getvalue().decode(encoding)
        assert "| criterion |" in out and ("Σ" in out) == (encoding == "utf-8")
