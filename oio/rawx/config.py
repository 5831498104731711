# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration file of a rawx: ``KEY VALUE`` lines, historical aliases included.

>>> parse("listen 127.0.0.1:6201\\nnamespace NS\\ndocroot /srv/rawx-1").fsync
True

Unknown keys are ignored, the last occurrence of a key wins, a missing mandatory key or an
invalid number is a :class:`ConfigurationException`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from oio.common.exceptions import ConfigurationException
from oio.common.service import parse_address

TRUE_WORDS = frozenset({"ok", "yes", "true", "enable", "enabled", "yeah", "on", "1"})
FALSE_WORDS = frozenset({"ko", "no", "false", "disable", "disabled", "nope", "off", "0"})
BUFFER_KIB_MIN, BUFFER_KIB_MAX, BUFFER_KIB_DEFAULT = 32, 8192, 2048
# About 1.3 million events.
JOURNAL_MIB_DEFAULT = 1024
HASH_DIGITS_MAX = 24  # directory levels are made of the digits that every chunk id has

_ALIASES = {
    "Listen": "listen",
    "grid_namespace": "namespace",
    "grid_docroot": "docroot",
    "grid_service_id": "service_id",
    "grid_hash_width": "hash_width",
    "grid_hash_depth": "hash_depth",
    "grid_fsync": "fsync",
    "grid_fsync_dir": "fsync_dir",
    "grid_fallocate": "fallocate",
    "grid_compression": "compression",
    "grid_compress": "compression",
    "compress": "compression",
    "grid_checksum": "checksum",
    "grid_buffer_size": "buffer_size",
    "grid_fadvise_upload": "fadvise_upload",
    "grid_fadvise_download": "fadvise_download",
    "tcp_keepalive": "http_keepalive",
}
DEPRECATED_KEYS = frozenset({"tcp_keepalive"})
# Old keys, and why they change nothing here.
KEYS_WITHOUT_EFFECT = {
    "checksum": "uploads are always verified",
    "sock_tcp_cork": "heads always leave with the first bytes of their body",
    "sock_tcp_nodelay": "it is always on",
}


@dataclass(frozen=True, slots=True)
class RawxConfig:
    """Everything that the configuration file decides. Sizes in bytes, times in seconds."""

    listen: str
    namespace: str
    docroot: str
    service_id: str = ""
    syslog_id: str = ""
    hash_width: int = 3
    hash_depth: int = 1
    fsync: bool = True
    fsync_dir: bool = True
    prepare_directories: bool = True
    fallocate: bool = False
    compression: str = ""
    buffer_size: int = BUFFER_KIB_DEFAULT * 1024
    fadvise_upload: str = ""
    fadvise_download: str = ""
    open_nonblock: bool = False
    http_keepalive: bool = True
    timeout_read_header_s: int = 60
    timeout_read_request_s: int = 900
    timeout_write_reply_s: int = 900
    timeout_idle_s: int = 3600
    headers_buffer_size: int = 65536
    events: bool = True
    event_queue: str = ""
    events_journal: str = ""
    events_journal_size: int = JOURNAL_MIB_DEFAULT << 20
    tls_rawx_url: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    log_access_get: bool = True
    log_access_put: bool = True
    log_access_delete: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def volume_id(self) -> str:
        """What identifies the volume: the service id, else the address."""
        return self.service_id or self.listen


def boolean(text: str | None, default: bool) -> bool:
    """Value of a boolean word of any case; anything unknown is the default."""
    if text is None:
        return default
    word = text.lower()
    if word in TRUE_WORDS:
        return True
    return False if word in FALSE_WORDS else default


def integer(key: str, text: str | None, default: int) -> int:
    """Value of a decimal, ``0x`` or octal (``0`` or ``0o``) number."""
    if text is None:
        return default
    digits = text.lstrip("+-")
    try:
        if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
            return int(text, 8)
        return int(text, 0)
    except ValueError:
        raise ConfigurationException(f"{key}: {text!r} is not an integer") from None


def split_address(key: str, address: str) -> tuple[str, int]:
    """Host and port of ``ip:port``; the port must be above 0."""
    try:
        return parse_address(address, port_min=1)
    except ValueError as err:
        raise ConfigurationException(f"{key}: {err}") from None


