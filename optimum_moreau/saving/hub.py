"""Publishes a saved folder on the Hub: one commit, the card there merged with ours, checked by loading it back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from filecmp import cmp
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, ModelCard, ModelCardData, constants, get_token, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import OfflineModeIsEnabled, validate_repo_id

from ..errors import CheckpointError, HubError, MoreauError, first_line, quiet
from ..files import read_text
from ..files.temporary import reason as why
from ..files.temporary import temporary_folder
from ..templates import parse_card
from .contents import is_ours

logger = logging.getLogger(__name__)

PLACEHOLDER = "path/or/repo"  # in a card that is not published yet
_MARK = "<!-- optimum-moreau:"
_BEGIN, _END = f"{_MARK} begin -->", f"{_MARK} end -->"  # around our part of a card on the Hub
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MESSAGE = "Upload a pruned model with optimum-moreau"
_TRIES = 4
_LONGEST_WAIT = 60.0  # seconds
_STATUS = {
    400: "the Hub refuses the files",
    401: "no token, or one that is not valid: log in (hf auth login), or set HF_TOKEN",
    403: "the token may not write there: it is read-only, or of another account",
    404: "no such repository or namespace, or the token cannot see it",
    409: "it changed meanwhile",
    429: "the Hub asks for fewer requests",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """What `push_folder` did, or would do.

    Attributes:
        repo_id: of the model.
        url: of the commit, or of the pull request; empty after a dry run.
        commit: its hash; empty after a dry run.
        files: path in the repository → bytes.
        changed: whether anything was different there, so that a commit was made.
        commit_message: its summary line.
    """

    repo_id: str
    url: str
    commit: str
    files: dict[str, int]
    changed: bool
    commit_message: str = ""


def files_to_push(folder: str | Path) -> dict[str, int]:
    """Returns what a push sends, path in the repository → bytes; raises HubError for no model, or pickled files."""
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise HubError(f"{folder}: holds no model (config.json); give a folder that prune, apply or recover wrote")
    found = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    hidden = {name for name in found if any(part.startswith(".") for part in name.parts)}
    files = {name.as_posix(): file.stat().st_size for name, file in found.items() if name not in hidden}
    if pickles := [name for name in files if name.endswith(_PICKLES)]:
        raise HubError(f"{folder}: {pickles[0]} may be a pickle; only safetensors are pushed: remove it")
    return files


def check_access(repo_id: str, token: str | None = None) -> None:
    """Refuses (HubError), before any work, a name that is not legal, and a token that is missing or may only read."""
    _check_name(repo_id)
    _check_token(repo_id, token)
    found = _patiently(lambda: HfApi(token=token).whoami(), repo_id)
    if found.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"{repo_id}: {_STATUS[403]}")


def _check_token(repo_id: str, token: str | None) -> None:
    if token is None and get_token() is None:
        raise HubError(f"{repo_id}: {_STATUS[401]}")


def _check_name(repo_id: str) -> None:
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id}: is no name for a repository; give namespace/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id}: is no name for a repository ({first_line(error)})") from error


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    overwrite_card: bool = False,
    dry_run: bool = False,
) -> Published:
    """Publishes a saved folder in one commit; creates the repository where there is none.

    A push that broke off is done again: what was uploaded is recognised by its hash and not sent twice. What an earlier
    push left there (weights, adapter, records) and the folder does not hold is removed in the same commit.

    Args:
        folder: of a saved model.
        repo_id: `namespace/name`.
        private: for a repository that is created; default: the account's.
        revision: branch, made where it is missing.
        create_pr: as a pull request.
        commit_message: default: `Upload a pruned model with optimum-moreau`.
        token: of the Hub; default: the one that is logged in.
        overwrite_card: replace the card there, instead of merging with it.
        dry_run: only check the folder and the name, and say what would be sent; the Hub is not asked.

    Raises:
        HubError: says what the Hub refused, and what to do; the token is never named.
    """
    files, path = files_to_push(folder), Path(folder).expanduser()
    _check_name(repo_id)
    ours = _local_card(path / "README.md", repo_id)
    planned = Published(repo_id, "", "", files, changed=False, commit_message=commit_message or _MESSAGE)
    if dry_run:
        return planned
    _check_token(repo_id, token)
    api, to = HfApi(token=token), {"revision": revision, "create_pr": create_pr}

    def attempt() -> Published:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        theirs = None if overwrite_card or ours is None else _remote_card(api, repo_id, revision)
        return _commit(api, path, planned, merged_card(theirs, ours) if ours else None, to)

    return _patiently(attempt, repo_id)


push_to_hub = push_folder  # the name that is asked for first


def _commit(api: HfApi, path: Path, planned: Published, card: str | None, to: dict[str, Any]) -> Published:
    """Adds the files of a folder, and removes what an earlier push left and the folder does not hold."""
    repo_id, files, add = planned.repo_id, planned.files, huggingface_hub.CommitOperationAdd
    operations: list[Any] = [add(name, str(path / name)) for name in files if name != "README.md"]
    there = api.list_repo_files(repo_id, revision=to["revision"])
    gone = [name for name in there if is_ours(name) and name not in files]
    operations += map(huggingface_hub.CommitOperationDelete, gone)
    if card is not None:
        operations.append(add("README.md", card.encode()))
    with quiet("huggingface_hub.hf_api"):  # it warns where nothing has changed
        before = api.model_info(repo_id, revision=None if to["create_pr"] else to["revision"]).sha
        done = api.create_commit(repo_id, operations, commit_message=planned.commit_message, **to)
    return replace(planned, url=done.pr_url or done.commit_url, commit=done.oid, changed=done.oid != before)


def _local_card(file: Path, repo_id: str) -> ModelCard | None:
    """The card of a folder, its placeholder filled in."""
    if not file.is_file():
        return None
    try:
        card = parse_card(read_text(file, "a model card"))
    except ValueError as error:
        raise CheckpointError(f"{file}: cannot be read as a model card ({first_line(error)}); repair it") from error
    card.text = card.text.replace(PLACEHOLDER, repo_id)
    return card


def _remote_card(api: HfApi, repo_id: str, revision: str | None) -> ModelCard | None:
    with temporary_folder("hub") as work:
        try:
            file = api.hf_hub_download(repo_id, "README.md", revision=revision, local_dir=work)
            return parse_card(read_text(file, "a model card"), ignore_metadata_errors=True)
        except EntryNotFoundError:
            return None
        except (ValueError, CheckpointError) as error:
            reason = f"the card there cannot be read ({first_line(error)}); repair it, or replace it (--overwrite-card)"
            raise HubError(f"{repo_id}: {reason}") from error


def merged_card(theirs: ModelCard | None, ours: ModelCard) -> str:
    """Our card within that on the Hub, if any: what they wrote stays, what an earlier push wrote is replaced."""
    within = ours.text.strip().replace(_MARK, _MARK.replace("!--", "! --"))  # what data holds ends nothing
    part = f"{_BEGIN}\n\n{within}\n\n{_END}"
    data: dict[str, Any] = {} if theirs is None else theirs.data.to_dict()
    for key, value in ours.data.to_dict().items():
        if isinstance(old := data.get(key), list) and isinstance(value, list) and key != "model-index":
            value = [*old, *(one for one in value if one not in old)]
        data[key] = value
    before, _, rest = ("" if theirs is None else theirs.text).partition(_BEGIN)
    after = rest.partition(_END)[2]
    text = "\n\n".join(piece.strip() for piece in (before, part, after) if piece.strip())
    return f"---\n{ModelCardData(ignore_metadata_errors=True, **data)}\n---\n\n{text}\n"


def verify_published(
    published: Published, folder: str | Path, *, token: str | None = None, trust_remote_code: bool = False
) -> None:
    """Downloads what was published into an empty cache, compares every file but the card, and loads it from there.

    It is loaded by its name on the Hub, in a fresh process, and must compute the folder's logits; the modeling file of
    an own type runs only after it was seen to be this package's, and no other code lies beside it.

    Args:
        published: what `push_folder` returned.
        folder: that was pushed.
        token: of the Hub.
        trust_remote_code: the user's word on code that is not this package's.

    Raises:
        HubError: it cannot be read back, differs, or does not load.
    """
    import torch

    from ..loading import code_may_run
    from .verification import reload_logits

    with temporary_folder("hub") as cache, temporary_folder("verify") as work:

        def download() -> str:
            return snapshot_download(published.repo_id, revision=published.commit, cache_dir=cache, token=token)

        there = Path(_patiently(download, published.repo_id))
        for name in published.files:
            same = (there / name).is_file() and cmp(there / name, Path(folder).expanduser() / name, shallow=False)
            if name != "README.md" and not same:
                raise HubError(f"{published.repo_id}: {name} on the Hub is not what was sent; push again")
        tokens = torch.arange(2, 10, dtype=torch.int64, device="cpu")[None]
        local = str(Path(folder).expanduser().resolve())
        remote: dict[str, Any] = {"revision": published.commit, "cache": str(cache)}
        try:
            here, far = (code_may_run(place, trust_remote_code) for place in (local, there))
            expected = reload_logits(local, tokens, work, remote_code=here)
            found = reload_logits(published.repo_id, tokens, work, remote_code=far, **remote)
        except CheckpointError as error:
            raise HubError(f"{published.repo_id}: what is on the Hub {error}") from error
        if not torch.equal(found, expected):
            raise HubError(f"{published.repo_id}: what is on the Hub computes other logits than {folder}; push again")


def _seconds(retry_after: str | None, otherwise: float) -> float:
    """What a Retry-After header asks for: seconds, or a date."""
    with suppress(ValueError, TypeError):  # TypeError: no header
        return max(0.0, float(retry_after))  # type: ignore[arg-type]
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(retry_after or "") - datetime.now(UTC)).total_seconds())
    return otherwise


def _patiently(action: Callable[[], T], repo_id: str) -> T:
    """Tries again, a few times, what may go better later: a busy or failing Hub, a broken connection, a conflict."""
    for attempt in range(_TRIES):
        wait: float | None = None  # seconds, where it may go better later
        try:
            return action()
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (409, 429) or status >= 500:
                wait = _seconds(error.response.headers.get("Retry-After"), 2.0**attempt)
            reason = _STATUS.get(status, f"the Hub failed ({status})")
        except OfflineModeIsEnabled:
            reason = "HF_HUB_OFFLINE is set; unset it to reach the Hub"
        except (httpx2.TransportError, ConnectionError, TimeoutError) as error:
            wait, unreached = 2.0**attempt, isinstance(error, httpx2.ConnectError)
            reason = f"{constants.ENDPOINT} cannot be reached" if unreached else "the connection broke"
            reason += f" ({type(error).__name__})"
        except LocalTokenNotFoundError:
            reason = _STATUS[401]
        except MoreauError:
            raise
        except OSError as error:
            reason = f"a file cannot be read or written here ({why(error)})"
        if wait is None or attempt == _TRIES - 1:
            later = "" if wait is None else "; run the same again later: what was uploaded is not sent twice"
            raise HubError(f"{repo_id}: {reason}{later}") from None  # a traceback could hold the token
        logger.warning("%s: %s; trying again in %.0f s", repo_id, reason, min(wait, _LONGEST_WAIT))
        time.sleep(min(wait, _LONGEST_WAIT))
    raise AssertionError("unreachable")
