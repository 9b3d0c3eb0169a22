"""All benchmarks that need no GPU, one after the other: `python -m bench`. Results go to bench/results/.

Knows nothing about what they measure. Each runs in a process of its own, so that none inherits another's memory or threads.
"""

import subprocess
import sys

BENCHMARKS = ("bench.decode", "bench.train_step", "bench.checkpoint_load")


def main() -> int:
    for module in BENCHMARKS:
        print(f"{module} ...", flush=True)
        if code := subprocess.run([sys.executable, "-m", module]).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
