"""Where a Kyutai checkpoint comes from: a directory, the hub's cache on this machine, or the hub.

A directory is used as it is and nobody is asked. A model of the hub that is in the cache is used
from there without asking either: an engine that has to be started anew must not depend on a
network. Only what is missing is fetched, all files of one commit. The environment is the hub's
own: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT, HTTPS_PROXY.
"""

from __future__ import annotations

import errno
import logging
import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from bridge.config import is_hub_name
from bridge.engine.checkpoint_config import USE, ModelShape, read_config
from bridge.engine.checkpoint_files import (
    CONFIG,
    Checkpoint,
    inside,
    names,
    open_checkpoint,
    read_json,
)
from bridge.engine.checkpoint_memory import (
    slot_bytes,
    slots_that_fit,
    state_bytes,
    weight_bytes,
    working_bytes,
)
from bridge.errors import EngineUnavailable

__all__ = [
    "Checkpoint", "ModelShape", "ask", "cached", "find", "is_directory", "read_config",
    "slot_bytes", "slots_that_fit", "state_bytes", "weight_bytes", "working_bytes",
]  # fmt: skip

log = logging.getLogger(__name__)

ASK = 2.0  # s that the hub has to say whether it has a model
TELL = 5.0  # s between two lines about a download that gets on
SHOWN = 200  # characters of a message that is not ours
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

Progress: TypeAlias = Callable[[str], None]


def is_directory(model: str) -> bool:
    """Whether `model` is looked for on this machine only."""
    return not is_hub_name(model) or Path(model).is_dir()


def find(
    model: str, revision: str | None = None, *, download: bool = True, progress: Progress = log.info
) -> Checkpoint:
    """The files of a model, complete and fitting. Raises `EngineUnavailable`.

    `progress` is told a line per file that is fetched, and one every `TELL` seconds while it gets
    on; on a terminal the hub's own bar is shown besides.
    """
    if is_directory(model):
        folder = Path(model).expanduser()
        return open_checkpoint(str(folder), inside(folder))
    return open_checkpoint(model, _Fetcher(model, revision, download, progress).locate)


def cached(model: str, revision: str | None = None) -> bool:
    """Whether all files of a model of the hub are on this machine. Asks nobody."""
    try:
        config = _cached(model, CONFIG, revision)
        if config is None:
            return False
        files = names(read_json(config), model).values()
        return all(_cached(*_place(model, _commit(config), file)) for file in files)
    except EngineUnavailable:
        return False


