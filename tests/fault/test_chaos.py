# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Random kills during a mixed workload: what was acknowledged is there, what was refused is not.

``OIO_CHAOS_SEED`` and ``OIO_CHAOS_KILLS`` choose another run (``make chaos``).
"""

import os
import random

from chaos import Chaos

KILLS = int(os.environ.get("OIO_CHAOS_KILLS", "12"))


def test_random_kills_lose_nothing_that_was_acknowledged(broken, fault_api, box):
    seed = os.environ.get("OIO_CHAOS_SEED") or str(random.randrange(10**6))
    print(f"OIO_CHAOS_SEED={seed} OIO_CHAOS_KILLS={KILLS}")
    chaos = Chaos(broken, box, seed)
    chaos.run(KILLS)
    print(f"killed: {' '.join(chaos.kills)}")
    chaos.verify(fault_api)
