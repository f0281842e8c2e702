"""Supervised learning on the papers' tasks, with every optimizer of this library.

    hesscale-rl supervised --task mnist-mlp --data digits --optimizer adahesscale

scripts/supervised_tasks/tasks.py has the tasks, docs/supervised.md an account of them. The run directory is that of
the agents: a step
in metrics.jsonl is an update. After every epoch it has loss/train and accuracy/train, the means over the epoch's
batches, each before its update; loss/ and accuracy/ of validation and test; charts/epoch; and charts/seconds, the
time of all updates so far. Networks that no rules cover, those with LSTMs, are trained by autograd.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hesscale_rl.errors import EXIT_CODES, Diverged, InputError
from hesscale_rl.optim import declaration
from hesscale_rl.optim.settings import TASKS_OWN
from hesscale_rl.runs.arguments import (
    answer,
    check_optimizer,
    check_resume,
    need_one_of,
    needs,
    optimizer_settings,
    parse,
)
from hesscale_rl.runs.checkpoint import fitting, newest_checkpoint
from hesscale_rl.runs.flags import OptimizerName, PathText
from hesscale_rl.scripts.supervised_tasks.data import TRAINING
from hesscale_rl.scripts.supervised_tasks.tasks import SMALL, TASKS, evaluate, is_taped, layer_blocks
from hesscale_rl.system.console import complain, say

if TYPE_CHECKING:  # torch takes its time to import, and --help is to answer at once
    from torch import Tensor, nn

    import hesscale_rl as hs
    from hesscale_rl.runs.directory import Run

OWN = ("damping", "iterations", "blocks", "curvature_rows", "splits", "momentum")  # flags of some optimizers alone
HBP_LIMIT = 4 * 2**30  # bytes of one of newton-cg's messages


@dataclass
class Args:
    """Supervised learning on the papers' tasks."""

    task: str = "mnist-mlp"
    """mnist-mlp, cifar10-3c3d, cifar100-3c3d, cifar100-allcnnc, hbp-cifar10-mlp, autoencoder, sequential-mnist-lstm,
    cifar10-resnet"""
    data: str | None = None
    """the task's own (None), fashion-mnist: its network at full size on grey images, or digits: a small network on
    8 by 8 images, which are at hand"""
    data_dir: PathText = None
    """where MNIST and CIFAR are kept, after one download; or Fashion-MNIST's files, if they are not installed"""
    optimizer: OptimizerName = "adahesscale"
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"])] = None
    """step size; None: 0.1 for sgd, newton-cg and hessian-free, 0.01 for kfac, 0.001 for the others, but 0.0001 for
    adahesscale and its like on cifar100-allcnnc and cifar10-resnet"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of the optimizer's moving averages"""
    eps: float = 1e-8
    """what Adam and its like add to their denominators"""
    momentum: float | None = None
    """sgd: decay of the sum of gradients that it steps along; None: 0"""
    delta: float = 1e-8
    """trust-region radius of the scaled-... optimizers"""
    damping: float | None = None
    """what kfac and hessian-free add to their curvature, and newton-cg's alpha; None: 0.01, the task's own, 0.02"""
    iterations: int | None = None
    """conjugate gradients of an update, at most; None: 50 for newton-cg, the task's own for hessian-free"""
    blocks: int | None = None
    """hessian-free: blocks of adjacent layers, each solved by itself; None: the task's own"""
    curvature_rows: int | None = None
    """hessian-free: the examples of a batch that curvature is measured on; None: a quarter, on digits all"""
    splits: int | None = None
    """newton-cg: sub-blocks that the rows of a weight are cut into; None: 1"""
    optimizer_kwargs: str | None = None
    """other settings of the optimizer: key=value,key=value or a JSON object"""
    batch_size: int | None = None
    """examples of an update; None: the task's own. What is left over at the end of an epoch is left out"""
    epochs: int | None = None
    """passes over the training examples; None: the task's own"""
    averaging: float | None = None
    """decay of the averaged weights that are tested, 0: the last weights are; None: the task's own"""
    seed: int = 1
    """decides everything random: weights, the order of the examples, draws of the curvature"""
    run_dir: PathText = None
    """the run directory; default runs/{task}__{data}_{optimizer}__{seed}__{time}"""
    resume: PathText = None
    """a run directory: go on where its last checkpoint stands, with its arguments"""
    accept_changes: bool = False
    """let other flags given with --resume change the run"""
    checkpoint_interval: int = 1
    """epochs between checkpoints; a run that is told to stop writes one more"""
    quiet: bool = False
    """print nothing but errors"""

    @property
    def env_id(self) -> str:
        """What the name of the run directory begins with."""
        return self.task

    @property
    def exp_name(self) -> str:
        """The second part of that name."""
        return f"{self.data}_{self.optimizer}"


