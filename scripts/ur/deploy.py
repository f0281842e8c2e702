"""A policy on a UR arm: hesscale-rl ur run RUN, or hesscale-rl ur train [flags of the agent]

Without --robot-ip it is a dry run, with the same program and settings, on a simulated controller of its own; one
that runs already (hesscale-rl ur sim) is named with --robot-ip, as a real one is. A real arm moves only after the
answer to a question. Everything that happens is in LOG: steps.jsonl has every step, cycles.bin every control cycle;
hesscale-rl ur replay LOG reads them.
"""

import argparse
import contextlib
import importlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesscale_rl import agents
from hesscale_rl.envs.ur.arms import ARMS, DEFAULT, Arm, find_arm
from hesscale_rl.errors import BAD_INPUT, DONE, FAULT, INTERRUPTED, Diverged, InputError
from hesscale_rl.playing import agent_of, read_run
from hesscale_rl.runs.command_line import Parser, read_kwargs
from hesscale_rl.scripts.evaluate import run_flags
from hesscale_rl.scripts.ur.replaying import replay
from hesscale_rl.system.console import complain, guard, say

if TYPE_CHECKING:
    from hesscale_rl.scripts.ur.supervision import Operated

STANDS = "the arm stands: the robot has said so"
UNKNOWN = "whether the arm stands is not known: it was not read from the robot; look at it before anybody goes near"
ENV_IDS = {"v2": "URReacher-v0", "stock": "URReacherStock-v0"}
# For an agent on a robot, of the flags that it has: whole episodes in a rollout, and each rollout saved.
TRAINING = {"num_steps": 2000, "num_minibatches": 40, "checkpoint_interval": 2000}


@contextlib.contextmanager
def operated(args: argparse.Namespace, rollout: int) -> "Iterator[Operated]":
    """Give the environment over the robot, checked and agreed to; the arm is stopped on the way out."""
    from hesscale_rl.envs.ur.presets import PRESETS
    from hesscale_rl.envs.ur.rtde import UrRtdeDriver
    from hesscale_rl.envs.ur.safety import RobotFault
    from hesscale_rl.envs.ur.shared import Settings
    from hesscale_rl.envs.ur_reacher import URReacher
    from hesscale_rl.scripts.ur.controllers import controller, dashboard
    from hesscale_rl.scripts.ur.supervision import Operated, confirm, end_at_once

    task = PRESETS[args.task].on(find_arm(args.arm))
    check_payload(args.payload, task.arm)
    end_at_once()
    with controller(args.robot_ip, args.arm) as (host, simulated, what):
        settings = Settings(
            host,
            task.bounds(),
            task.timeout,
            task.arm,
            payload=args.payload,
            log=str(args.log / "cycles.bin"),
        )
        if not simulated:  # and before a program is loaded there, which would end the one that runs
            about = dashboard(host, "get robot model", "get serial number", "PolyscopeVersion")
            confirm(host, ", ".join(about), settings.bounds)
        _make(args.log)
        driver = UrRtdeDriver(settings)
        arm = None
        try:
            _write_config(args, driver, host, simulated)
            robot = "{model} {version}, serial number {serial}".format(**driver.robot)
            say(f"robot {robot} at {host}: {what}")
            env = URReacher(args.task, driver=driver, arm=args.arm)
            arm = Operated(
                env, driver, args.log / "steps.jsonl", args.slow_episodes, args.slow_speed, rollout, args.auto_unlock,
                args.max_minutes,
            )  # fmt: skip
            with contextlib.closing(arm):
                yield arm
        except (RobotFault, KeyboardInterrupt) as fault:
            driver.close()
            if arm is not None:  # before that, nothing could move
                fault.add_note(STANDS if driver.stands else UNKNOWN)
            raise
        finally:
            driver.close()
            say(f"log   {args.log}")


def check_payload(kg: float, arm: Arm) -> None:
    """Raise InputError for a payload that the arm does not carry."""
    if not 0 <= kg <= arm.payload:
        raise InputError(f"--payload {kg:g}: must be between 0 and {arm.payload:g} kg, which a {arm.name} carries")


def _make(log: Path) -> None:
    try:
        log.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--log {log}: {error.strerror}") from None


