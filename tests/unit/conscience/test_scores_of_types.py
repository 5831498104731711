# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of the service types, as the sample file and the local clusters configure them."""

from pathlib import Path

import pytest

from oio.conscience.expression import UndefinedValue
from oio.conscience.settings import load_services
from oio.sandbox.conscience_conf import types as sandbox_types

SAMPLE = Path(__file__).parents[3] / "etc" / "conscience-services.conf-sample"
VOLUMES = ("meta0", "meta1", "meta2", "rawx", "rdir")
IDLE = {"stat.cpu": 100, "stat.io": 100, "stat.space": 100, "stat.jobs_ready": 0}
#: What each type is told by the statistics that docs/conscience.md gives it.
TOLD = {
    **dict.fromkeys((*VOLUMES, "redis"), ("stat.cpu", "stat.io", "stat.space")),
    **dict.fromkeys(("account", "xcute", "oioproxy", "oioswift", "oiofs", "echo"), ("stat.cpu",)),
    "beanstalkd": ("stat.cpu", "stat.io", "stat.space", "stat.jobs_ready"),
}


@pytest.fixture(params=["sample", "sandbox"])
def kinds(request, tmp_path):
    path = SAMPLE
    if request.param == "sandbox":
        path = tmp_path / "types.conf"
        path.write_text(sandbox_types())
    return load_services([str(path)])[0]


def score(kind, **changes):
    tags = {name: value for name, value in IDLE.items() if name in TOLD[kind.name]}
    return kind.evaluate(tags | {name.replace("_", ".", 1): value for name, value in changes.items()})


def test_every_type_has_a_score_from_what_it_is_told(kinds):
    assert set(kinds) == set(TOLD)
    for kind in kinds.values():
        assert 99 <= score(kind) <= 102, kind.name
        assert score(kind, stat_cpu=50) < score(kind), kind.name


@pytest.mark.parametrize("name", [*VOLUMES, "beanstalkd"])
def test_a_full_volume_takes_no_more(kinds, name):
    assert score(kinds[name], stat_space=0) == 0
    assert score(kinds[name], stat_space=50) > 0


@pytest.mark.parametrize("name", ["account", "xcute", "oioproxy", "oioswift"])
def test_a_busy_host_still_serves(kinds, name):
    assert score(kinds[name], stat_cpu=0) == 1


def test_a_long_queue_lowers_the_score(kinds):
    kind = kinds["beanstalkd"]
    scores = [score(kind, stat_jobs_ready=ready) for ready in (0, 1000, 100_000, 999_999)]
    assert scores == sorted(scores, reverse=True) and scores[-1] < 25
    assert not score(kind, stat_jobs_ready=1_000_000) > 0
    with pytest.raises(UndefinedValue):
        kind.evaluate({"stat.cpu": 1, "stat.space": 1})


def test_who_serves_without_being_unlocked(kinds):
    at_once = {name for name, kind in kinds.items() if not kind.lock_at_first_register}
    assert at_once == {"meta0", "meta1", "oiofs", "oioproxy", "oioswift", "beanstalkd"}
