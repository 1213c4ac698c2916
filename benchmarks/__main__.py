"""`python -m benchmarks`: the command of the suite."""

import sys

from benchmarks.suite.command import main

if __name__ == "__main__":
    sys.exit(main())