def fill(args: Args) -> Args:
    """Return the arguments with defaults of task and optimizer in place of None; as they are for an unknown task."""
    if args.task not in TASKS:
        return args
    task, data = TASKS[args.task], args.data or TASKS[args.task].data
    batch_size, epochs = task.sizes(data)
    given: dict[str, Any] = {"data": data, "batch_size": batch_size, "epochs": epochs, "averaging": task.averaging}
    if (found := declaration.names().get(args.optimizer)) is not None:
        own = {"learning_rate": TASKS_OWN} | found.declaration.supervised
        given |= {flag: getattr(task, flag) if value == TASKS_OWN else value for flag, value in own.items()}
        if "curvature_rows" in found.declaration.curvature_ranges:
            # Zhang et al. 2017 take curvature from a part of the batch; on digits batches are small.
            given["curvature_rows"] = None if data == SMALL else max(1, (args.batch_size or batch_size) // 4)
    return replace(args, **{flag: value for flag, value in given.items() if getattr(args, flag) is None})


def check(args: Args) -> None:
    """Raise InputError with one line for the first argument, of those that `fill` returns, that cannot be."""
    need = needs(args)
    need_one_of(args, "task", TASKS)
    known, data = TASKS[args.task].choices, args.data or SMALL
    need(data in known, "data", f"one of {', '.join(known)} for --task {args.task}")
    need(data != SMALL or args.data_dir is None, "data_dir", "left out: digits are part of scikit-learn")
    most = TRAINING[data]
    need((args.batch_size or 1) <= most, "batch_size", f"at most {most:,}, the training examples")
    need((args.curvature_rows or 1) <= (args.batch_size or 1), "curvature_rows", "at most the batch size")
    every = declaration.names()
    for flag in OWN:
        have = {
            f.plain: None for f in every.values() if flag in f.declaration.flag_ranges() | f.declaration.supervised
        }
        own = args.optimizer not in every or every[args.optimizer].plain in have
        need(own or getattr(args, flag) is None, flag, f"left out: it is for --optimizer {', '.join(have)}")
    need(args.blocks is None or args.blocks >= 1, "blocks", "at least 1")
    check_optimizer(args)
    for flag in ("batch_size", "epochs", "checkpoint_interval"):
        need(getattr(args, flag) is None or getattr(args, flag) >= 1, flag, "at least 1")
    need(args.averaging is not None and 0 <= args.averaging < 1, "averaging", "a number in [0, 1)")
    need(0 <= args.seed < 2**63, "seed", "zero or a positive integer below 2^63")
    check_resume(args)


# --- optimizers


def make_optimizer(args: Args, net: nn.Sequential) -> tuple[hs.optim.CurvatureOptimizer, hs.Curvature | None]:
    """Return the optimizer and the curvature that it needs, or None."""
    import hesscale_rl as hs

    groups = layer_blocks(net, args.blocks) if args.blocks else [{"params": [*net.parameters()], "name": "net"}]
    return hs.make_optimizer(args.optimizer, groups, **optimizer_settings(args))


def check_curvature(args: Args, net: nn.Sequential, curvature: hs.Curvature | None, taped: bool, x: Tensor) -> None:
    """Raise InputError if the curvature cannot pass the network, or takes more memory than is sensible."""
    import torch
    from torch import nn

    from hesscale_rl.curvature.hbp import HBP
    from hesscale_rl.rules.shape import Reshape
    from hesscale_rl.tape import operations

    if curvature is None or not curvature.on_tape:
        return
    what = f"--optimizer {args.optimizer}: its curvature, {type(curvature).__name__},"
    if not taped:
        others = "adam, sgd, adahessian, hessian-free"
        raise InputError(f"{what} needs a rule for every layer, and --task {args.task} has LSTMs; take {others}")
    if isinstance(curvature, HBP):
        with torch.no_grad():
            tape = operations(net, x[:1])[0]
        widest = max(rule.y.numel() for rule in tape if not isinstance(rule, Reshape))
        # A convolution takes its Jacobian for every example, a Linear has one for all.
        copies = (args.batch_size or 1) if any(isinstance(m, nn.Conv2d) for m in net.modules()) else 1
        if (size := copies * widest**2 * x.element_size()) > HBP_LIMIT:
            raise InputError(f"{what} would take {size / 2**30:,.0f} GiB for --task {args.task}; take hessian-free")


def update(
    net: nn.Sequential,
    optimizer: hs.optim.CurvatureOptimizer,
    curvature: hs.Curvature | None,
    taped: bool,
    x: Tensor,
    loss: hs.losses.Loss,
) -> tuple[float, Tensor]:
    """Take one step on a batch x [N, ...]; return the loss and the outputs [N, C] before it."""
    import torch

    import hesscale_rl as hs
    from hesscale_rl.optim.base import CurvatureError

    optimizer.zero_grad()
    try:
        if taped:
            result = hs.backward(net, x, loss, curvature)
            value, outputs = float(result.value), result.output
        else:
            outputs = net(x)
            own = loss.value(outputs)
            own.backward()
            value, outputs = float(own.detach()), outputs.detach()
            if curvature is not None:
                hs.measure_curvature(net, x, loss, curvature)
        if math.isfinite(value):
            optimizer.step()
    except (torch.linalg.LinAlgError, CurvatureError) as error:  # of a matrix that is not finite, or nearly so
        raise Diverged(f"no step from this curvature ({str(error).splitlines()[0]})") from None
    return value, outputs


def warm_up(args: Args, net: nn.Sequential, taped: bool, x: Tensor, loss: hs.losses.Loss) -> None:
    """Take a step with a copy, so that what torch loads and allocates at first is no part of charts/seconds."""
    import torch

    copied = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]), contextlib.suppress(Diverged):
        update(copied, *make_optimizer(args, copied), taped, x, loss)


