"""Which CI system this is, who we are in it, and how it folds a log. Pure functions over an environment."""

from __future__ import annotations

import base64
import enum
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_ID_BYTES = 6  # 48 bits: 10 characters of base32
_OFF = frozenset({"", "0", "false", "no"})
_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


class CiSystem(str, enum.Enum):
    """Where we run."""

    GITHUB = "github"
    GITLAB = "gitlab"
    BITBUCKET = "bitbucket"
    OTHER = "other"
    NONE = "none"

    __str__ = str.__str__


@dataclass(frozen=True)
class Identity:
    """Who asks for a lease.

    Attributes:
        lease_id: The same for the same step of the same try of a CI job; random outside CI.
        owner: Who may suspect its machine of being an orphan; never a name that can change.
        run: Repository and run, without the try; empty outside CI.
    """

    lease_id: str
    owner: str
    run: str = ""


def detect(environ: Mapping[str, str]) -> CiSystem:
    """Find out which CI system started us.

    Args:
        environ: The environment.

    Returns:
        The system; OTHER for one that only sets ``CI`` (or is Jenkins), NONE for no CI at all.
    """
    if environ.get("GITHUB_ACTIONS") == "true":
        return CiSystem.GITHUB
    if _on(environ, "GITLAB_CI"):
        return CiSystem.GITLAB
    if environ.get("BITBUCKET_BUILD_NUMBER"):
        return CiSystem.BITBUCKET
    return CiSystem.OTHER if _on(environ, "CI") or environ.get("JENKINS_URL") else CiSystem.NONE


def is_hosted(environ: Mapping[str, str]) -> bool:
    """Whether this is a job on a machine of GitHub's own, which ends after six hours.

    Args:
        environ: The environment.

    Returns:
        True only when it is certain.
    """
    return detect(environ) is CiSystem.GITHUB and environ.get("RUNNER_ENVIRONMENT") == "github-hosted"


def group_start(system: CiSystem, title: str, *, key: str, at_unix_s: int) -> str:
    """The line that opens a foldable part of the log.

    Args:
        system: Whose log it is.
        title: What people read, one line.
        key: Names the part; the same in ``group_end``.
        at_unix_s: Now, for the systems that show how long a part took.

    Returns:
        One line without its newline; a plain heading where nothing folds.
    """
    line = " ".join(title.split())
    if system is CiSystem.GITHUB:
        return f"::group::{line.replace('%', '%25')}"
    if system is CiSystem.GITLAB:
        return f"\x1b[0Ksection_start:{at_unix_s}:{_section(key)}\r\x1b[0K{line}"
    return f"== {line}"


def group_end(system: CiSystem, *, key: str, at_unix_s: int) -> str:
    """The line that closes a foldable part of the log.

    Args:
        system: Whose log it is.
        key: As in ``group_start``.
        at_unix_s: Now.

    Returns:
        One line without its newline; empty where nothing folds (print nothing then).
    """
    if system is CiSystem.GITHUB:
        return "::endgroup::"
    if system is CiSystem.GITLAB:
        return f"\x1b[0Ksection_end:{at_unix_s}:{_section(key)}\r\x1b[0K"
    return ""


def warning_line(text: str) -> str:
    """The line that shows a warning on the page of a GitHub run, whatever stands in it.

    Args:
        text: What people read.

    Returns:
        One line without its newline.
    """
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::warning::{escaped}"


