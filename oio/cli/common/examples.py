# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Examples of the commands, for their help and for the reference.

They are a story that runs from top to bottom, and a test runs it. It begins with an account, the file ``cat.jpg``
and the directory ``Pictures``. ``NOT_RUN`` lists what a cluster in use does not survive, or what needs several
copies.
"""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "account create": ("openio account create my_account", "openio account create old_account"),
    "account set": ("openio account set my_account -p owner=alice",),
    "account show": ("openio account show my_account", "openio account show my_account -f json -c bytes"),
    "account unset": ("openio account unset my_account -p owner",),
    "account list": ("openio account list", "openio account list --stats -f json"),
    "account flush": ("openio account flush old_account",),
    "account delete": ("openio account delete old_account",),
    "container create": (
        "openio container create photos",
        "openio container create archive --storage-policy EC --quota 1000000000",
        "openio container create holiday --bucket-name albums",
    ),
    "object create": (
        "openio object create photos cat.jpg",
        "openio object create photos cat.jpg --name 2026/cat.jpg --policy SINGLE --property colour=black",
        "openio object create archive Pictures --recursive --resume",
    ),
    "object list": (
        "openio object list photos",
        "openio object list photos --prefix 2026/ -f json",
        "openio object list photos --no-paging",
    ),
    "object show": ("openio object show photos cat.jpg",),
    "object locate": ("openio object locate photos cat.jpg --chunk-info",),
    "object save": (
        "openio object save photos cat.jpg --file copy.jpg",
        "openio object save archive --recursive --file restored",
    ),
    "object set": ("openio object set photos cat.jpg --property colour=black",),
    "object unset": ("openio object unset photos cat.jpg --property colour",),
    "object touch": ("openio object touch photos cat.jpg",),
    "object link": ("openio object link photos cat.jpg same-cat.jpg",),
    "object drain": ("openio object drain photos same-cat.jpg",),
    "object purge": ("openio object purge photos cat.jpg --max-versions 1",),
    "object delete": ("openio object delete photos same-cat.jpg 2026/cat.jpg",),
    "container show": ("openio container show photos", "openio container show photos -f shell"),
    "container list": ("openio container list", "openio container list --prefix ph -f value -c Name"),
    "container locate": ("openio container locate photos",),
    "container set": ("openio container set photos --max-versions 3 --property season=summer",),
    "container unset": ("openio container unset photos --property season",),
    "container touch": ("openio container touch photos --recompute",),
    "container refresh": ("openio container refresh photos",),
    "container save": ("openio container save photos",),
    "container snapshot": ("openio container snapshot photos --dst-container photos-of-monday",),
    "container purge": ("openio container purge photos",),
    "container flush": ("openio container flush archive",),
    "container delete": ("openio container delete archive",),
    "bucket show": ("openio bucket show albums",),
    "bucket list": ("openio bucket list", "openio bucket list --prefix alb"),
    "bucket set": ("openio bucket set albums --replicate true",),
    "bucket refresh": ("openio bucket refresh albums",),
    "account refresh": ("openio account refresh my_account",),
    "cluster show": ("openio cluster show", "openio cluster show -f value -c storage_policy"),
    "cluster list": ("openio cluster list", "openio cluster list rawx --stats"),
    "cluster wait": ("openio cluster wait rawx --score 1 --delay 60",),
    "cluster top": ("openio cluster top", "openio cluster top rawx meta2", "openio cluster top -f json"),
    "cluster lock": ("openio cluster lock rawx OPENIO-rawx-1 --score 0",),
    "cluster unlock": ("openio cluster unlock rawx OPENIO-rawx-1",),
    "cluster unlockall": ("openio cluster unlockall rawx",),
    "cluster resolve": ("openio cluster resolve rawx OPENIO-rawx-1",),
    "cluster local list": ("openio cluster local list rawx",),
    "cluster local conf": ("openio cluster local conf",),
    "cluster deregister": ("openio cluster deregister rawx OPENIO-rawx-1",),
    "cluster flush": ("openio cluster flush rawx",),
    "events tubes": ("openio events tubes",),
    "events stats": ("openio events stats", "openio events stats --tube oio -f json"),
    "events exhume": ("openio events exhume --limit 100",),
    "volume show": ("openio volume show OPENIO-rawx-1",),
    "volume assignation": ("openio volume assignation --aggregated",),
    "volume admin show": ("openio volume admin show OPENIO-rawx-1",),
    "volume admin lock": ("openio volume admin lock OPENIO-rawx-1 --key maintenance",),
    "volume admin unlock": ("openio volume admin unlock OPENIO-rawx-1",),
    "volume admin incident": ("openio volume admin incident OPENIO-rawx-1",),
    "volume admin clear": ("openio volume admin clear OPENIO-rawx-1",),
    "volume admin bootstrap": ("openio volume admin bootstrap",),
    "rdir assignments": ("openio rdir assignments rawx", "openio rdir assignments meta2 --aggregated"),
    "rdir bootstrap": ("openio rdir bootstrap rawx --dry-run",),
    "reference create": ("openio reference create letters",),
    "reference show": ("openio reference show letters",),
    "reference set": ("openio reference set letters --property kind=paper",),
    "reference unset": ("openio reference unset letters --property kind",),
    "reference link": ("openio reference link letters meta2",),
    "reference list": ("openio reference list letters",),
    "reference locate": ("openio reference locate letters",),
    "reference poll": ("openio reference poll letters meta2",),
    "reference unlink": ("openio reference unlink letters meta2",),
    "reference force": ("openio reference force letters 10.0.0.1:6120 rdir --replace",),
    "reference delete": ("openio reference delete letters",),
    "directory check": ("openio directory check --replicas 1",),
    "directory dump": ("openio directory dump",),
    "directory bootstrap": ("openio directory bootstrap --replicas 3", "openio directory bootstrap --check"),
    "directory rebalance": ("openio directory rebalance",),
    "directory decommission": ("openio directory decommission 10.0.0.1:6110",),
    "directory restore": ("openio directory restore backup.json",),
    "directory warmup": ("openio directory warmup --concurrency 4",),
    "election status": ("openio election status meta2 photos",),
    "election ping": ("openio election ping meta2 photos",),
    "election debug": ("openio election debug meta2 photos --human",),
    "election sync": ("openio election sync meta2 photos --check-type 1",),
    "election leave": ("openio election leave meta2 photos --service-id OPENIO-meta2-1",),
    "zk bootstrap": ("openio zk bootstrap --lazy",),
    "zk stat": ("openio zk stat meta2",),
    "zk reset": ("openio zk reset meta2 --smart --dry-run",),
    "zk smudge": ("openio zk smudge meta2",),
    "zk armageddon": ("openio zk armageddon --fuck-the-world",),
    "complete": ("openio complete --shell zsh",),
}

NOT_RUN = frozenset((
    "cluster deregister", "cluster flush",
    "directory bootstrap", "directory rebalance", "directory decommission", "directory restore",
    "volume admin incident", "volume admin clear",
    "reference link", "reference unlink", "reference force", "reference poll",
    "election status", "election ping", "election debug", "election sync", "election leave",
    "zk bootstrap", "zk stat", "zk reset", "zk smudge", "zk armageddon",
))  # fmt: skip


def examples_of(name: str) -> tuple[str, ...]:
    """Examples of a command, whose words may be shortened.

    >>> examples_of("cont show")
    ('openio container show photos', 'openio container show photos -f shell')
    """
    if name in EXAMPLES:
        return EXAMPLES[name]
    words = name.split()
    fitting = [key for key in EXAMPLES if _fits(words, key.split())]
    return EXAMPLES[fitting[0]] if len(fitting) == 1 else ()


def _fits(words: list[str], whole: list[str]) -> bool:
    return len(words) == len(whole) and all(map(str.startswith, whole, words))


def epilog_of(name: str) -> str:
    """What follows the help of a command."""
    lines = "".join(f"  {line}\n" for line in examples_of(name))
    return f"examples:\n{lines}" if lines else ""
