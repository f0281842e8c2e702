"""What every agent's run has around its algorithm: the arguments all share, the loop's account, and how a run ends.

An agent is one file in agents/; to add one, add the file. Commands find it there and use these names of its module:

    Args         a dataclass of its flags, with those that ppo.py and a2c.py share, and properties: `rollouts`, how
                 many the run has or None for as many as reach its steps; `tape`, hs.backward's backend; where
                 it has `desired_kl`, `window`, a step_control.Window
    PRESETS      Args by the name that --preset takes; "default" is one of them
    STDS         what --std takes
    check        check(args) raises InputError for the first flag that cannot be, before torch does anything
    make_policy  make_policy(observation_space, action_space, args) returns the Policy, whose `groups()` are what
                 the optimizer learns
    train        train(args, watch) trains and returns the exit code, or raises InputError; `watch` is Session's
    main         main(args) does so, and says what is wrong in one line

Its loop is

    with Session(args, __file__, envs, make_policy, watch) as session:
        for _ in session.iterations():
            batch = prepare(session.policy, session.collect(), args)
            logs = update(*session.learner, batch, args)
            session.log(logs, "what the progress line shows of them")
    return session.exit_code

and everything else is here: the environment, made and closed; the seeds; what --resume finds; the run directory with
its curve and its checkpoints; the line that is shown meanwhile; signals, divergence and the exit code.
"""

import contextlib
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from .. import backend
from ..errors import EXIT_CODES, Diverged, EnvironmentFault, InputError, Unwritable
from ..optim import is_scaled, make_optimizer
from ..optim.foreign import ForeignOptimizer
from ..rl.fast.learner import Learner, make_learner
from ..rl.policy import Policy, check_finite, check_spaces
from ..rl.rollout import Arrays, Rollout
from ..rl.step_control import StepControl, Window
from ..system.console import complain, say
from ..system.threads import Threads
from .arguments import check_memory, check_optimizer, optimizer_settings, planned_steps
from .checkpoint import crossed, newest_checkpoint, read_config, restore
from .directory import Run
from .evaluation import Evaluation
from .profile import ADVANTAGES, COLLECT, EVALUATION, LOGGING, REST, UPDATE, Profile
from .progress import Progress
from .video import need_video

Watch = Callable[[Run, int, Mapping[str, float]], Any]
LIBRARIES = ("hesscale_rl", "gymnasium")  # between an agent and a user's environment
RECENT = 20  # episodes whose mean return is told at the end