def identify(environ: Mapping[str, str], *, uid: int | None = None, machine_id: str | None = None) -> Identity:
    """Who we are.

    Cells of a GitHub matrix share everything that GitHub says of a job. A wrapper tells them apart with
    GPU_RUNNER_JOB_INDEX, and several leases of one job with GPU_RUNNER_STEP; without the first the runner's name
    stands in, since two cells never share a runner at the same time.

    Args:
        environ: The environment.
        uid: Numeric user id; None for this process's.
        machine_id: The machine's own id; None to read it.

    Returns:
        Lease id, owner and run. A CI job that does not say who it is counts as no CI.
    """
    system = detect(environ)
    if system is CiSystem.GITHUB and _has(environ, "GITHUB_REPOSITORY_ID", "GITHUB_RUN_ID"):
        return _github(environ)
    if system is CiSystem.GITLAB and _has(environ, "CI_PROJECT_ID", "CI_PIPELINE_ID", "CI_JOB_ID"):
        return _gitlab(environ)
    if system is CiSystem.BITBUCKET and _has(environ, "BITBUCKET_REPO_UUID"):
        return _bitbucket(environ)
    return Identity(random_lease_id(), _person(uid, machine_id))


def random_lease_id() -> str:
    """A new lease id that nobody else has."""
    return "gr-" + _base32(secrets.token_bytes(_ID_BYTES))


def _github(environ: Mapping[str, str]) -> Identity:
    host = urlsplit(environ.get("GITHUB_SERVER_URL", "")).hostname or "github.com"
    repository, run = environ["GITHUB_REPOSITORY_ID"], environ["GITHUB_RUN_ID"]
    parts = (
        host,
        repository,
        run,
        environ.get("GITHUB_RUN_ATTEMPT", "1"),
        environ.get("GITHUB_JOB", ""),
        environ.get("GPU_RUNNER_JOB_INDEX") or environ.get("RUNNER_NAME", ""),
        environ.get("GPU_RUNNER_STEP") or environ.get("GITHUB_ACTION", ""),
    )
    return Identity(_lease_id(parts), f"github:{host}/{repository}", f"{host}/{repository}/{run}")


def _gitlab(environ: Mapping[str, str]) -> Identity:
    host = environ.get("CI_SERVER_HOST") or "gitlab.com"
    project, pipeline = environ["CI_PROJECT_ID"], environ["CI_PIPELINE_ID"]
    parts = (
        host,
        project,
        pipeline,
        environ["CI_JOB_ID"],  # a retried job and each cell of a matrix have one of their own
        environ.get("CI_JOB_NAME", ""),
        environ.get("GPU_RUNNER_JOB_INDEX") or environ.get("CI_NODE_INDEX", ""),
        environ.get("GPU_RUNNER_STEP", ""),
    )
    return Identity(_lease_id(parts), f"gitlab:{host}/{project}", f"{host}/{project}/{pipeline}")


def _bitbucket(environ: Mapping[str, str]) -> Identity:
    host = "bitbucket.org"
    repository = environ["BITBUCKET_REPO_UUID"].strip("{}")
    run = environ["BITBUCKET_BUILD_NUMBER"]
    parts = (
        host,
        repository,
        run,
        environ.get("BITBUCKET_STEP_RUN_NUMBER", "1"),
        environ.get("BITBUCKET_STEP_UUID", ""),
        environ.get("GPU_RUNNER_JOB_INDEX") or environ.get("BITBUCKET_PARALLEL_STEP", ""),
        environ.get("GPU_RUNNER_STEP", ""),
    )
    return Identity(_lease_id(parts), f"bitbucket:{host}/{repository}", f"{host}/{repository}/{run}")


def _person(uid: int | None, machine_id: str | None) -> str:
    machine = _read_machine_id() if machine_id is None else machine_id
    # Hashed: a machine id is not to leave the machine as it is (machine-id(5)).
    digest = hashlib.sha256(b"gpu-runner owner\0" + machine.encode()).digest()
    return f"user:{os.getuid() if uid is None else uid}@{_base32(digest[:_ID_BYTES])}"


def _read_machine_id() -> str:
    for path in _MACHINE_ID_FILES:
        if path.is_file():
            return path.read_text(encoding="ascii", errors="replace").strip()
    return os.uname().nodename


def _lease_id(parts: tuple[str, ...]) -> str:
    return "gr-" + _base32(hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).digest()[:_ID_BYTES])


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _section(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", key)


def _on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() not in _OFF


def _has(environ: Mapping[str, str], *names: str) -> bool:
    return all(environ.get(name) for name in names)