# --- loop


@dataclass
class Standing:
    """Where a run stands: `place` of the updates of an epoch are done, in `order` [examples]; the sums over them."""

    order: Tensor
    step: int = 0
    epoch: int = 0
    place: int = 0
    loss: float = 0.0
    right: int = 0
    seconds: float = 0.0  # of all updates


def restore(
    net: nn.Module, tested: nn.Module, optimizer: hs.optim.CurvatureOptimizer, saved: dict[str, Any], examples: int
) -> Standing:
    """Load a checkpoint into all of these; InputError if it does not fit. The optimizer keeps its settings."""
    settings = [{name: group[name] for name in optimizer.ranges} for group in optimizer.param_groups]
    with fitting():
        net.load_state_dict(saved["policy"])
        if tested is not net:
            tested.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        standing = Standing(**saved["rollout"])
    if standing.order.shape != (examples,):
        raise InputError("--resume: the checkpoint is of other data")
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    return standing


def train(args: Args) -> int:
    """Train and return the exit code; InputError for arguments that cannot be, before anything is created."""
    args = fill(args)
    check(args)
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from hesscale_rl.runs.directory import Run
    from hesscale_rl.runs.progress import Progress
    from hesscale_rl.scripts.supervised_tasks.data import split

    saved = newest_checkpoint(args.resume) if args.resume else None
    data, task = split(args.data or SMALL, args.data_dir), TASKS[args.task]
    examples, batch_size, epochs = len(data.train.labels), args.batch_size or 1, args.epochs or 1
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    net = task.network(args.data or SMALL)
    tested: nn.Module = net
    if args.averaging:
        tested = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(args.averaging))
    optimizer, curvature = make_optimizer(args, net)
    taped = is_taped(net)
    check_curvature(args, net, curvature, taped, data.train.inputs)
    orders = torch.Generator().manual_seed(args.seed)
    begins = saved is None or "policy" not in saved
    if saved is None or begins:
        now = Standing(torch.randperm(examples, generator=orders))
    else:
        now = restore(net, tested, optimizer, saved, examples)
        orders.set_state(saved["orders"])
        torch.set_rng_state(saved["torch"])
    updates, last = examples // batch_size, {}  # of an epoch; what was logged last
    with (
        Run(args, args.run_dir, args.quiet, __file__, updates * epochs, saved) as run,
        Progress(updates * epochs, args.quiet, now.step) as progress,
    ):
        run.tell()

        def log(logs: dict[str, float]) -> dict[str, float]:
            for name in ("validation", "test"):
                logs |= {f"{k}/{name}": v for k, v in evaluate(tested, task, getattr(data, name)).items()}
            run.log(now.step, logs | {"charts/epoch": now.epoch, "charts/seconds": now.seconds})
            run.flush()
            if not math.isfinite(logs["loss/validation"]):
                raise Diverged(f"the loss is not finite (validation {logs['loss/validation']:.3g})")
            return logs

        def save() -> None:
            learned = {"policy": net.state_dict(), "optimizer": optimizer.state_dict()}
            if tested is not net:
                learned["averaged"] = tested.state_dict()
            drawn = {"orders": orders.get_state(), "torch": torch.get_rng_state()}
            run.save_checkpoint(now.step, learned | drawn | {"rollout": vars(now), "global_step": now.step})

        try:
            if begins:
                last = log({})
            first = now.order[:batch_size]
            warm_up(args, net, taped, data.train.inputs[first], task.loss(*(t[first] for t in data.train[1:])))
            while now.epoch < epochs and not run.stop:
                began = time.perf_counter()
                while now.place < updates and not run.stop:
                    chosen = now.order[now.place * batch_size : (now.place + 1) * batch_size]
                    x, labels = data.train.inputs[chosen], data.train.labels[chosen]
                    value, outputs = update(net, optimizer, curvature, taped, x, task.loss(x, labels))
                    if not math.isfinite(value):
                        raise Diverged(f"the loss is not finite (training {value:.3g})")
                    if isinstance(tested, AveragedModel):
                        tested.update_parameters(net)
                    now.step, now.place = now.step + 1, now.place + 1
                    now.loss, now.right = now.loss + value, now.right + task.correct(outputs, labels)
                    note = f"epoch {now.epoch + 1}  training loss {now.loss / now.place:.4g}"
                    progress.update(now.step, note=note)
                now.seconds += time.perf_counter() - began
                if now.place < updates:
                    break
                means = task.figures(now.loss / updates, now.right / (updates * batch_size))
                now.epoch, now.place, now.loss, now.right = now.epoch + 1, 0, 0.0, 0
                now.order = torch.randperm(examples, generator=orders)
                last = log({f"{k}/train": v for k, v in means.items()} | optimizer_figures(optimizer))
                if now.epoch % args.checkpoint_interval == 0 or now.epoch == epochs:
                    save()
            if run.stop and run.saved != now.step:
                save()
        except Diverged as error:
            run.log(now.step, {"charts/diverged": 1.0})
            run.finish("diverged", reason=str(error))
    report(run, last)
    return EXIT_CODES[run.status]


