"""Where the time of a run goes, for `--profile`: a table of its parts. Without it no clock is ever read."""

import time
from pathlib import Path

import numpy as np

from ..compiled.clock import ACCOUNT, ACT, PHYSICS, TASK
from .directory import write_json

COLLECT, ADVANTAGES, UPDATE = "collect", "advantages", "update"
EVALUATION, LOGGING, REST = "evaluation", "logging", "rest"
INSIDE = {"act": ACT, "physics": PHYSICS, "environment": TASK, "normaliser": ACCOUNT}  # parts of COLLECT


class Profile:
    """Seconds of each part of a run; one of them is always going on.

    `clocks`: of the parts of the rollout (Rollout.watch), whose environments take their steps in `threads`.
    """

    def __init__(self, clocks: list[np.ndarray], threads: int):
        self.clocks, self.threads = clocks, threads
        self.seconds = dict.fromkeys((COLLECT, ADVANTAGES, UPDATE, EVALUATION, LOGGING, REST), 0.0)
        self._part, self._since = REST, time.perf_counter()

    def begin(self, part: str) -> str:
        """Let another part go on from now; return which one did until now."""
        now, before = time.perf_counter(), self._part
        self.seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part, those of the rollout told apart.

        A part of the rollout is what its threads spent on it together, over their number; what they spent on nothing
        of that kind, waiting for each other perhaps, is with the rest. "physics" is what compiled steps spend inside
        MuJoCo; without them it is with "environment".
        """
        self.begin(REST)
        inside = np.sum(self.clocks, 0) / self.threads
        found = {name: float(inside[part]) for name, part in INSIDE.items()}
        others = {part: seconds for part, seconds in self.seconds.items() if part != COLLECT}
        left = max(0.0, self.seconds[COLLECT] - sum(found.values()))
        return found | others | {REST: others[REST] + left}

    def write(self, path: Path, steps: int) -> str:
        """Write the microseconds of a step by part to a file; return them as a table."""
        parts = self.parts()
        total, per = sum(parts.values()), 1e6 / max(1, steps)
        write_json(path, {"steps": steps, "us": {name: seconds * per for name, seconds in parts.items()}})
        lines = [f"{'where the time went':<22}{'us a step':>10}{'share':>9}"]
        lines += [f"{name:<22}{value * per:>10.2f}{value / total:>9.1%}" for name, value in parts.items()]
        lines.append(f"{f'all, of {steps:,} steps':<22}{total * per:>10.2f}{1:>9.1%}")
        return "\n".join(lines)
