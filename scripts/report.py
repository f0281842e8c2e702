"""A page for a sweep or for runs: one HTML file that works offline, or with --serve a page that follows them.

    hesscale-rl report sweeps/NAME -o name.html     sensitivity, curves, profile, comparison, every run with its state
    hesscale-rl report runs/RUN --serve             http://127.0.0.1:8765 follows it: progress, curves, failed runs

RUNS are run directories, or folders that hold some; of a sweep's folder, the runs that its sweep.json lists. A point
that is clicked shows the curves of the runs behind it. Figures and comparisons are of finished runs; what is not
finished has a figure of its own.
"""

import argparse
import os
import sys
from pathlib import Path

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.analysis.read_runs import RATE, TAGS
from hesscale_rl.system.console import complain, say

PORT = 8765


def report(args: argparse.Namespace) -> int:
    """Write the page, or serve it until Ctrl-C; return the exit code."""
    if args.bins < 1:
        raise InputError(f"--bins {args.bins}: must be at least 1")
    if args.serve and args.output is not None:
        raise InputError(f"-o {args.output}: is not for --serve, which writes nothing")
    if not args.serve and args.port != PORT:
        raise InputError(f"--port {args.port}: is for --serve")
    from hesscale_rl.scripts.analysis.panels import check_writable, write
    from hesscale_rl.scripts.reporting.content import Asked, content
    from hesscale_rl.scripts.reporting.page import page

    asked = Asked(tuple(args.runs), args.metric, args.x, args.over.replace("-", "_"), args.to, args.bins)
    if args.serve:
        from hesscale_rl.scripts.reporting.server import serve

        return serve(asked, args.port)
    name = target(args.output)
    check_writable(name)
    data = content(asked)
    if notes := [note for part in (data, *data["agents"]) for note in part["notes"]]:
        complain(*notes)
    write({Path(name): page(data).encode()})
    say(name)
    return DONE


def target(output: str | None) -> str:
    """Return the name of the file for what -o says."""
    if output is None:
        return "report.html"
    if output.endswith(os.sep) or os.path.isdir(output):
        return os.path.join(output, "report.html")
    return output if output.endswith((".html", ".htm")) else f"{output}.html"


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl report", __doc__)
    parser.add_argument("runs", nargs="+", type=path_text, metavar="RUNS", help="run directories, or folders of them")
    parser.add_argument("-o", "--output", type=path_text, metavar="FILE", help="the page (report.html)")
    parser.add_argument("--serve", action="store_true", help="serve the page on 127.0.0.1, and keep it up to date")
    parser.add_argument("--port", type=int, default=PORT, help=f"of --serve ({PORT}; 0: any that is free)")
    parser.add_argument("--metric", help="of metrics.jsonl (charts/episodic_return; if supervised, loss/validation)")
    parser.add_argument("--x", choices=TAGS, help="axis of the curves (steps; if supervised, epochs)")
    parser.add_argument("--over", metavar="FLAG", default=RATE, help="sensitivity: what is on x (learning-rate)")
    parser.add_argument("--to", metavar="OPTIMIZER", help="whom the others are compared to (adam)")
    parser.add_argument("--bins", type=int, default=100, help="of a curve (100)")
    return obey(parser, report, "no longer served")


if __name__ == "__main__":
    sys.exit(main())
