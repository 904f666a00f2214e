"""Progress: a bar on a terminal, a line a minute in a log."""

import io
import logging
import sys

from optimum_moreau.models import progress as module
from optimum_moreau.models.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_all_steps_come_and_a_log_says_how_far_it_is_once_a_minute(monkeypatch, caplog):
    clock = iter(range(0, 10_000, 25))  # seconds
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "optimum_moreau"):
        assert list(progress(range(7), "refit")) == list(range(7))
    assert caplog.messages[0] == "refit: 2 of 7 done"
    assert len(caplog.records) < 4


def test_a_short_step_says_nothing_in_a_log(caplog):
    with caplog.at_level(logging.INFO, "optimum_moreau"):
        assert list(progress(iter("abc"), "refit", 3)) == list("abc")
    assert not caplog.records


def test_a_terminal_shows_a_bar_with_the_steps_name_and_no_lines(monkeypatch, caplog):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(module, "EVERY", 0.0)
    with caplog.at_level(logging.INFO, "optimum_moreau"):
        list(progress(range(3), "refit"))
    assert "refit" in shown.getvalue() and not caplog.records
