# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What wraps the methods of the API: default keywords, request ids, and the names of "not found".

``api_call`` does in one step, for the methods of ``ObjectStorageApi``, what the other decorators do one by
one; the latter remain for programs that decorate methods of their own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

from oio.common.constants import REQID_HEADER
from oio.common.exceptions import (
    NoSuchAccount,
    NoSuchContainer,
    NoSuchObject,
    NotFound,
    reraise,
)
from oio.common.utils import request_id, set_deadline_from_read_timeout

F = TypeVar("F", bound=Callable[..., Any])

# Internal codes by which a "not found" tells that the container itself is missing.
CONTAINER_NOT_FOUND_CODES = (406, 431)


# --- not found ----------------------------------------------------------------------------------


def raise_no_such_account(err: NotFound, account: Any, *_names: Any) -> NoReturn:
    """Raise ``NoSuchAccount`` in place of a ``NotFound``."""
    _raise_no_such(NoSuchAccount, err, f"Account '{account}' does not exist.")


def raise_no_such_container(err: NotFound, _account: Any, container: Any = None, *_: Any) -> NoReturn:
    """Raise ``NoSuchContainer`` in place of a ``NotFound``."""
    _raise_no_such(NoSuchContainer, err, f"Container '{container}' does not exist.")


def raise_no_such_object(
    err: NotFound, account: Any, container: Any = None, obj: Any = None, *_: Any
) -> NoReturn:
    """Raise ``NoSuchContainer`` or ``NoSuchObject`` in place of a ``NotFound``, as its code tells."""
    if err.status in CONTAINER_NOT_FOUND_CODES:
        raise_no_such_container(err, account, container)
    _raise_no_such(NoSuchObject, err, f"Object '{obj}' does not exist.")


def _raise_no_such(kind: type[Exception], err: NotFound, text: str) -> NoReturn:
    try:
        reraise(kind, err, text)
    except kind as exc:
        # Callers see (text, original message), without the repetition that comes with ``err.args``.
        exc.args = (text, err.message)
        exc.reqid = err.reqid  # type: ignore[attr-defined]
        raise


def handle_account_not_found(fnc: F) -> F:
    """Make ``NoSuchAccount`` of any ``NotFound`` of a method ``(self, account=None, …)``."""

    @functools.wraps(fnc)
    def wrapper(self: Any, account: Any = None, *args: Any, **kwargs: Any) -> Any:
        try:
            return fnc(self, account, *args, **kwargs)
        except NotFound as err:
            raise_no_such_account(err, account)

    return cast(F, wrapper)


def handle_container_not_found(fnc: F) -> F:
    """Make ``NoSuchContainer`` of any ``NotFound`` of a method ``(self, account, container, …)``."""

    @functools.wraps(fnc)
    def wrapper(self: Any, account: Any, container: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return fnc(self, account, container, *args, **kwargs)
        except NotFound as err:
            raise_no_such_container(err, account, container)

    return cast(F, wrapper)


def handle_object_not_found(fnc: F) -> F:
    """Make ``NoSuchContainer`` or ``NoSuchObject`` of any ``NotFound`` of a method
    ``(self, account, container, obj, …)``.
    """

    @functools.wraps(fnc)
    def wrapper(self: Any, account: Any, container: Any, obj: Any, *args: Any, **kw: Any) -> Any:
        try:
            return fnc(self, account, container, obj, *args, **kw)
        except NotFound as err:
            raise_no_such_object(err, account, container, obj)

    return cast(F, wrapper)


# --- keywords -----------------------------------------------------------------------------------


def ensure_headers(func: F) -> F:
    """Guarantee that the keyword ``headers`` is a dictionary."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("headers") is None:
            kwargs["headers"] = {}
        return func(*args, **kwargs)

    return cast(F, wrapper)


def _ensure_request_id(kwargs: dict[str, Any], prefix: str) -> None:
    headers = kwargs.get("headers")
    if headers is None:
        headers = kwargs["headers"] = {}
    reqid = headers.get(REQID_HEADER)
    if reqid is None:
        reqid = headers[REQID_HEADER] = kwargs.get("reqid") or request_id(prefix)
    kwargs["reqid"] = reqid


def ensure_request_id2(prefix: str = "") -> Callable[[F], F]:
    """Guarantee the header ``x-oio-req-id`` and the equal keyword ``reqid``; generated ids start
    with the prefix. The given headers are modified in place.
    """

    def decorate(func: F) -> F:
        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            _ensure_request_id(kwargs, prefix)
            return func(*args, **kwargs)

        return cast(F, wrapper)

    return decorate


def ensure_request_id(func: F) -> F:
    """``ensure_request_id2`` without prefix."""
    return ensure_request_id2()(func)


def patch_kwargs(fnc: F) -> F:
    """Add the items of ``self._global_kwargs`` that the caller did not give, then a deadline."""

    @functools.wraps(fnc)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = {**self._global_kwargs, **kwargs}
        set_deadline_from_read_timeout(kwargs)
        return fnc(self, *args, **kwargs)

    return cast(F, wrapper)


def api_call(not_found: Callable[..., NoReturn] | None = None, prefix: str = "") -> Callable[[F], F]:
    """All of the above in one frame: default keywords, deadline, headers, request id, not found.

    :param not_found: called with the ``NotFound`` and the first arguments; must raise.
    :param prefix: beginning of generated request ids.
    """

    def decorate(func: F) -> F:
        # Names of the arguments that may come by position or by keyword: account, container, obj.
        names = func.__code__.co_varnames[1 : min(func.__code__.co_argcount, 4)]  # type: ignore[attr-defined]

        @functools.wraps(func)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs = {**self._global_kwargs, **kwargs}
            if kwargs.get("deadline") is None:
                read_timeout = kwargs.get("read_timeout")
                if read_timeout is not None:
                    kwargs["deadline"] = time.monotonic() + float(read_timeout)
            _ensure_request_id(kwargs, prefix)
            if not_found is None:
                return func(self, *args, **kwargs)
            try:
                return func(self, *args, **kwargs)
            except NotFound as err:
                given = [*args[: len(names)], *(kwargs.get(name) for name in names[len(args) :])]
                if len(given) > 1 and given[1] is None:
                    # The container is designated by its id.
                    given[1] = kwargs.get("cid")
                not_found(err, *given)

        return cast(F, wrapper)

    return decorate
