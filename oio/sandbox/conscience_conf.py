# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Policies, pools and service types of a local cluster: what its conscience reads."""

from __future__ import annotations

from functools import cache

from oio.sandbox.layout import Layout

#: Types of the cluster, and those that tools know: their score needs room on the volume, then follows the
#: idle time of CPU and disk. Idle time alone never takes a service out: on a small machine that runs at
#: full speed all of them would be taken out at once.
_VOLUME_SCORE = (
    "((num stat.space)>1) * (root(3, ((1 + (num stat.cpu)) * ((num stat.space) * (1 + (num stat.io))))))"
)
_CPU_SCORE = "(1 + (num stat.cpu))"
_QUEUE_SCORE = (
    "root(3, ((1 + (num stat.cpu)) * ((num stat.space) * (100 - root(3, (num stat.jobs_ready))))))"
)
_EXPRESSIONS = {
    "meta0": _VOLUME_SCORE,
    "meta1": _VOLUME_SCORE,
    "meta2": _VOLUME_SCORE,
    "rawx": _VOLUME_SCORE,
    "rdir": _VOLUME_SCORE,
    # Nobody draws a Redis by its score: it may be 0 while the machine runs at full speed.
    "redis": "(num stat.cpu)",
    # No service here is of these types: they are for those who register their own, and expect what they say.
    "echo": "(num stat.cpu)",
    "oiofs": "(num stat.cpu)",
    "account": _CPU_SCORE,
    "xcute": _CPU_SCORE,
    "oioproxy": _CPU_SCORE,
    "oioswift": _CPU_SCORE,
    "beanstalkd": _QUEUE_SCORE,
}
_UNLOCKED = frozenset({"meta0", "meta1", "oiofs", "oioproxy", "oioswift", "beanstalkd"})
_TIMEOUT_S = {"meta0": 3600, "echo": 30}
_TIMEOUT_DEFAULT_S = 120
#: A local cluster is wanted at once: scores may climb to their value in one registration.
_VARIATION_BOUND = 100

_SECURITIES = {
    "DUPONETWO": "plain/min_dist=1,nb_copy=2",
    "DUPONETHREE": "plain/min_dist=1,nb_copy=3",
    "DUP17": "plain/min_dist=1,nb_copy=17",
    "EC": "ec/k=6,m=3,algo={algo},min_dist=1",
    "EC21": "ec/k=2,m=1,algo={algo},min_dist=1",
    "ECX21": "ec/k=2,m=1,algo={algo},min_dist=0",
}
_POLICIES = {
    "SINGLE": "NONE:NONE",
    "TWOCOPIES": "rawx2:DUPONETWO",
    "THREECOPIES": "rawx3:DUPONETHREE",
    "17COPIES": "rawx17:DUP17",
    "EC": "NONE:EC",
    "EC21": "NONE:EC21",
    "ECX21": "NONE:ECX21",
}


@cache
def ec_algorithm() -> str:
    """Erasure code of the policies: the fastest that is installed among the safe ones."""
    from pyeclib.ec_iface import VALID_EC_TYPES

    return "isa_l_rs_cauchy" if "isa_l_rs_cauchy" in VALID_EC_TYPES else "liberasurecode_rs_vand"


def policies(layout: Layout) -> str:
    """File of the storage policies."""
    lines = ["[STORAGE_POLICY]"]
    lines += [f"{name}={value}" for name, value in _POLICIES.items()]
    lines += ["", "[DATA_SECURITY]"]
    algo = ec_algorithm()
    warn = len(set(layout.options.hosts)) > 1
    for name, value in _SECURITIES.items():
        lines.append(f"{name}={value.format(algo=algo)}{',warn_dist=1' if warn else ''}")
    return "\n".join(lines) + "\n"


def pools(layout: Layout) -> str:
    """File of the pools."""
    options = layout.options
    warn = {"warn_dist": "1" if len(set(options.hosts)) > 1 else "0"}
    described: dict[str, dict[str, str]] = {
        "meta1": {"targets": f"{options.directory_replicas},meta1"},
        "meta2": {"targets": f"{options.container_replicas},meta2"},
        "account": {"targets": "1,account"},
        "fastrawx3": {"targets": "3,rawx-ssd,rawx", **warn},
        "rawxevenodd": {"targets": "1,rawx-even;1,rawx-odd", **warn},
        "rawx2": {"targets": "1,rawx-even,rawx;1,rawx-odd,rawx", **warn},
        "rawx3": {
            "targets": "1,rawx-even,rawx;1,rawx-odd,rawx;1,rawx",
            "max_dist": "2",
            **warn,
        },
        "rawx17": {"targets": "17,rawx", **warn},
        "zonedrawx3": {
            "targets": "1,rawx-europe,rawx;1,rawx-usa,rawx;1,rawx-asia,rawx",
            **warn,
        },
        "rawx3nearby": {"targets": "3,rawx", "nearby_mode": "true", "warn_dist": "0"},
        "rawx3faraway": {"targets": "3,rawx", "min_dist": "2", "warn_dist": "2"},
    }
    return _ini({f"pool:{name}": keys for name, keys in described.items()})


def types() -> str:
    """File of the service types."""
    return _ini(
        {
            f"type:{name}": {
                "score_expr": expression,
                "score_timeout": str(_TIMEOUT_S.get(name, _TIMEOUT_DEFAULT_S)),
                "score_variation_bound": str(_VARIATION_BOUND),
                "lock_at_first_register": "false" if name in _UNLOCKED else "true",
            }
            for name, expression in _EXPRESSIONS.items()
        }
    )


def _ini(sections: dict[str, dict[str, str]]) -> str:
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in keys.items()), ""])
        for name, keys in sections.items()
    )
