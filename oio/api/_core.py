# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What all methods of ``ObjectStorageApi`` share: the inner clients and the default keywords."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from oio.common.client import ProxyClient
from oio.common.constants import TIMEOUT_KEYS
from oio.common.easy_value import float_value
from oio.common.http_urllib3 import get_pool_manager
from oio.common.logger import get_logger
from oio.container.client import ContainerClient

if TYPE_CHECKING:
    from oio.account.client import AccountClient
    from oio.blob.client import BlobClient
    from oio.directory.client import DirectoryClient


class ApiCore:
    """Constructor of the API. Performs no network request.

    :param namespace: name of the namespace.
    :param perfdata: dictionary to fill with measures of every call.
    :keyword endpoint: location of the proxy; else the configuration of the namespace tells it.
    :keyword connection_timeout: seconds, default of every call; likewise ``read_timeout``, from which the
        deadline of the whole call comes, and ``write_timeout``.
    :keyword cache: dictionary-like cache of metadata.
    :keyword chunk_checksum_algo: ``md5``, another name of ``hashlib``, or None.
    :keyword autocreate: create missing containers on the way (default: True).
    """

    EXTRA_KEYWORDS = (
        "chunk_checksum_algo",
        "autocreate",
        "chunk_buffer_min",
        "chunk_buffer_max",
        "cache",
        "tls",
    )

    def __init__(
        self,
        namespace: str,
        logger: Any = None,
        perfdata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        conf = {"namespace": namespace}
        self.namespace = namespace
        self.conf = conf
        self.logger = logger or get_logger(conf, "oio.api")
        self.perfdata = perfdata
        self._global_kwargs: dict[str, Any] = {}
        for name in TIMEOUT_KEYS:
            value = float_value(kwargs.get(name), None)
            if value is not None:
                self._global_kwargs[name] = value
        self._global_kwargs["autocreate"] = True
        if perfdata is not None:
            self._global_kwargs["perfdata"] = perfdata
        for name in self.EXTRA_KEYWORDS:
            if name in kwargs:
                self._global_kwargs[name] = kwargs[name]

        inner = {name: value for name, value in kwargs.items() if name not in self.EXTRA_KEYWORDS}
        inner["pool_manager"] = kwargs.get("pool_manager") or get_pool_manager(**kwargs)
        inner["logger"] = self.logger
        self._inner_kwargs = inner
        self.container = ContainerClient(conf, **inner)
        self._blob_client: Any = None

    @functools.cached_property
    def directory(self) -> DirectoryClient:
        """Client of references."""
        from oio.directory.client import DirectoryClient

        return DirectoryClient(self.conf, **self._inner_kwargs)

    @functools.cached_property
    def account(self) -> AccountClient:
        """Client of the account service, which is found through the proxy."""
        from oio.account.client import AccountClient

        kwargs = dict(self._inner_kwargs)
        return AccountClient(self.conf, proxy_endpoint=kwargs.pop("endpoint", None), **kwargs)

    @functools.cached_property
    def proxy_client(self) -> ProxyClient:
        """Client of the proxy, without the namespace in the URLs."""
        kwargs = {**self._inner_kwargs, "no_ns_in_url": True}
        return ProxyClient(self.conf, **kwargs)

    @property
    def blob_client(self) -> BlobClient:
        """Client of chunks."""
        if self._blob_client is None:
            from oio.blob.client import BlobClient

            kwargs = {name: value for name, value in self._inner_kwargs.items() if name not in TIMEOUT_KEYS}
            self._blob_client = BlobClient(
                self.conf,
                perfdata=self.perfdata,
                connection_pool=self.container.pool_manager,
                conscience_client=self.container.conscience_client,
                **kwargs,
            )
        client: BlobClient = self._blob_client
        return client
