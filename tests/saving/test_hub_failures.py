"""A Hub that refuses, fails or breaks off: told in one line, no token in it, and a second try completes."""

import pytest

from tests.hub_client import assert_arrived, push
from tests.hub_server import READ_ONLY, TOKEN

# the endpoint that fails, and what the message says where it goes on failing
FAILURES = {
    "401": (("POST", "/api/repos/create", 401), "no token, or one that is not valid"),
    "403": (("POST", "/commit/", 403), "the token may not write there"),
    "404": (("POST", "/preupload/", 404), "no such repository or namespace"),
}
PASSING = {
    "409": ("POST", "/commit/", 409),
    "429": ("POST", "/preupload/", 429),
    "429 until a date": ("POST", "/preupload/", 429, "Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 until whenever": ("POST", "/preupload/", 429, "later"),
    "500": ("POST", "/commit/", 500),
    "cut connection": ("PUT", "/lfs/", "cut"),
    "500 in the upload": ("PUT", "/lfs/", 500),
    "slow": ("POST", "/preupload/", "slow", 2.0),
}


@pytest.mark.parametrize(("failure", "message"), FAILURES.values(), ids=FAILURES)
def test_a_refusal_is_told_in_one_line_and_a_second_try_completes(failure, message, hub, folders, tmp_path):
    hub.failures.append(failure)
    done = push(hub, tmp_path, folders["stock"], "me/pruned")
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr and TOKEN not in done.stderr + done.stdout
    again = push(hub, tmp_path, folders["stock"], "me/pruned")
    assert again.returncode == 0, again.stderr
    assert_arrived(hub, folders["stock"])


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_what_passes_is_waited_for(failure, hub, folders, tmp_path):
    hub.failures.append(failure)
    done = push(hub, tmp_path, folders["stock"], "me/pruned")
    assert done.returncode == 0, done.stderr
    assert_arrived(hub, folders["stock"])
    assert not hub.failures and TOKEN not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "no token, or one that is not valid"), (READ_ONLY, "the token may not write there")],
    ids=["none", "read-only"],
)
def test_without_the_right_to_write_nothing_is_sent(token, message, hub, folders, tmp_path):
    done = push(hub, tmp_path, folders["stock"], "me/pruned", token=token)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and READ_ONLY not in done.stderr
    assert not hub.repositories
