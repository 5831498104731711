# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Every name that programs import from the package, and what importing it costs."""

import importlib
import inspect
import subprocess
import sys

import pytest
from support import ROOT

NAMES = {
    "oio.common.autocontainer": """
        ContainerBuilder HashedContainerBuilder AutocontainerBuilder RegexContainerBuilder NoMatchFound
    """,
    "oio.common.cache": """
        get_cached_container_metadata set_cached_container_metadata del_cached_container_metadata
        get_cached_object_metadata set_cached_object_metadata del_cached_object_metadata
    """,
    "oio.common.client": """
        ProxyClient
    """,
    "oio.common.configuration": """
        load_namespace_conf set_namespace_options read_conf parse_config parse_options validate_service_conf
        _config_paths NS_CONF_CACHE InvalidServiceConfigError NamespaceConfiguration
    """,
    "oio.common.daemon": """
        Daemon run_daemon
    """,
    "oio.common.decorators": """
        ensure_headers ensure_request_id ensure_request_id2 handle_account_not_found handle_container_not_found
        handle_object_not_found patch_kwargs
    """,
    "oio.common.easy_value": """
        int_value float_value true_value boolean_value convert_size is_hexa debinarize TRUE_VALUES FALSE_VALUES
        METRIC_SYMBOLS
    """,
    "oio.common.exceptions": """
        from_status from_response reraise
    """,
    "oio.common.fullpath": """
        encode_fullpath decode_fullpath encode_old_fullpath decode_old_fullpath
    """,
    "oio.common.green": """
        eventlet sleep patcher greenthread Queue Timeout GreenPile GreenPool thread threading socket Event
        HTTPConnection HTTPSConnection HTTPResponse _UNKNOWN Empty LifoQueue LightQueue Semaphore eventlet_hubs
        time datetime timedelta OioTimeout ConnectionTimeout SourceReadTimeout ChunkWriteTimeout
        ChunkReadTimeout eventlet_yield get_hub ContextPool ratelimit ratelimit_validate_policy
        ratelimit_function_curr_rate ratelimit_function_next_rate ratelimit_policy_from_string
        ratelimit_function_build patch
    """,
    "oio.common.http": """
        parse_content_type parse_content_range http_header_from_ranges ranges_from_http_header
        headers_from_object_metadata get_addr HeadersDict CustomHttpConnection
    """,
    "oio.common.http_eventlet": """
        CustomHTTPResponse CustomHttpConnection CustomHttpsConnection http_connect
    """,
    "oio.common.http_urllib3": """
        urllib3 DEFAULT_POOLSIZE DEFAULT_RETRIES DEFAULT_BACKOFF URLLIB3_REQUESTS_KWARGS
        URLLIB3_POOLMANAGER_KWARGS SafePoolManager get_pool_manager oio_exception_from_httperror
    """,
    "oio.common.json": """
        json
    """,
    "oio.common.logger": """
        get_logger redirect_stdio StreamToLogger
    """,
    "oio.common.redis_conn": """
        RedisConnection catch_service_errors catch_io_errors
    """,
    "oio.common.storage_functions": """
        _sort_chunks obj_range_to_meta_chunk_range get_meta_ranges wrand_choice_index _get_weighted_random_score
        _make_object_metadata fetch_stream fetch_stream_ec
    """,
    "oio.common.storage_method": """
        parse_chunk_method STORAGE_METHODS load_methods guess_storage_method EC_SEGMENT_SIZE ECDriverError
        ReplicatedStorageMethod ECStorageMethod BackblazeStorageMethod
    """,
    "oio.common.timestamp": """
        Timestamp
    """,
    "oio.common.tool": """
        Tool ToolWorker locate_tube
    """,
    "oio.common.utils": """
        cid_from_name compute_chunk_id request_id monotonic_time deadline_to_timeout timeout_to_deadline
        set_deadline_from_read_timeout depaginate fix_ranges GeneratorIO group_chunk_errors quote encode
        paths_gen statfs drop_privileges set_fd_non_blocking set_fd_close_on_exec lower_dict_keys CacheDict
        RingBuffer compute_perfdata_stats CPU_COUNT
    """,
    "oio.common.wsgi": """
        Application ServiceLogger WerkzeugApp init_request_processor
    """,
    "oio.common.xattr": """
        read_user_xattr set_fullpath_xattr xattr setxattr removexattr get_all
    """,
}

