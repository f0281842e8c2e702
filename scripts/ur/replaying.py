"""What a robot's log says: in words, as a page, as a film, and as MCAP for Foxglove."""

import argparse
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hesscale_rl.envs.ur.arms import DEFAULT, JOINT_NAMES, Arm, find_arm
from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.video import Film, need_video
from hesscale_rl.system.console import say

if TYPE_CHECKING:
    import numpy as np

POINTS = 4000  # of a curve of the page: more is not seen
NANO = 1_000_000_000


class ReadLog(NamedTuple):
    """A log: its records of control cycles (shared.CYCLE), its events, and what config.json says of the bounds."""

    cycles: "np.ndarray"
    events: list[dict[str, Any]]
    bounds: dict[str, Any]
    arm: Arm


def read_log(log: Path) -> ReadLog:
    """Read a log, whatever ended it; InputError if there is none."""
    import numpy as np

    from hesscale_rl.envs.ur.log import read_records
    from hesscale_rl.envs.ur.shared import CYCLE

    if not any((log / name).exists() for name in ("cycles.bin", "config.json", "steps.jsonl")):
        raise InputError(f"{log}: no log of a robot (it has no cycles.bin)")
    path, steps, config = log / "cycles.bin", log / "steps.jsonl", log / "config.json"
    cycles = read_records(path, CYCLE) if path.exists() else np.empty(0, CYCLE)
    lines = steps.read_text().splitlines() if steps.exists() else []
    try:
        about = json.loads(config.read_text()) if config.exists() else {}
    except ValueError as error:
        raise InputError(f"{config}: cannot be read ({error})") from None
    if len(cycles) and not {"period", "acceleration", "joint_low", "joint_high"} <= about.get("bounds", {}).keys():
        raise InputError(f"{config}: says nothing of the bounds, which a log with cycles has")
    # A log of before there was a choice of arms has none.
    arm = find_arm(about.get("arguments", {}).get("arm") or DEFAULT.name)
    return ReadLog(cycles, _whole(lines), about.get("bounds", {}), arm)


def _whole(lines: list[str]) -> list[dict[str, Any]]:
    """The events; a last line that was cut short is left out."""
    events = []
    for number, line in enumerate(lines):
        try:
            events.append(json.loads(line))
        except ValueError:
            if number < len(lines) - 1:
                raise InputError(f"steps.jsonl, line {number + 1}: not JSON") from None
    return events


def replay(args: argparse.Namespace, others: list[str]) -> int:
    """Tell what a log says: episodes, returns, overrides, faults; and how far our model is from what happened."""
    recorded = read_log(args.log)
    if args.video:
        need_video()
    if args.mcap:
        _writer()  # before anything is written
    if args.page:
        _pyplot()
    for i, value in enumerate(tell(recorded.events)):
        say(f"episode {i + 1}  return {value:.1f}")
    if not len(recorded.cycles):
        say("no cycle was recorded: the robot did not start")
        return DONE
    _tell_cycles(recorded)
    if args.page:
        (args.log / "replay.html").write_text(page(recorded, str(args.log)))
        say(f"page  {args.log / 'replay.html'}")
    if args.mcap:
        write_mcap(recorded, args.log / "replay.mcap")
        say(f"mcap  {args.log / 'replay.mcap'}")
    if args.video:
        _video(recorded, args.log / "replay.mp4")
    return DONE


def tell(events: list[dict[str, Any]]) -> list[float]:
    """Say what is neither a reset nor a step; return the episodes' returns."""
    returns: list[float] = []
    for event in events:
        if event["kind"] == "reset":
            returns.append(0.0)
        elif event["kind"] == "step":
            returns[-1] += event["reward"]
        else:
            say(f"{event['kind']}: {event.get('text', event.get('by', ''))}")
    return returns


def _tell_cycles(recorded: ReadLog) -> None:
    import numpy as np

    from hesscale_rl.envs.ur.motion import approach
    from hesscale_rl.envs.ur.safety import OVERRIDES

    cycles, period = recorded.cycles, recorded.bounds["period"]
    # Between two states a few cycles apart, the reference must have followed one of the commands before them.
    worst = 0.0
    for now, then, command in zip(cycles[2:-1], cycles[3:], cycles[:-3]["executed"], strict=True):
        if now["executed"].any() and then["stamp"] - now["stamp"] < 1.5 * period:
            qd = now["qd_target"].copy()
            approach(qd, command, recorded.bounds["acceleration"], period)
            worst = max(worst, float(np.abs(qd - then["qd_target"]).max()))
    counts = np.bincount(cycles["did"], minlength=4)
    did = ", ".join(f"{word} {n}" for word, n in zip(OVERRIDES[1:], counts[1:], strict=True))
    speed, lag = np.abs(cycles["qd"]).max(), np.abs(cycles["q"] - cycles["q_target"]).max()
    say(f"{len(cycles)} cycles in {cycles['stamp'][-1] - cycles['stamp'][0]:.1f} s of robot time; {did}")
    say(f"largest joint speed {speed:.3f} rad/s, largest lag {lag:.4f} rad")
    say(f"reference against our model of speedj: {worst:.4f} rad/s at most")


# --- as a page


