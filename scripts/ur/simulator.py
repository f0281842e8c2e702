"""A simulated UR arm on this machine's own network, for clients made for the real one: hesscale-rl ur sim

It speaks RTDE (port 30004), the dashboard's language (29999), and takes scripts and sends its state on 30003. One
robot lives at one address; 127.0.0.2 and so on are free for more. Distances are in metres, angles in radians.
"""

import argparse
import contextlib
import ipaddress
import os
import select
import signal
import sys
import threading
from pathlib import Path

from hesscale_rl.envs.ur.arms import ARMS, DEFAULT, JOINTS, RANGE, SERIES, START, find_arm
from hesscale_rl.errors import BAD_INPUT, DONE, INTERRUPTED, InputError
from hesscale_rl.runs.command_line import Parser
from hesscale_rl.system.console import complain, guard, say

POSE = ("X", "Y", "Z", "RX", "RY", "RZ")


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the arguments; InputError if they are wrong."""
    parser = Parser("hesscale-rl ur sim", __doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at [%(default)s]")
    parser.add_argument(
        "--listen-anywhere",
        action="store_true",
        help="allow a --host that other machines can reach, without a password",
    )
    parser.add_argument(
        "--arm",
        choices=ARMS,
        default=DEFAULT.name,
        help="which; an e-Series runs at 500 Hz, others at 125 [%(default)s]",
    )
    parser.add_argument("--model", help="what the dashboard calls the robot [the arm's name]")
    parser.add_argument("--serial", type=int, default=2018350001, help="its serial number [%(default)s]")
    parser.add_argument("--q", type=float, nargs=JOINTS, metavar="Q", help="joints at the start [the task's]")
    parser.add_argument("--payload", type=float, default=0.0, metavar="KG")
    parser.add_argument(
        "--tcp",
        type=float,
        nargs=len(POSE),
        default=(0.0,) * len(POSE),
        metavar=POSE,
        help="tool's offset from the flange",
    )
    parser.add_argument(
        "--dh-offset", type=float, default=0.0, metavar="MM", help="the forearm is longer than the model says"
    )
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME@TIME[:ARG,ARG]",
        help="let something go wrong at a robot time in seconds: freeze@3.5:1.0, pstop@10, latency@0:0.02,0.01; "
        "names and arguments are those of the control port",
    )  # fmt: skip
    parser.add_argument(
        "--control-port", type=int, metavar="PORT", help="take commands there, one a line, on loopback only: pstop, "
        "safeguard, estop, clear, freeze S, drop, latency MEAN JITTER, shift MM, packet BYTES, threads on|off, "
        "pass S, release, state",
    )  # fmt: skip
    parser.add_argument(
        "--lock-step", type=Path, metavar="FILE", help="keep robot time in FILE, and begin no cycle before a client "
        "that has set a watchdog has answered the last: for tests that must not depend on this machine's pace",
    )  # fmt: skip
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input is closed")
    parser.add_argument("--physics", action="store_true", help="links with mass, motors of limited torque, by MuJoCo")
    parser.add_argument("--packet-size", type=int, default=0, metavar="BYTES", help="of port 30003 [by the firmware]")
    parser.add_argument("--local", action="store_true", help="begin in local control, where no program may start; "
                        "`remote` on the control port switches")  # fmt: skip
    parser.add_argument("--no-thread-rule", action="store_true", help="let two threads of a program move the arm")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="record every cycle; hesscale_rl.envs.ur.simulator.record reads it"
    )
    return parser.parse_args(argv)


def address(args: argparse.Namespace) -> str:
    """Return the IP address to serve at; InputError if it can be reached from outside and that is not asked for."""
    try:
        host = ipaddress.IPv4Address("127.0.0.1" if args.host == "localhost" else args.host)
    except ValueError:
        raise InputError(f"--host {args.host}: no IPv4 address") from None
    if not host.is_loopback and not args.listen_anywhere:
        raise InputError(f"--host {host} can be reached from other machines: add --listen-anywhere if that is meant")
    return str(host)


def tell(line: str) -> None:
    """Print a line. That nobody reads a full pipe is no reason to stop a robot."""
    with contextlib.suppress(OSError, ValueError):  # of a stdout that is closed
        if select.select([], [sys.stdout], [], 0)[1]:
            say(f"ursim: {line}")


def serve(args: argparse.Namespace) -> int:
    """Be a robot until a signal ends it."""
    host, arm = address(args), find_arm(args.arm)
    if not 0 <= args.payload <= arm.payload:
        raise InputError(f"--payload {args.payload:g}: must be between 0 and {arm.payload:g} kg")
    import numpy as np

    from hesscale_rl.envs.ur.clock import RobotClock
    from hesscale_rl.envs.ur.log import Record
    from hesscale_rl.envs.ur.motion import Joints
    from hesscale_rl.envs.ur.simulator.faults import Fault, scheduled
    from hesscale_rl.envs.ur.simulator.record import RECORD
    from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot
    from hesscale_rl.envs.ur.simulator.server import DASHBOARD, REALTIME, RTDE, Server

    q = np.array(START if args.q is None else args.q)
    if args.control_port is not None and not 0 < args.control_port < 65536:
        raise InputError(f"--control-port {args.control_port}: must be between 1 and 65535")
    faults = [scheduled(text) for text in args.fault]
    if args.packet_size:
        Fault(f"packet {args.packet_size}")
    if not np.isfinite([*q, *args.tcp, args.payload, args.dh_offset]).all() or np.abs(q).max() > RANGE:
        raise InputError("--q, --tcp, --payload and --dh-offset take numbers, --q within two pi")
    SimulatedRobot(Joints(q)).step()  # compiled now, so that no cycle of the real one waits
    body = None
    if args.physics:
        from hesscale_rl.envs.ur.dynamics import MujocoBody

        body = MujocoBody(arm.period, arm)
    try:
        if args.log:
            args.log.unlink(missing_ok=True)  # a record is added to what is there
        record = Record(args.log, RECORD) if args.log else None
    except OSError as error:
        raise InputError(f"--log {args.log}: {error.strerror}") from None
    try:
        clock = RobotClock.create(str(args.lock_step)) if args.lock_step else None
    except OSError as error:
        raise InputError(f"--lock-step {args.lock_step}: {error.strerror}") from None
    robot = SimulatedRobot(
        Joints(q, arm.period, body),
        arm,
        model=args.model,
        serial=str(args.serial),
        shift=args.dh_offset / 1000,
        thread_rule=not args.no_thread_rule,
        say=lambda line: tell(f"{robot.stamp:.3f} s: {line}"),
        record=record,
    )
    robot.remote = not args.local
    robot.payload, robot.tool = args.payload, np.array(args.tcp)
    desk = host if ipaddress.IPv4Address(host).is_loopback else "127.0.0.1"
    control = (desk, args.control_port) if args.control_port else None
    server = Server(robot, host, control, faults, args.packet_size, clock)
    received: list[int] = []

    def end(number: int, frame: object) -> None:
        received.append(number)
        server.end()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if args.end_with_stdin:
        # Whoever started it holds the other end, even one who is killed.
        def watch() -> None:
            while os.read(0, 1024):  # not sys.stdin, whose lock a thread must not hold when Python ends
                pass
            server.end()

        threading.Thread(target=watch, daemon=True).start()
    version = ".".join(map(str, robot.version[:3]))
    tell(
        f"{robot.model} {SERIES[arm.series]} {version} at {host}: RTDE {RTDE}, dashboard {DASHBOARD}, "
        f"script and stream {REALTIME}; Ctrl-C ends it"
    )
    with contextlib.suppress(OSError, AttributeError):
        # Where that is allowed: a robot's cycles do not wait for what else its host does.
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        server.run()
    finally:
        server.close()
        if record is not None:
            record.close()
    return INTERRUPTED if signal.SIGINT in received else DONE


def main() -> int:
    """Run the command line in sys.argv and return its exit code."""
    guard()
    try:
        return serve(parse(sys.argv[1:]))
    except KeyboardInterrupt:  # before it served
        return INTERRUPTED
    except InputError as error:
        complain(f"ursim: {error}")
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
