from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner import ci
from provisioner.ci import CiSystem
from provisioner.settings import LEASE_ID

GITHUB = {
    "CI": "true",
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.example.org",
    "GITHUB_REPOSITORY_ID": "1234",
    "GITHUB_RUN_ID": "77",
    "GITHUB_RUN_ATTEMPT": "1",
    "GITHUB_JOB": "train",
    "GITHUB_ACTION": "__run",
    "RUNNER_NAME": "runner 1",
}
GITLAB = {
    "CI": "true",
    "GITLAB_CI": "true",
    "CI_SERVER_HOST": "gitlab.example.org",
    "CI_PROJECT_ID": "5",
    "CI_PIPELINE_ID": "9",
    "CI_JOB_ID": "31",
    "CI_JOB_NAME": "train",
}
BITBUCKET = {
    "CI": "true",
    "BITBUCKET_BUILD_NUMBER": "3",
    "BITBUCKET_REPO_UUID": "{ab-12}",
    "BITBUCKET_STEP_UUID": "{cd}",
}


@pytest.mark.parametrize(
    ("environ", "system"),
    [
        (GITHUB, CiSystem.GITHUB),
        (GITLAB, CiSystem.GITLAB),
        (BITBUCKET, CiSystem.BITBUCKET),
        ({"CI": "1"}, CiSystem.OTHER),
        ({"JENKINS_URL": "http://127.0.0.1"}, CiSystem.OTHER),
        ({"CI": "false"}, CiSystem.NONE),
        ({}, CiSystem.NONE),
    ],
)
def test_the_ci_system_is_found(environ: dict[str, str], system: CiSystem) -> None:
    assert ci.detect(environ) is system


def test_only_a_hosted_github_job_is_hosted() -> None:
    assert ci.is_hosted(GITHUB | {"RUNNER_ENVIRONMENT": "github-hosted"})
    assert not ci.is_hosted(GITHUB | {"RUNNER_ENVIRONMENT": "self-hosted"})
    assert not ci.is_hosted(GITHUB)
    assert not ci.is_hosted({"RUNNER_ENVIRONMENT": "github-hosted"})


def test_identity_in_github() -> None:
    who = ci.identify(GITHUB)
    assert LEASE_ID.fullmatch(who.lease_id)
    assert who.owner == "github:github.example.org/1234"
    assert who.run == "github.example.org/1234/77"
    assert ci.identify(GITHUB) == who


@pytest.mark.parametrize(
    "change",
    [
        {"GITHUB_SERVER_URL": "https://github.com"},
        {"GITHUB_REPOSITORY_ID": "1235"},
        {"GITHUB_RUN_ID": "78"},
        {"GITHUB_RUN_ATTEMPT": "2"},
        {"GITHUB_JOB": "test"},
        {"GITHUB_ACTION": "__run_2"},
        {"GPU_RUNNER_STEP": "second"},
        {"GPU_RUNNER_JOB_INDEX": "1"},
        {"RUNNER_NAME": "runner 2"},
    ],
)
def test_whatever_tells_two_jobs_apart_tells_their_leases_apart(change: dict[str, str]) -> None:
    assert ci.identify(GITHUB | change).lease_id != ci.identify(GITHUB).lease_id


def test_the_run_is_the_same_over_all_attempts_and_a_renamed_repository_stays_the_owner() -> None:
    first, again = ci.identify(GITHUB), ci.identify(GITHUB | {"GITHUB_RUN_ATTEMPT": "2", "GITHUB_REPOSITORY": "a/new"})
    assert (first.run, first.owner) == (again.run, again.owner)


def test_a_job_index_that_is_given_outranks_the_runner_name() -> None:
    cell = GITHUB | {"GPU_RUNNER_JOB_INDEX": "0"}
    assert ci.identify(cell) == ci.identify(cell | {"RUNNER_NAME": "another"})


def test_identity_in_gitlab_and_bitbucket() -> None:
    lab, bucket = ci.identify(GITLAB), ci.identify(BITBUCKET)
    assert (lab.owner, lab.run) == ("gitlab:gitlab.example.org/5", "gitlab.example.org/5/9")
    assert (bucket.owner, bucket.run) == ("bitbucket:bitbucket.org/ab-12", "bitbucket.org/ab-12/3")
    assert ci.identify(GITLAB | {"CI_JOB_ID": "32"}).lease_id != lab.lease_id
    assert ci.identify(GITLAB | {"CI_JOB_ID": "32"}).run == lab.run
    assert LEASE_ID.fullmatch(lab.lease_id)
    assert LEASE_ID.fullmatch(bucket.lease_id)


@pytest.mark.parametrize("environ", [{}, {"CI": "true"}, {"GITHUB_ACTIONS": "true"}, {"GITLAB_CI": "true"}])
def test_without_a_ci_job_that_names_itself_the_lease_is_random_and_the_owner_a_user(environ: dict[str, str]) -> None:
    first = ci.identify(environ, uid=7, machine_id="0123")
    second = ci.identify(environ, uid=7, machine_id="0123")
    assert first.lease_id != second.lease_id
    assert LEASE_ID.fullmatch(first.lease_id)
    assert first.owner == second.owner
    assert first.owner.startswith("user:7@")
    assert "0123" not in first.owner
    assert first.run == ""
    assert ci.identify(environ, uid=7, machine_id="4567").owner != first.owner


def test_the_real_machine_has_an_owner() -> None:
    assert ci.identify({}).owner == ci.identify({}).owner


@given(st.dictionaries(st.sampled_from([*GITHUB, *GITLAB, *BITBUCKET, "GPU_RUNNER_STEP"]), st.text()))
def test_any_environment_gives_a_valid_lease_id(environ: dict[str, str]) -> None:
    assert LEASE_ID.fullmatch(ci.identify(environ, uid=1, machine_id="m").lease_id)


def test_log_groups() -> None:
    def start(system: CiSystem, title: str = "Boot") -> str:
        return ci.group_start(system, title, key="a b", at_unix_s=5)

    assert start(CiSystem.GITHUB) == "::group::Boot"
    assert start(CiSystem.GITHUB, "50%\n::error::x") == "::group::50%25 ::error::x"
    assert start(CiSystem.GITLAB) == "\x1b[0Ksection_start:5:a_b\r\x1b[0KBoot"
    assert start(CiSystem.NONE) == "== Boot"
    assert ci.group_end(CiSystem.GITHUB, key="a b", at_unix_s=6) == "::endgroup::"
    assert ci.group_end(CiSystem.GITLAB, key="a b", at_unix_s=6) == "\x1b[0Ksection_end:6:a_b\r\x1b[0K"
    assert ci.group_end(CiSystem.OTHER, key="a b", at_unix_s=6) == ""