def page(recorded: ReadLog, title: str) -> str:
    """Return a page without scripts: each joint's angle in its bounds, its speeds, where the guard acted, faults."""
    from hesscale_rl.envs.ur.safety import OVERRIDES

    figure, axes = _pyplot()(len(JOINT_NAMES) * 2, 1, figsize=(12, 24), sharex=True, layout="constrained")
    every = max(1, -(-len(recorded.cycles) // POINTS))
    cycles, time = recorded.cycles[::every], recorded.cycles["stamp"][::every]
    for joint, name in enumerate(JOINT_NAMES):
        angle, speed = axes[2 * joint], axes[2 * joint + 1]
        angle.plot(time, cycles["q"][:, joint], linewidth=0.8)
        for side in ("joint_low", "joint_high"):
            angle.axhline(recorded.bounds[side][joint], color="0.4", linestyle="--", linewidth=0.8)
        angle.set_ylabel(f"{name}\nrad")
        for what, colour in (("wanted", "0.7"), ("executed", "C1"), ("qd", "C0")):
            speed.plot(time, cycles[what][:, joint], color=colour, linewidth=0.8, label=what)
        speed.set_ylabel("rad/s")
    acted, faults = guarded(recorded), [event for event in recorded.events if event["kind"] == "fault"]
    for axis in axes:
        for begin, end, _ in acted:
            axis.axvspan(begin, end, color="C3", alpha=0.15, linewidth=0)
    axes[1].legend(loc="upper right", ncols=3, fontsize=8)
    axes[-1].set_xlabel("the robot's time, s; shaded where the guard changed a command; dashed: the bounds")
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    svg = drawing.getvalue()
    rows = [("fault", event.get("text", "")) for event in faults]
    rows += [(OVERRIDES[did], f"{begin:.3f} to {end:.3f} s") for begin, end, did in acted]
    table = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:15px sans-serif;margin:2em auto;max-width:1100px}svg{width:100%;height:auto}"
        "td{padding:0 1em 0 0;vertical-align:top}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n<table>{table or '<tr><td>no fault, no override</td></tr>'}</table>\n"
        f"{svg[svg.index('<svg') :]}</body></html>\n"
    )


def guarded(recorded: ReadLog) -> list[tuple[float, float, int]]:
    """Return from when to when [s] the guard changed commands, and the strongest thing that it did."""
    spans: list[tuple[float, float, int]] = []
    period = recorded.bounds["period"]
    for stamp, did in zip(recorded.cycles["stamp"].tolist(), recorded.cycles["did"].tolist(), strict=True):
        if not did:
            continue
        if spans and stamp - spans[-1][1] < 0.5:
            spans[-1] = spans[-1][0], stamp + period, max(spans[-1][2], did)
        else:
            spans.append((stamp, stamp + period, did))
    return spans


def _pyplot() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--page needs matplotlib, pip install 'hesscale-rl[plot]'") from None

    def subplots(rows: int, columns: int, sharex: bool, **how: Any) -> Any:
        figure = Figure(**how)
        return figure, figure.subplots(rows, columns, sharex=sharex)

    return subplots


# --- as MCAP


def write_mcap(recorded: ReadLog, path: Path) -> None:
    """Write channels `cycles`, one message a control cycle, and `events`, of JSON; the time is the robot's."""
    with open(path, "wb") as file:
        writer = _writer()(file)
        writer.start("hesscale-rl")
        number, joints = {"type": "number"}, {"type": "array", "items": {"type": "number"}}
        names = recorded.cycles.dtype.names or ()
        fields = {name: joints if recorded.cycles.dtype[name].shape else number for name in names}
        channels = {}
        for name, properties in (("cycles", fields), ("events", {"kind": {"type": "string"}, "stamp": number})):
            schema = json.dumps({"type": "object", "properties": properties}).encode()
            known = writer.register_schema(f"hesscale_rl.ur.{name}", "jsonschema", schema)
            channels[name] = writer.register_channel(f"/{name}", "json", known)
        for row in recorded.cycles:
            content = {name: row[name].tolist() for name in names}
            _add(writer, channels["cycles"], row["stamp"], content)
        stamp = float(recorded.cycles["stamp"][0]) if len(recorded.cycles) else 0.0
        for event in recorded.events:
            stamp = event.get("stamp", stamp)  # a fault's is that of the step before
            _add(writer, channels["events"], stamp, event)
        writer.finish()


def _add(writer: Any, channel: int, stamp: float, content: dict[str, Any]) -> None:
    at = round(float(stamp) * NANO)
    writer.add_message(channel, at, json.dumps(content).encode(), at)


def _writer() -> Any:
    try:
        from mcap.writer import CompressionType, Writer
    except ImportError:
        raise InputError("--mcap needs mcap, pip install 'hesscale-rl[mcap]'") from None
    return lambda file: Writer(file, compression=CompressionType.NONE)


# --- as a film


def _video(recorded: ReadLog, path: Path) -> None:
    import numpy as np

    from hesscale_rl.envs.ur.dynamics import Scene
    from hesscale_rl.envs.ur.kinematics import tcp
    from hesscale_rl.envs.ur.presets import HALF_TURN

    arm, resets = recorded.arm, [event for event in recorded.events if event["kind"] == "reset"]
    scene = Scene(arm)
    with Film(path, 25) as film:
        for row in recorded.cycles[:: max(1, round(0.04 / recorded.bounds["period"]))]:
            seen = [event["target"] for event in resets if event["stamp"] <= row["stamp"]] or [[0.0, 0.0]]
            target = np.array([tcp(arm.links, row["q"].copy())[0], *(np.array(seen[-1]) * HALF_TURN[1:])])
            film.append(scene.draw(row["q"], target))
    say(f"video {film.path}  ({film.count} frames)")
