"""`python -m hesscale_rl` is `hesscale-rl`."""

import sys

from .scripts.cli import main

if __name__ == "__main__":
    sys.exit(main())