def optimizer_figures(optimizer: hs.optim.CurvatureOptimizer) -> dict[str, float]:
    """Return what to log of the last update: its scaling factor and its curvature."""
    from hesscale_rl.optim import curvature_figures

    if optimizer.param_groups[0]["delta"] is None:
        return curvature_figures(optimizer)
    eta = sum(map(float, optimizer.eta)) / len(optimizer.eta)  # over the blocks of hessian-free
    return {"optim/eta_net": eta} | curvature_figures(optimizer)


def report(run: Run, last: dict[str, float]) -> None:
    """Say how the run ended, and with which figures."""
    if run.status == "diverged":
        where = f"update {run.global_step:,}: {run.reason}; the curve is kept in {run.directory}"
        complain(f"diverged at {where}")
    if run.quiet:
        return
    minutes, seconds = divmod(round(time.monotonic() - run.began), 60)
    names = [f"{tag.replace('/', ' ')} {value:.4g}" for tag, value in last.items() if tag.startswith(("loss", "acc"))]
    say(f"{run.status}  {run.global_step:,} updates in {minutes}:{seconds:02}  {', '.join(names)}")
    say(f"run   {run.directory}")


def main() -> int:
    """Read the command line and return the exit code."""
    return answer(train, parse(Args, {"default": Args()}, sys.argv[1:], "hesscale-rl supervised"))


if __name__ == "__main__":
    sys.exit(main())
