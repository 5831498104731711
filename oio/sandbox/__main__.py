# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m oio.sandbox``"""

from __future__ import annotations

import sys

from oio.sandbox.main import main

sys.exit(main())