def ask(model: str, revision: str | None = None, *, timeout: float = ASK) -> None:
    """Ask the hub, once, whether it has this model for us. Raises `EngineUnavailable` when not."""
    hub = _hub()
    if hub.constants.HF_HUB_OFFLINE:
        raise EngineUnavailable(_offline(model, CONFIG))
    answers: queue.Queue[Any] = queue.Queue()

    def wait() -> None:
        try:
            answers.put(hub.HfApi().model_info(model, revision=revision, timeout=timeout))
        except (OSError, ValueError) as e:
            answers.put(e)

    # Not even the look-up of the hub's name may keep us longer; nobody waits for the thread.
    threading.Thread(target=wait, name="ask the hub", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        why = _unreachable(model, CONFIG, f"no answer in {timeout:g} s")
        raise EngineUnavailable(why) from None
    if isinstance(answer, Exception):
        why = _refused(answer, model, revision, CONFIG)
        raise EngineUnavailable(why or _unreachable(model, CONFIG, _reason(answer))) from answer
    if answer.gated and hub.get_token() is None:
        raise EngineUnavailable(_gated(model))
    if CONFIG not in {file.rfilename for file in answer.siblings or ()}:
        raise EngineUnavailable(_lacks(model, CONFIG))


class _Fetcher:
    """Files of one model of the hub, all of the commit that its config.json was of."""

    def __init__(
        self, model: str, revision: str | None, download: bool, progress: Progress
    ) -> None:
        self._model, self._revision = model, revision
        self._commit: str | None = revision
        self._download = download
        self._progress = progress

    def locate(self, file: str) -> Path:
        """On this machine, fetched if need be."""
        model, file, revision = _place(self._model, self._commit, file)
        path = _cached(model, file, revision) or self._fetch(model, file, revision)
        if file == CONFIG:
            self._commit = _commit(path) or self._revision
        return path

    def _fetch(self, model: str, file: str, revision: str | None) -> Path:
        hub = _hub()
        if not self._download:
            raise EngineUnavailable(f"{model}: {file} is not on this machine")
        if hub.constants.HF_HUB_OFFLINE:
            raise EngineUnavailable(_offline(model, file))
        self._progress(f"fetching {file} of {model} from {hub.constants.ENDPOINT}")
        try:
            with _telling(model, file, self._progress):
                return Path(hub.hf_hub_download(model, file, revision=revision))
        except (OSError, ValueError, RuntimeError) as e:  # RuntimeError: of hf_xet
            why = _refused(e, model, self._revision, file) or _local(e, model)
            raise EngineUnavailable(why or _broken_off(e, model, file)) from e


def _place(model: str, revision: str | None, file: str) -> tuple[str, str, str | None]:
    """(model, file, revision); a config.json may name ``hf://owner/name/file`` of another model."""
    match = re.fullmatch(r"hf://([^/]+/[^/]+)/(.+)", file)
    return (match[1], match[2], None) if match else (model, file, revision)


def _commit(path: Path) -> str | None:
    """Of a file in the hub's cache: ``…/snapshots/<commit>/config.json``."""
    return path.parent.name if path.parent.parent.name == "snapshots" else None


def _cached(model: str, file: str, revision: str | None) -> Path | None:
    found = _hub().try_to_load_from_cache(model, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _hub() -> Any:
    """huggingface_hub, which comes with moshi."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as e:
        raise EngineUnavailable(
            f"huggingface_hub cannot be imported ({e}): pip install 'callscribe[kyutai]', or set "
            "engine.model to a directory"
        ) from e
    return huggingface_hub


@contextmanager
def _telling(model: str, file: str, progress: Progress) -> Iterator[None]:
    """While a file is fetched, say how much of it there is, as long as that grows."""
    over = threading.Event()
    folder = Path(_hub().constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"

    def tell() -> None:
        before = 0
        while not over.wait(TELL):
            now = sum(map(_written, folder.glob("*.incomplete")))
            if now > before:
                progress(f"{file}: {now / 1e6:,.0f} MB so far")
            before = now

    thread = threading.Thread(target=tell, name=f"telling of {file}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _written(path: Path) -> int:
    """Bytes; of a file that is written out of order, less than its size."""
    with suppress(FileNotFoundError):  # it has just become complete
        status = path.stat()
        return min(status.st_size, status.st_blocks * 512)
    return 0


# -- what went wrong ------------------------------------------------------------------------------


def _offline(model: str, file: str) -> str:
    return (
        f"{model}: {file} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset "
        "that, or set engine.model to a directory that has the model"
    )


def _unreachable(model: str, file: str, reason: str) -> str:
    return (
        f"{model}: {file} is not on this machine, and {_hub().constants.ENDPOINT} cannot be "
        f"reached ({reason}): see the network and HTTPS_PROXY, or set engine.model to a directory "
        "that has the model"
    )


def _gated(model: str) -> str:
    return (
        f"{model} is only for those who accept its terms: do that on {_hub().constants.ENDPOINT}/"
        f"{model}, and set HF_TOKEN to a token of that account"
    )


def _lacks(model: str, file: str) -> str:
    return f"{model} has no {file}: it is no checkpoint for this engine; {USE}"


def _refused(error: Exception, model: str, revision: str | None, file: str) -> str:
    """What the hub says, if it is its word that is in the way; empty if not."""
    errors, endpoint = _hub().errors, _hub().constants.ENDPOINT
    match error:
        case errors.LocalEntryNotFoundError():
            return _unreachable(model, file, _reason(error.__cause__))
        case errors.GatedRepoError():
            return _gated(model)
        case errors.RevisionNotFoundError():
            return f"{model} has no revision {revision!r}: correct engine.revision, or leave it out"
        case errors.RepositoryNotFoundError():
            return (
                f"{endpoint} has no model {model}, or not for everybody: correct engine.model, or "
                "set HF_TOKEN if it is a private one"
            )
        case errors.EntryNotFoundError():
            return _lacks(model, file)
        case errors.HfHubHTTPError() if error.response.status_code == 401:
            return f"{endpoint} does not accept the token that HF_TOKEN or its log-in gives"
    return ""


def _local(error: Exception, model: str) -> str:
    """What this machine's disk says, or empty."""
    cache, code = _hub().constants.HF_HUB_CACHE, getattr(error, "errno", None)
    if code in FULL or "No space left on device" in str(error):
        return (
            f"the disk with {cache} is full: free some gigabytes for {model}, or set HF_HOME to a "
            "directory on another disk"
        )
    if isinstance(error, OSError) and code in FORBIDDEN:
        return (
            f"{error.filename or cache} cannot be written ({error.strerror}): set HF_HOME to a "
            "directory that can"
        )
    return ""


def _broken_off(error: Exception, model: str, file: str) -> str:
    return (
        f"{model}: fetching {file} broke off ({_reason(error)}); start again, it goes on from "
        "where it was"
    )


def _reason(error: BaseException | None) -> str:
    """In a few words. Messages of the HTTP library are pages of objects: only their kind."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"it answers {response.status_code}"
    kind = type(error).__name__
    if type(error).__module__.startswith(("requests", "urllib3", "httpx")):
        return kind
    return f"{kind}: {' '.join(str(error).split())[:SHOWN]}"
