"""Entry point of `python -m torchtrt_bridge`, the same as the command `torchtrt-bridge`."""

import sys

from torchtrt_bridge.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
