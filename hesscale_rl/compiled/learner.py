"""A whole minibatch in one call: both networks forward and back, the losses, the cut of the gradient, the step.

What the readable way does with hesscale_rl.backward and an optimizer, for actors and critics that are chains and the
optimizers of Adam's form; PPO's losses, and A2C's as PPO's without a clip. The tests hold one to the other.
"""

import math
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import networks
from ..curvature import HesScale, HesScaleGN, Nothing
from ..errors import InputError
from ..optim.adahesscale import AdaHesScale
from ..optim.adam import ScaledAdam
from ..policy import Policy
from . import kernels, seeds, steps
from .chain import Chain, find
from .warm import ready

FAST = kernels.FAST
NO_HEAD = np.zeros(3, np.int64)


class Network(NamedTuple):
    """A chain for the loops: addresses of parameters, gradients, curvatures [L, 2]; head [3], of log_std's three."""

    params: np.ndarray
    grads: np.ndarray
    curvatures: np.ndarray
    sizes: np.ndarray
    codes: np.ndarray
    head: np.ndarray


@FAST
def _outputs(net, y, n):
    """The network's outputs from y, what `kernels.forward` gave, with the head's column block if it has one."""
    c = net.sizes[-1]
    z = y[len(y) - n * c :].reshape(n, c)
    if net.head[0] == 0:
        return z.copy()
    both = np.empty((n, 2 * c), np.float32)
    both[:, :c] = z
    both[:, c:] = kernels.at(net.head[0], 1, c)[0]
    return both


@FAST
def _back(net, x, y, dy, ddy, g, d, second, bends):
    """Fill the network's gradients and curvatures from those at its outputs."""
    c = net.sizes[-1]
    if net.head[0] != 0:
        for k in range(2 if second else 1):
            total = kernels.at(net.head[1 + k], 1, c)[0]
            total[:] = kernels.ZERO
            message = g if k == 0 else d
            for i in range(len(message)):
                for j in range(c):
                    total[j] += message[i, c + j]
    g, d = g[:, :c].copy(), (d[:, :c].copy() if second else np.empty((0, c), np.float32))
    kernels.reverse(net.params, net.sizes, net.codes, x, y, dy, ddy, g, d, bends, net.grads, net.curvatures)


@FAST
def _normalized(a):
    """(a - mean)/(standard deviation + 1e-8), the deviation with n - 1; a single advantage stays as it is."""
    if len(a) < 2:
        return a
    mean, square = 0.0, 0.0
    for v in a:
        mean += v
    mean /= len(a)
    for v in a:
        square += (v - mean) * (v - mean)
    out = np.empty_like(a)
    scale = 1 / (math.sqrt(square / (len(a) - 1)) + 1e-8)
    for i in range(len(a)):
        out[i] = (a[i] - mean) * scale
    return out


@FAST
def _cut(grads, lengths, limit):
    """Scale all gradients so that their norm together is at most `limit`, as torch.nn.utils.clip_grad_norm_."""
    total = 0.0
    for k in range(len(lengths)):
        g, part = kernels.at(grads[k], 1, lengths[k])[0], 0.0
        for i in range(len(g)):
            part += np.float64(g[i]) * g[i]
        total += part
    factor = limit / (math.sqrt(total) + 1e-6)
    if factor < 1:
        for k in range(len(lengths)):
            g = kernels.at(grads[k], 1, lengths[k])[0]
            for i in range(len(g)):
                g[i] *= np.float32(factor)


