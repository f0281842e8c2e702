"""`hesscale-rl`, and `python -m hesscale_rl`."""

import sys

from hesscale_rl.envs.modules import claim


def main() -> int:
    """Run the command line in sys.argv and return its exit code."""
    claim()  # before anything of scripts is looked for
    from hesscale_rl.scripts.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
