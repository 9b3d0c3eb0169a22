"""`python -m ernie45`: the command line, where the script `ernie45` is not on the path.

Knows nothing itself (`cli`).
"""

import sys

from ernie45.cli import main

if __name__ == "__main__":
    sys.exit(main())
