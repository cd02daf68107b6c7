"""The other side of `run.py`: a program that has one implementation ready and times it on demand.

Standard library only, so that it runs in every peer's own environment. It reads lines `MODE STEPS`
and answers each with one line of JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable


def serve(modes: dict[str, Callable[[int], None]], about: dict[str, str]) -> None:
    """Times the modes until the input ends.

    Args:
      modes: `train` and `forward`, each running so many steps to their end.
      about: what to write into the table: versions and settings.
    """
    # Whatever a library prints must not mix with the answers.
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