# Parameters by name: programs give some of them by position, others by keyword.
SIGNATURES = {
    "oio.common.autocontainer.AutocontainerBuilder": "offset size mask base con_format",
    "oio.common.autocontainer.HashedContainerBuilder": "offset size bits",
    "oio.common.autocontainer.RegexContainerBuilder": "patterns builder kwargs",
    "oio.common.configuration.load_namespace_conf": "namespace failsafe fresh",
    "oio.common.configuration.parse_config": "conf_path",
    "oio.common.configuration.parse_options": "parser",
    "oio.common.configuration.read_conf": "conf_path section_name defaults use_yaml",
    "oio.common.configuration.set_namespace_options": "namespace options remove",
    "oio.common.daemon.run_daemon": "klass conf_file section_name kwargs",
    "oio.common.easy_value.convert_size": "size unit",
    "oio.common.exceptions.StatusMessageException": "http_status status message",
    "oio.common.exceptions.UnfinishedUploadException": "exception chunks_already_uploaded",
    "oio.common.exceptions.from_response": "resp body",
    "oio.common.exceptions.from_status": "status reason",
    "oio.common.exceptions.reraise": "exc_type exc_value extra_message",
    "oio.common.fullpath.encode_fullpath": "account container path version content_id",
    "oio.common.http_eventlet.http_connect": "host method path headers query_string scheme",
    "oio.common.http_urllib3.oio_exception_from_httperror": "exc reqid url",
    "oio.common.logger.get_logger": "conf name verbose fmt",
    "oio.common.logger.StreamToLogger": "logger log_type",
    "oio.common.redis_conn.RedisConnection": "host sentinel_hosts sentinel_name kwargs",
    "oio.common.redis_conn.RedisConnection.acquire_lock_with_timeout": "self name acquire_timeout lock_timeout",
    "oio.common.redis_conn.RedisConnection.get_slave_conn": "self force_master",
    "oio.common.redis_conn.RedisConnection.release_lock": "self name identifier",
    "oio.common.storage_functions._sort_chunks": "raw_chunks ec_security logger",
    "oio.common.storage_functions.fetch_stream": "chunks ranges storage_method headers kwargs",
    "oio.common.tool.Tool": "conf beanstalkd_addr logger",
    "oio.common.tool.Tool.create_worker": "self queue_workers queue_reply",
    "oio.common.tool.ToolWorker": "tool queue_workers queue_reply",
    "oio.common.utils.GeneratorIO": "gen sub_generator iter_size",
    "oio.common.utils.compute_chunk_id": "cid path version position policy hash_algo",
    "oio.common.utils.deadline_to_timeout": "deadline check",
    "oio.common.utils.depaginate":
        "func item_key listing_key marker_key truncated_key attempts args kwargs",
    "oio.common.utils.set_deadline_from_read_timeout": "kwargs force",
    "oio.common.wsgi.Application": "app conf logger_class",
    "oio.common.wsgi.WerkzeugApp": "url_map logger",
    "oio.common.xattr.set_fullpath_xattr": "fd new_fullpaths remove_old_xattr xattr_to_remove",
}  # fmt: skip


def resolve(path):
    """What a dotted path names."""
    parts = path.split(".")
    found = importlib.import_module(".".join(parts[:3]))
    for part in parts[3:]:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("module", [module for module in NAMES if module != "oio.common.green"])
def test_each_name_can_be_imported(module):
    imported = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(imported, name)] == []


def test_each_green_name_can_be_imported():
    names = ", ".join(NAMES["oio.common.green"].split())
    code = f"from oio.common.green import {names}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("path", SIGNATURES)
def test_each_callable_takes_its_arguments(path):
    assert list(inspect.signature(resolve(path)).parameters) == SIGNATURES[path].split()


@pytest.mark.parametrize("module", [module for module in NAMES if module != "oio.common.green"])
def test_importing_loads_nothing_heavy(module):
    heavy = {"eventlet", "gevent", "redis", "urllib3", "pyeclib", "tqdm", "cliff"}
    code = f"import sys, {module}; assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