def _write_config(args: argparse.Namespace, driver: Any, host: str, simulated: bool) -> None:
    from hesscale_rl.envs.ur.safety import RobotFault
    from hesscale_rl.runs.machine import commit
    from hesscale_rl.system.files import write_json

    bounds = {k: getattr(v, "tolist", lambda v=v: v)() for k, v in driver.bounds._asdict().items() if k != "links"}
    own = {k: v for k, v in vars(args).items() if k != "act"}
    about = {
        "robot": driver.robot,
        "host": host,
        "simulated": simulated,
        "bounds": bounds,
        "commit": commit(Path(__file__)),
    }
    path = args.log / "config.json"
    try:
        write_json(path, {"arguments": own, "command": sys.argv, "time": time.time(), **about})
    except OSError as error:
        raise RobotFault(f"{path}: cannot be written: {error.strerror}") from None


def sim(args: argparse.Namespace, others: list[str]) -> int:
    """Be a simulated controller."""
    from hesscale_rl.scripts.ur import simulator as ursim

    sys.argv[1:] = others
    return ursim.main()


def run(args: argparse.Namespace, others: list[str]) -> int:
    """Play episodes with what a run has learned."""
    if args.episodes < 1:
        raise InputError(f"--episodes {args.episodes}: must be at least 1")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed {args.seed}: must be zero or a positive integer below 2^63")
    agent_of(args.run)  # before torch is imported
    import gymnasium as gym
    import numpy as np
    import torch

    from hesscale_rl.rl.episode import episode

    torch.set_num_threads(1)
    policy, env, config, saved = read_run(args.run, None, args.env_module, args.trust_env_module, args.checkpoint)
    if config.env_id not in ("URReacher-v0", "URReacherStock-v0", "URReacherMuJoCo-v0"):
        raise InputError(f"{args.run}: learned {config.env_id}; an arm plays URReacher-v0 and its variants")
    learned: Any = env.unwrapped
    args.task, args.arm = learned.preset, _arm_of(args.arm, learned.arm.name)
    episode(policy, env, 0)  # all that is compiled on first use is, before an arm moves
    random, returns = np.random.default_rng(args.seed) if args.sampled else None, []
    with operated(args, 0) as arm:
        limited = gym.wrappers.TimeLimit(arm, 100)
        for i in range(args.episodes):
            value, length = episode(policy, limited, args.seed + i, random)
            returns.append(value)
            say(f"episode {i + 1}/{args.episodes}  return {value:.1f}  {length} steps")
    spread = f" ± {1.96 * np.std(returns, ddof=1) / math.sqrt(len(returns)):.1f}" if len(returns) > 1 else ""
    say(f"return {np.mean(returns):.1f}{spread} (step {saved['global_step']:,} of {args.run})")
    return DONE


def _arm_of(asked: str | None, learned: str) -> str:
    """The arm that a policy is of; InputError if another one is asked for."""
    if asked not in (None, learned):
        raise InputError(f"--arm {asked}: the policy is of a {learned}; leave --arm out, or train one for a {asked}")
    return learned