def load(path: str) -> RawxConfig:
    """Read and check a configuration file."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigurationException(f"cannot read {path}: {err}") from err
    return parse(text)


def _value(text: str) -> str:
    """The first word, or what stands between double quotes when it begins with one."""
    end = text.rfind('"')
    return text[1:end] if text[0] == '"' and end else text.split()[0]


def parse(text: str) -> RawxConfig:
    """Parse and check the text of a configuration file; the volume must exist when it is used."""
    options: dict[str, str] = {}
    warnings: list[str] = []
    for line in text.splitlines():
        key, *rest = line.split(maxsplit=1) or [""]
        if not rest:
            continue
        if key in DEPRECATED_KEYS:
            warnings.append(f"the key {key} is deprecated, use {_ALIASES[key]}")
        options[_ALIASES.get(key, key)] = _value(rest[0])
    for key in ("listen", "namespace", "docroot"):
        if not options.get(key):
            raise ConfigurationException(f"missing key: {key}")
    if not os.path.isabs(options["docroot"]):
        raise ConfigurationException(f"docroot: {options['docroot']!r} is not an absolute path")
    split_address("listen", options["listen"])
    if "tls_rawx_url" in options:
        split_address("tls_rawx_url", options["tls_rawx_url"])
        for key in ("tls_cert_file", "tls_key_file"):
            if key not in options:
                raise ConfigurationException(f"missing key: {key} (tls_rawx_url is set)")
    warnings += [
        f"the key {key} has no effect: {reason}"
        for key, reason in KEYS_WITHOUT_EFFECT.items()
        if key in options
    ]
    return _build(options, tuple(warnings))


def _build(options: dict[str, str], warnings: tuple[str, ...]) -> RawxConfig:
    def flag(key: str, default: bool) -> bool:
        return boolean(options.get(key), default)

    def number(key: str, default: int, low: int, high: int = 1 << 31) -> int:
        value = integer(key, options.get(key), default)
        if not low <= value <= high:
            raise ConfigurationException(f"{key}: {value} is not in {low}..{high}")
        return value

    width = number("hash_width", 3, 0, HASH_DIGITS_MAX)
    depth = number("hash_depth", 1, 0, HASH_DIGITS_MAX)
    if width * depth > HASH_DIGITS_MAX:
        raise ConfigurationException(
            f"hash_width × hash_depth: {width} × {depth} digits, at most {HASH_DIGITS_MAX}"
        )
    buffer_kib = integer("buffer_size", options.get("buffer_size"), BUFFER_KIB_DEFAULT)
    return RawxConfig(
        listen=options["listen"],
        namespace=options["namespace"],
        docroot=os.path.normpath(options["docroot"]),
        service_id=options.get("service_id", ""),
        syslog_id=options.get("syslog_id", ""),
        hash_width=width,
        hash_depth=depth if width else 0,
        fsync=flag("fsync", True),
        fsync_dir=flag("fsync_dir", True),
        prepare_directories=flag("prepare_directories", True),
        fallocate=flag("fallocate", False),
        compression=options.get("compression", ""),
        buffer_size=min(max(buffer_kib, BUFFER_KIB_MIN), BUFFER_KIB_MAX) * 1024,
        fadvise_upload=_advice("fadvise_upload", options.get("fadvise_upload")),
        fadvise_download=_advice("fadvise_download", options.get("fadvise_download")),
        open_nonblock=flag("open_nonblock", False),
        http_keepalive=flag("http_keepalive", True),
        timeout_read_header_s=number("timeout_read_header", 60, 1),
        timeout_read_request_s=number("timeout_read_request", 900, 1),
        timeout_write_reply_s=number("timeout_write_reply", 900, 1),
        timeout_idle_s=number("timeout_idle", 3600, 1),
        headers_buffer_size=number("headers_buffer_size", 65536, 1024),
        events=flag("events", True),
        event_queue=options.get("event_queue", ""),
        events_journal=options.get("events_journal", ""),
        events_journal_size=number("events_journal_size", JOURNAL_MIB_DEFAULT, 32) << 20,
        tls_rawx_url=options.get("tls_rawx_url", ""),
        tls_cert_file=options.get("tls_cert_file", ""),
        tls_key_file=options.get("tls_key_file", ""),
        log_access_get=flag("log_access_get", True),
        log_access_put=flag("log_access_put", True),
        log_access_delete=flag("log_access_delete", True),
        warnings=warnings,
    )


def _advice(key: str, text: str | None) -> str:
    """``cache``, ``nocache`` or nothing; a true boolean means ``cache``."""
    if text is None:
        return ""
    word = text.lower()
    if word in ("cache", "nocache"):
        return word
    return "cache" if boolean(word, False) else ""
