"""The process that `run.py` starts for each implementation, which times it on request.

This module imports only the standard library, so that it runs in the environment of every peer. It
reads lines `MODE STEPS` and answers each of them with one line of JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable


def serve(modes: dict[str, Callable[[int], None]], about: dict[str, str]) -> None:
    """Times the modes until the input ends.

    Args:
      modes: `train` and `forward`, functions that run a number of steps and wait for their results.
      about: versions and settings, for the table.
    """
    # What libraries print must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        mode, steps = line.split()
        before = time.perf_counter()
        modes[mode](int(steps))
        seconds = time.perf_counter() - before
        # Kilobytes on Linux, bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), file=answers, flush=True)