def train(args: argparse.Namespace, others: list[str]) -> int:
    """Train an agent on the arm, which stands at its start while the agent learns."""
    import gymnasium as gym

    from hesscale_rl.runs.arguments import parse

    agent = importlib.import_module(f"hesscale_rl.agents.{args.agent}")
    flags = others
    if "--resume" not in others:
        usual = [f"--{n.replace('_', '-')}={value}" for n, value in TRAINING.items() if hasattr(agent.Args, n)]
        flags = ["--env-id", ENV_IDS[args.task], *usual, *others]
        if args.arm and not any(flag.partition("=")[0] == "--env-kwargs" for flag in others):
            flags += ["--env-kwargs", f"arm={args.arm}"]
    own = parse(agent.Args, agent.PRESETS, flags, "hesscale-rl ur train")
    for flag, without in (("num_envs", 1), ("eval_interval", 0), ("capture_video_interval", 0)):
        if (value := getattr(own, flag)) != without:
            raise InputError(f"--{flag.replace('_', '-')} {value}: there is one arm")
    if own.env_id not in ENV_IDS.values():
        raise InputError(f"--env-id {own.env_id}: on an arm it is {' or '.join(ENV_IDS.values())}")
    agent.check(own)
    args.task = next(task for task, name in ENV_IDS.items() if name == own.env_id)
    args.arm = _arm_of(args.arm, find_arm(str(read_kwargs(own.env_kwargs).get("arm", DEFAULT.name))).name)
    from hesscale_rl.compiled.cache import ready

    ready()
    model = gym.registry.pop(own.env_id)
    try:
        with operated(args, own.num_steps) as arm:
            gym.register(own.env_id, lambda **_: arm, max_episode_steps=100)  # here the name is the arm's
            return agent.main(own)
    finally:
        gym.registry[own.env_id] = model


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our arguments, and those left for the agent."""
    parser = Parser("hesscale-rl ur", __doc__)
    commands = parser.add_subparsers(required=True, metavar="sim|run|train|replay")
    robot = Parser(add_help=False)
    robot.add_argument("--robot-ip", help="of a controller; without it, a simulated one is started")
    robot.add_argument("--arm", choices=ARMS, help=f"which ({DEFAULT.name}, or the one that the run has learned on)")
    robot.add_argument("--slow-episodes", type=int, default=3, help="first ones, at reduced speed (%(default)s)")
    robot.add_argument("--slow-speed", type=float, default=0.3, help="that speed, rad/s (%(default)s)")
    robot.add_argument("--payload", type=float, default=0.0, help="kg, as set on the pendant (%(default)s)")
    robot.add_argument("--max-minutes", type=float, default=math.inf, help="after which no episode begins")
    robot.add_argument("--auto-unlock", action="store_true",
                       help="release protective stops, and a policy that was silent, without asking, at most 10 in "
                       "ten minutes")  # fmt: skip
    robot.add_argument("--log", type=Path, help="directory for the account (robot_logs/TIME)")
    zero = commands.add_parser("sim", add_help=False, help="be a simulated controller (hesscale-rl ur sim --help)")
    zero.set_defaults(act=sim)
    one = commands.add_parser("run", parents=[robot], help="play episodes with what a run has learned")
    run_flags(one)
    one.add_argument("--episodes", type=int, default=10, help="how many (%(default)s)")
    one.add_argument("--seed", type=int, default=1000, help="of the first episode's target (%(default)s)")
    one.add_argument("--sampled", action="store_true", help="sample the actions as training does")
    one.set_defaults(act=run)
    two = commands.add_parser(
        "train", parents=[robot], help="train an agent; takes its flags too (hesscale-rl train AGENT --help)"
    )
    two.add_argument("--agent", choices=agents.names(), default="ppo", help="which (%(default)s)")
    two.add_argument("--task", choices=ENV_IDS, default="v2", help="preset of the task (%(default)s)")
    two.set_defaults(act=train)
    three = commands.add_parser("replay", help="tell what a log says")
    three.add_argument("log", type=Path, help="the directory")
    three.add_argument("--video", action="store_true", help="write LOG/replay.mp4")
    three.add_argument("--page", action="store_true", help="write LOG/replay.html: angles, speeds, guard, faults")
    three.add_argument("--mcap", action="store_true", help="write LOG/replay.mcap, for Foxglove")
    three.set_defaults(act=replay)
    args, others = parser.parse_known_args(argv)
    if others and args.act in (run, replay):
        (one if args.act is run else three).refuse(others)
    if args.act in (run, train):
        args.log = args.log or Path("robot_logs") / time.strftime("%Y-%m-%d_%H-%M-%S")
        if args.log.exists():
            raise InputError(f"--log {args.log}: exists already")
        for flag, ok, allowed in (
            ("slow_speed", 0 < args.slow_speed <= math.pi, "a speed above 0 and up to pi, rad/s"),
            ("slow_episodes", args.slow_episodes >= 0, "zero or more"),
            ("max_minutes", args.max_minutes > 0, "a positive number"),
        ):
            if not ok:
                raise InputError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be {allowed}")
        # Without --arm it is the run's own that counts: here, before that is read, any.
        check_payload(args.payload, ARMS[args.arm] if args.arm else max(ARMS.values(), key=lambda arm: arm.payload))
    return args, others


def main() -> int:
    """Run the command line."""
    guard()
    try:
        args, others = parse(sys.argv[1:])
        return args.act(args, others)
    except KeyboardInterrupt as stop:
        complain(": ".join(filter(None, ["interrupted", str(stop)])), *getattr(stop, "__notes__", []))
        return INTERRUPTED
    except (InputError, Diverged, OSError) as error:  # Diverged: what the run has learned has
        complain(error)
        return BAD_INPUT
    except RuntimeError as error:
        from hesscale_rl.envs.ur.safety import RobotFault

        if not isinstance(error, RobotFault):
            raise
        complain(error, *getattr(error, "__notes__", []))
        return FAULT


if __name__ == "__main__":
    sys.exit(main())
