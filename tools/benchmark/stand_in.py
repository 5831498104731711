# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A server that says yes: the proxy, the rawx, the account service and the reverse directory of a measurement.

``python -m tools.benchmark.stand_in PORT ACCOUNT_ADDRESS RDIR_ADDRESS``; it ends with SIGTERM.
"""

from __future__ import annotations

import json
import sys

from oio.common.service import run_until_stopped, setup_logging
from oio.http.server import Request, Response, Server, ServerConfig


def main() -> int:
    """Answer until told to stop."""
    port, account, rdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    address = f"127.0.0.1:{port}"
    setup_logging(level="WARNING")

    def answer(request: Request) -> Response:
        body = request.read_all(1 << 24)
        path = request.path
        reply: object
        if path.endswith("/choose"):
            reply = [{"addr": account, "id": f"NS|account|{account}"}]
        elif path.endswith("/conscience/resolve"):
            kind = request.query.get("type")
            reply = {"addr": {"rdir": rdir, "account": account}.get(str(kind), address)}
        elif path.endswith("/conscience/list"):
            kind = request.query.get("type")
            reply = [{"addr": {"rdir": rdir, "account": account}.get(str(kind), address), "score": 100}]
        elif path.endswith(("/reference/show", "/reference/link")):
            reply = {"srv": [{"seq": 1, "type": "rdir", "host": rdir, "args": ""}], "dir": [], "properties": {}}
        elif path.endswith("/container/update-many"):
            reply = [{"status": 200, "message": "ok"} for _ in json.loads(body)]
        elif request.method == "DELETE":
            return Response(204)
        else:
            reply = {}
        return Response(200, json.dumps(reply).encode(), [("Content-Type", "application/json")])

    server = Server(answer, [("127.0.0.1", port)], ServerConfig(access_log=None))
    return run_until_stopped([server], name="stand-in")


if __name__ == "__main__":
    sys.exit(main())