@FAST
def _minibatch(
    mean, variance, critic, x, kind, actions, classes, old, advantages, returns, old_values,
    norm_adv, clip, entropy_coef, value_clip, value_coef, limit, second, bends,
    where, lengths, counts, bounds, lr, beta1, beta2, eps, deltas, etas,
):  # fmt: skip
    """Learn from one minibatch; return the two losses and the actor's outputs before the step.

    kind: of the policy's outputs, -1 softmax, else as in seeds. variance: the second network of the actor, or one
    without layers. where [7, K], lengths, counts [K]: as for the step, by groups that begin and end at `bounds`; 0
    in deltas [G] asks for no scaling. Nothing is changed where a loss is not finite.
    """
    n, two = len(x), len(variance.codes) > 0
    factor = 1.0 / n
    y, dy, ddy = kernels.forward(mean.params, mean.sizes, mean.codes, x)
    z = _outputs(mean, y, n)
    c = z.shape[1]
    y2, dy2, ddy2 = y, dy, ddy
    if two:
        y2, dy2, ddy2 = kernels.forward(variance.params, variance.sizes, variance.codes, x)
        both = np.empty((n, 2 * c), np.float32)
        both[:, :c] = z
        both[:, c:] = _outputs(variance, y2, n)
        z = both
    a = _normalized(advantages) if norm_adv else advantages
    g, d = np.empty_like(z), np.empty_like(z)
    if kind < 0:
        actor_loss = seeds.categorical(z, classes, old, a, clip, entropy_coef, factor, g, d)
    else:
        actor_loss = seeds.gaussian(z, kind, actions, old, a, clip, entropy_coef, factor, g, d)
    yc, dyc, ddyc = kernels.forward(critic.params, critic.sizes, critic.codes, x)
    v = _outputs(critic, yc, n)
    gc, dc = np.empty_like(v), np.empty_like(v)
    critic_loss = seeds.value(v, returns, old_values, value_clip, value_coef, factor, gc, dc)
    if not math.isfinite(actor_loss + critic_loss):
        return actor_loss, critic_loss, z
    if two:
        _back(mean, x, y, dy, ddy, g[:, :c].copy(), d[:, :c].copy(), second, bends)
        _back(variance, x, y2, dy2, ddy2, g[:, c:].copy(), d[:, c:].copy(), second, bends)
    else:
        _back(mean, x, y, dy, ddy, g, d, second, bends)
    _back(critic, x, yc, dyc, ddyc, gc, dc, second, bends)
    if limit > 0:
        _cut(where[1], lengths, limit)
    for i in range(len(etas)):
        begin, end = bounds[i], bounds[i + 1]
        counts[begin:end] += 1
        own = where[:, begin:end]
        etas[i] = steps.adaptive_loop(
            own, lengths[begin:end], counts[begin:end], lr[i], beta1[i], beta2[i], eps[i], deltas[i]
        )
    return actor_loss, critic_loss, z