class Session:
    """One run of an agent, from its arguments to its exit code. Entering it makes all that training needs:

    `policy`, from `make_policy(observation_space, action_space, args)`; `learner`, what an update works with: the
    policy, its optimizer, its curvature or None, and the compiled update or None; `shuffle`, random numbers for the
    update's own use. `source` is the agent's file; `envs` is hesscale_rl.envs, or what makes environments as its
    `make_vector` does, and as its `make`, for evaluation. `watch(run, step, figures)`, if there is one, is called
    with all that is logged, and ends the run by False.

    InputError for arguments that cannot be, with nothing created. Leaving it closes the environments, whatever
    happened, once; a run that diverged ends there, and every other exception passes on.
    """

    def __init__(
        self,
        args: Any,
        source: str,
        envs: Any,
        make_policy: Callable[[Any, Any, Any], Policy],
        watch: Watch | None = None,
    ):
        self.args, self.source, self.envs, self.make_policy = args, source, envs, make_policy
        self.watch = watch
        self.collected, self.total = 0, planned_steps(args)
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.note = self.evaluated = ""
        self.evaluation: Evaluation | None = None

    def __enter__(self) -> Self:
        args = self.args
        saved, self._fresh = _found(args) if args.resume else None, not args.resume
        self._saved = saved if saved is not None and "policy" in saved else None
        with contextlib.ExitStack() as stack:
            stack.enter_context(backend.use(args.backend))
            if args.capture_video_interval:
                need_video(f"--capture-video-interval {args.capture_video_interval}")
            self.env = self.envs.make_vector(args.env_id, args.num_envs, args.env_module, args.seed, args.env_kwargs)
            stack.callback(_close, self.env, args.env_id)
            check_optimizer(args, imported=True)
            check_spaces(args.env_id, self.env.observation_space, self.env.action_space)
            check_memory(args, self.env.observation_space.shape[0])
            torch.set_num_threads(args.torch_threads)
            torch.manual_seed(args.seed)
            self._seed, shuffle, evaluated = np.random.SeedSequence(args.seed).spawn(3)
            self.shuffle = torch.Generator().manual_seed(int(shuffle.generate_state(1)[0]))
            self.policy = self.make_policy(self.env.observation_space, self.env.action_space, args)
            if not args.quiet:
                self._hint()
            self.policy.place(args.device)
            self.optimizer, curvature = make_optimizer(
                args.optimizer, self.policy.groups(), **optimizer_settings(args)
            )
            self.control = _step_control(self.policy, self.optimizer, args)
            if self._saved is not None:
                restore(self.policy, self.optimizer, self._saved, args.num_envs)
                if self.control is not None and "control" in self._saved:  # not, if it began without
                    self.control.load_state_dict(self._saved["control"])
            if args.eval_interval or args.capture_video_interval:
                self.evaluation = Evaluation(args, self.envs.make, evaluated)
                stack.callback(_close, self.evaluation.env, args.env_id)
            # With --compile torch compiles the readable update.
            threads = getattr(args, "update_threads", 1)  # an agent whose update is torch's has none
            self.policy.threads = Threads(threads)
            fast = None
            if not args.compile:
                fast = make_learner(self.policy, self.optimizer, curvature, args.quiet, threads)
            self._learner = self.policy, self.optimizer, curvature, fast
            self.profile: Profile | None = None
            self.run = stack.enter_context(
                Run(args, args.run_dir, args.quiet, self.source, self.total, saved, args.track)
            )
            self.run.watch = self.watch
            if not self._fresh:
                self.run.tell()
            if self.total < args.total_timesteps and not args.quiet:
                size = args.num_steps * args.num_envs
                asked = f"of the {args.total_timesteps:,} asked for"
                say(f"steps {self.total:,} {asked}: {args.rollouts} whole rollouts of {size:,}")
            self.progress = stack.enter_context(Progress(self.total, args.quiet, self.run.global_step))
            self._open = stack.pop_all()
        self.began, self.first = time.time(), self.run.global_step
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        fault = error if isinstance(error, EnvironmentFault) and self._learnt else None
        diverged = isinstance(error, Diverged | torch.linalg.LinAlgError)  # the latter of a curvature not finite
        ended = diverged or fault is not None
        if ended:
            with self._open:
                self._conclude(error)
        else:
            if isinstance(error, EnvironmentFault) and self._fresh:
                self.run.discard()
            self._open.__exit__(kind, error, trace)
        if isinstance(error, SystemExit):  # somebody else's exit code is not ours
            raise RuntimeError(f"sys.exit({error.code!r}) was called in the midst of training") from error
        if fault is not None:
            _blame(fault, self.run)
        elif ended or error is None or isinstance(error, KeyboardInterrupt):
            self.run.report(self.recent, "" if self.evaluation is None else self.evaluation.summary())
        if self.profile is not None:
            say(self.profile.write(self.run.directory / "profile.json", self.rollout.step - self.first))
        return ended

    def _conclude(self, error: BaseException | None) -> None:
        """Give the run its status: it diverged, or its environment failed."""
        if isinstance(error, EnvironmentFault):
            self.run.finish("failed", reason=str(error))
            return
        self.run.log(self.run.global_step, {"charts/diverged": 1.0})
        self.run.finish("diverged", reason=str(error))

    @property
    def _learnt(self) -> bool:
        """Whether there is anything in the policy, of this session or of the one before, that is worth keeping."""
        return self.collected > 0 or self._saved is not None

    def _hint(self) -> None:
        """Say what a user may not know of their environment, before a long run."""
        if (hint := self.env.hint()) is not None:
            complain(hint)
        if not self.policy.discrete and (hint := self.policy.box.hint()) is not None:
            complain(f"--env-id {self.args.env_id}: {hint}")

    @property
    def learner(self) -> tuple[Policy, Any, Any, Learner | None]:
        """What an update works with; who asks for it has prepared the batch, and begins to learn."""
        self._now(UPDATE)
        return self._learner

    def _now(self, part: str) -> str:
        """Let the time from now on be that of a part, for --profile; return what part it was of."""
        return REST if self.profile is None else self.profile.begin(part)

    @property
    def exit_code(self) -> int:
        """What the command ends with, once the session is left."""
        return EXIT_CODES[self.run.status]

    @property
    def share(self) -> float:
        """How much of the run is done, from 0 to 1; a last rollout may go further."""
        rollouts = self.args.rollouts
        return self.collected / rollouts if rollouts else self.rollout.step / self.total

    def iterations(self) -> Iterator[None]:
        """Begin the episodes, or go on with them; then yield for every rollout that is due, and save where it is."""
        self._begin()
        if self.collected:
            self._evaluate()  # which may have been due when the run was told to stop
        if self.args.profile:
            self.profile = Profile(self.rollout.watch(), self.rollout.threads.number)
        while self.share < 1 and not self.run.stop:
            if self.args.anneal_lr:
                self._anneal(1 - self.share)
            self.before = self.rollout.step
            yield
            if isinstance(self.optimizer, ForeignOptimizer):
                self.optimizer.acts()  # before anything is done with what was learned
            self._now(EVALUATION)
            self._evaluate()
            self._now(LOGGING)
            if self.run.stop or self.due(self.args.checkpoint_interval):
                self._save()
            self._now(REST)

    def _anneal(self, remaining: float) -> None:
        """Let the step sizes, or what they are set by, be that share of what they began with."""
        if self.control is not None:
            self.control.remaining = remaining
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * remaining

    def collect(self, stop_at_end: bool = False) -> Arrays:
        """Take the steps of a rollout, as `Rollout.collect` does; whatever ends it, the updates before are kept."""
        self._now(COLLECT)
        try:
            steps = self.rollout.collect(self.args.num_steps, self._ended, stop_at_end)
        except Diverged:
            raise
        except BaseException:
            if self.collected:  # the updates before are whole, the environments' episodes are not
                with contextlib.suppress(Diverged, Unwritable):  # not worth keeping, or a full disk
                    self._save(new_episodes=True)
            raise
        if self._fresh and not self.collected:
            self.run.tell()  # not before: an environment that fails at first leaves nothing to look for
        self.collected += 1
        self._now(ADVANTAGES)
        return steps

    def set_steps(self, batch: dict[str, torch.Tensor], logs: dict[str, float]) -> None:
        """Have the step sizes follow what was learned, unless they are kept.

        `batch` and `logs`: what was learned from, with the actor's outputs before, and what the update logs.
        """
        if self.control is not None:
            groups = zip(self.optimizer.param_groups, self.optimizer.eta, strict=True)
            etas = [logs.get(f"optim/eta_{group['name']}", float(eta)) for group, eta in groups]
            self.control.learned(batch, etas)

    def due(self, interval: int) -> bool:
        """Whether what is done every `interval` steps, and at the end, is due after this rollout."""
        return self.share >= 1 or crossed(self.before, self.rollout.step, interval)

    def log(self, logs: dict[str, float], note: str) -> None:
        """Record the figures of an update and show `note`, with the scaling factors among them."""
        before = self._now(LOGGING)
        logs["charts/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if self.control is not None:
            logs |= self.control.figures
        logs["charts/SPS"] = (self.rollout.step - self.first) / (time.time() - self.began)
        self.run.log(self.rollout.step, logs)
        self.run.flush()
        etas = "/".join(f"{value:.2g}" for tag, value in logs.items() if tag.startswith("optim/eta_"))
        self.note = f"{note}  eta {etas}{self.evaluated}"
        self.progress.update(self.rollout.step, note=self.note)
        self._now(before)

    def _begin(self) -> None:
        self.rollout = Rollout(self.env, self.policy, self._seed, self.args.env_threads)
        saved = self._saved
        self.env.save()  # it says now, not after hours, what in its state no checkpoint can hold
        if saved is None:
            return
        self.policy.load_state_dict(saved["policy"])  # the first reset was counted in
        if not self.rollout.load_state_dict(saved["rollout"]):
            complain(f"--resume: {self.args.env_id} cannot be saved, so it begins new episodes")
        if "shuffle" in saved:  # not in every agent's checkpoints of earlier versions
            self.shuffle.set_state(saved["shuffle"])
        torch.set_rng_state(saved["torch"])
        self.recent.extend(saved["recent"])
        self.collected = saved.get("iteration", 0)
        if self.evaluation is not None and "evaluation" in saved:
            self.evaluation.load_state_dict(saved["evaluation"])

    def _ended(self, step: int, episode_return: float, length: int) -> None:
        before = self._now(LOGGING)
        self.recent.append(episode_return)
        self.run.log(step, {"charts/episodic_return": episode_return, "charts/episodic_length": length})
        self.progress.update(step, episode_return, self.note)
        self._now(before)

    def _evaluate(self) -> None:
        """Evaluate and film the policy where that is due, and keep the best; whatever ends it, the run is saved."""
        if self.evaluation is None:
            return
        began, step, end = time.time(), self.rollout.step, self.share >= 1
        try:
            figures = self.evaluation.play(self.policy, step, end, lambda: self.run.stop)
            if not self.run.stop:
                self.evaluation.film(self.policy, step, end, self.run.directory / "videos")
        except Diverged:
            raise
        except BaseException:
            with contextlib.suppress(Diverged, Unwritable):
                self._save()
            raise
        if figures:
            self.run.log(step, figures)
            self.evaluated = f"  eval {figures['eval/episodic_return']:.4g}"
            if self.evaluation.best_step == step:
                self.run.save_best(step, self._state())
        lasted = time.time() - began  # it is no part of the training's speed
        self.began += lasted
        self.progress.began += lasted

    def _save(self, new_episodes: bool = False) -> None:
        """Write a checkpoint: after an update that is due for it, and where a rollout was broken off.

        `new_episodes`: of environments that have failed, whose state is worth nothing.
        """
        check_finite(self.policy)
        self.run.save_checkpoint(self.rollout.step, self._state(new_episodes))

    def _state(self, new_episodes: bool = False) -> dict[str, Any]:
        """What a checkpoint has in it."""
        learned = {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.control is not None:
            learned["control"] = self.control.state_dict()
        random = {"shuffle": self.shuffle.get_state(), "torch": torch.get_rng_state()}
        account = {"rollout": self.rollout.state_dict(new_episodes), "global_step": self.rollout.step}
        account |= {"recent": list(self.recent), "iteration": self.collected}
        if self.evaluation is not None:
            account["evaluation"] = self.evaluation.state_dict()
        return learned | random | account


def _found(args: Any) -> dict[str, Any]:
    """The checkpoint to go on from; InputError if there are fewer steps to take than were taken."""
    saved, before = newest_checkpoint(args.resume), read_config(args.resume, type(args))
    done, asked = saved["global_step"], args.total_timesteps
    if asked < done and asked != before.total_timesteps:
        raise InputError(f"--total-timesteps {asked}: {args.resume} has done {done:,} already; name more, or none")
    return saved


def _step_control(policy: Policy, optimizer: Any, args: Any) -> StepControl | None:
    """What sets the step sizes of a scaled optimizer by a divergence; None for one that keeps its own."""
    if not is_scaled(args.optimizer) or getattr(args, "desired_kl", None) is None:
        return None
    return StepControl(policy, optimizer, args.desired_kl, Window(*args.window))


def _close(env: Any, env_id: str) -> None:
    """Close the environments; what they raise then is told, and takes nothing from what was learned."""
    try:
        env.close()
    except (Exception, SystemExit) as error:  # whatever an environment of somebody's own may do
        complain(f"--env-id {env_id}: its close() raised {type(error).__name__}: {error}")


def _users_frames(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame on that is neither ours nor Gymnasium's; the whole if there is none."""
    own = trace
    while own is not None and own.tb_frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        own = own.tb_next
    return own or trace


def _blame(fault: EnvironmentFault, run: Run) -> None:
    """Say what an environment did in the middle of a run, with its own traceback, and what to do."""
    if (cause := fault.__cause__) is not None:
        own = _users_frames(cause.__traceback__)
        complain("".join(traceback.format_exception(cause.with_traceback(own))).rstrip())
    kept = f"what was learnt until step {run.saved:,} is kept" if run.saved is not None else "nothing was kept"
    complain(f"{fault}\n{kept}; mend the environment, then go on with --resume {run.directory}")