class Learner:
    """The compiled update of one policy with one optimizer. Make it by `learner`, after anything was loaded."""

    def __init__(self, policy: Policy, optimizer: Any, curvature: Any, chains: list[Chain]):
        self.policy, self.optimizer = policy, optimizer
        self.second, self.bends = type(curvature) in (HesScale, HesScaleGN), type(curvature) is HesScale
        self.kind = -1 if policy.discrete else ("log_std", "log_var", "var").index(policy.parametrization)
        self.params: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.grads = {p: torch.zeros_like(p) for p in self.params}
        self.curvatures = {p: torch.zeros_like(p) for p in self.params}
        built = [self._network(chain) for chain in chains]
        first = built[0]
        none = Network(*(first[k][:0] for k in range(5)), NO_HEAD)  # type: ignore[call-arg]
        self.mean, self.variance, self.critic = built[0], built[1] if len(built) == 3 else none, built[-1]
        self.bounds = np.cumsum([0, *(len(group["params"]) for group in optimizer.param_groups)])
        self.lengths = np.array([p.numel() for p in self.params])
        self.where, self.counts = self._table()
        self.etas = np.ones(len(optimizer.param_groups))
        for p in self.params:
            p.grad = self.grads[p]
            if self.second:
                p.hess_diag = self.curvatures[p]  # type: ignore[attr-defined]

    def _network(self, chain: Chain) -> Network:
        tensors = list(chain.params.values())
        kinds: list[list[Tensor]] = [tensors, [self.grads[p] for p in tensors], [self.curvatures[p] for p in tensors]]
        head = NO_HEAD if chain.log_std is None else np.array([ts[-1].data_ptr() for ts in kinds])
        params, grads, curvatures = map(chain.addresses, kinds)
        return Network(params, grads, curvatures, np.array(chain.sizes), np.array(chain.codes), head)

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Addresses [7, K] and counts of steps [K] for `steps.adaptive_loop`; makes the optimizer's state if new."""
        where, counts = np.zeros((7, len(self.params)), np.int64), np.zeros(len(self.params), np.int64)
        i = 0
        for group in self.optimizer.param_groups:
            names = self.optimizer.averages(group)
            for p in group["params"]:
                state = self.optimizer.state[p]
                if not state:
                    state.update({"step": 0} | {name: torch.zeros_like(p) for name in names})
                m, v, *w = (state[name] for name in names)
                g, d = self.grads[p], self.curvatures[p]
                squared = g if isinstance(self.optimizer, ScaledAdam) else d
                column = [p, g, squared, m, v, *([d, w[0]] if w else [])]
                where[: len(column), i] = [t.data_ptr() for t in column]
                counts[i] = state["step"]
                i += 1
        return where, counts

    def step(
        self,
        mb: dict[str, Tensor],
        norm_adv: bool,
        clip: float,
        entropy_coef: float,
        value_clip: float,
        value_coef: float,
        max_grad_norm: float,
    ) -> tuple[float, float, Tensor]:
        """Learn from a minibatch; return the losses of actor and critic, and the actor's outputs before the step.

        mb [N, ...]: obs, actions, advantages, returns, values and, for PPO, logprob; clip 0: A2C's loss. A clip of 0
        for the values, a norm of 0 for the gradient: none. Where a loss is not finite, nothing is changed.
        """
        groups = self.optimizer.param_groups
        rows = {name: seeds.array(t) for name, t in mb.items()}
        actions, advantages = rows["actions"], rows["advantages"]
        old = rows.get("logprob", advantages)
        settings = [np.array([float(group[name] or 0) for group in groups]) for name in ("lr", "eps", "delta")]
        betas = [np.array([group["betas"][k] for group in groups]) for k in (0, 1)]
        floats, classes = (_NO_ACTIONS, actions) if self.policy.discrete else (actions, _NO_CLASSES)
        actor, critic, outputs = _minibatch(
            self.mean, self.variance, self.critic, rows["obs"], self.kind, floats, classes, old, advantages,
            rows["returns"], rows["values"], norm_adv, clip, entropy_coef, value_clip, value_coef, max_grad_norm,
            self.second, self.bends, self.where, self.lengths, self.counts, self.bounds, settings[0], *betas,
            settings[1], settings[2], self.etas,
        )  # fmt: skip
        # Torch must know: the optimizer its counts of steps, autograd that the parameters have changed.
        self.optimizer._eta = self.etas.tolist()
        for p, count in zip(self.params, self.counts.tolist(), strict=True):
            self.optimizer.state[p]["step"] = count
        torch.autograd.graph.increment_version(self.params)
        return actor, critic, torch.from_numpy(outputs)


_NO_ACTIONS, _NO_CLASSES = np.empty((0, 0), np.float32), np.empty(0, np.int64)


def learner(policy: Policy, optimizer: Any, curvature: Any) -> Learner | None:
    """Return the compiled update, or None for networks, optimizers or curvatures that only the readable way does."""
    if type(optimizer) not in (AdaHesScale, ScaledAdam) or type(curvature) not in (type(None), HesScale, HesScaleGN):
        return None
    x, actor = torch.zeros(1, policy.observations), policy.actor
    nets: list[nn.Module] = [*actor.branches] if type(actor) is networks.Heads else [actor]
    chains = [find(net, x, Nothing()) for net in (*nets, policy.critic)]
    good = [chain for chain in chains if chain is not None]
    if len(good) < len(chains) or len(chains) > 3:
        return None
    if len(chains) == 3 and good[0].sizes[-1] != good[1].sizes[-1]:
        return None
    known = {id(p) for chain in good for p in chain.params.values()}
    if known != {id(p) for group in optimizer.param_groups for p in group["params"]}:
        return None
    ready()
    return Learner(policy, optimizer, curvature, good)


BACKENDS = ("auto", "compiled", "torch")


def choose(backend: str, fast: Learner | None) -> Learner | None:
    """Return the compiled update if the backend asks for it or may have it, else None, for the readable one.

    InputError for "compiled" where there is none; one line on stderr where "auto" has to do without.
    """
    if backend == "compiled" and fast is None:
        raise InputError("--backend compiled: no compiled update for this network and optimizer; take auto or torch")
    if backend == "auto" and fast is None:
        print("backend torch: no compiled update for this network and optimizer", file=sys.stderr)
    return None if backend == "torch" else fast
