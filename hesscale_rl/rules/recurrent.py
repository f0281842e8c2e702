"""Recurrent layers step by step: what torch runs as one operation, told in terms of recorded ones.

The gates of a step are one operation with a rule of its own, as there are many steps.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .rule import Refusal, Several

State = tuple[Tensor, ...]


class LSTMCell(Several):
    """The new state (h, c) of an LSTM from its gates before their activations and the old c.

    c' = f c + i g, h = o tanh c'. Entry by entry, so it drops no more than its operations would one after the other.
    """

    joint = False

    def run(self, x: Tensor, c: Tensor) -> State:
        """Return h and c'."""
        self.inputs = {"x": x, "c": c}
        raw = x.chunk(4, -1)
        self.i, self.f, self.o = torch.sigmoid(raw[0]), torch.sigmoid(raw[1]), torch.sigmoid(raw[3])
        self.g, self.c = torch.tanh(raw[2]), c
        new = self.f * c + self.i * self.g
        self.t = torch.tanh(new)
        return self.o * self.t, new

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor]:
        """The derivatives of h by c', and of c' and h (the last) by the gates before their activations."""
        i, f, g, o = self.i, self.f, self.g, self.o
        gates = [g * i * (1 - i), self.c * f * (1 - f), i * (1 - g * g), self.t * o * (1 - o)]
        return o * (1 - self.t * self.t), torch.cat(gates, -1)

    def _back(self, slot: str, v: Any, power: int) -> Tensor:
        """J'v, or the same of the squares."""
        (by_c, gates), (h, c) = self.slopes, v
        f = self.f
        if power == 2:
            by_c, gates, f = by_c * by_c, gates * gates, f * f
        c = c + h * by_c
        return c * f if slot == "c" else torch.cat([c, c, c, h], -1) * gates

    def of(self, slot: str, v: Any) -> Tensor:
        """J'v."""
        return self._back(slot, v, 1)

    def of_sq(self, slot: str, d: Any) -> Tensor:
        """(J*J)'d."""
        return self._back(slot, d, 2)

    def of_second(self, slot: str, g: Any) -> Tensor:
        """By c' and h along each gate; by the old c, along c' alone."""
        (by_c, gates), (h, c) = self.slopes, g
        c = c + h * by_c
        along = -2 * self.t * by_c * h  # second derivative of h by c'
        if slot == "c":
            return along * self.f * self.f
        i, f, g_, o = self.i, self.f, self.g, self.o
        own, cut = torch.cat([c, c, c, h], -1), torch.cat([along, along, along, torch.zeros_like(h)], -1)
        bend = torch.cat([1 - 2 * i, 1 - 2 * f, -2 * g_, 1 - 2 * o], -1)  # f'' = f' bend, for sigmoid and tanh
        return cut * gates * gates + own * gates * bend


class GRUCell(Several):
    """The new state of a GRU from the gates that the input and the old state make, and the old state h.

    r, z = sigmoid(x + hidden), n = tanh(x_n + r hidden_n), h' = (1 - z) n + z h.
    """

    joint = False

    def run(self, x: Tensor, hidden: Tensor, h: Tensor) -> Tensor:
        """Return h'."""
        self.inputs = {"x": x, "hidden": hidden, "h": h}
        (r, z, n), (hr, hz, self.hn) = x.chunk(3, -1), hidden.chunk(3, -1)
        self.r, self.z, self.h = torch.sigmoid(r + hr), torch.sigmoid(z + hz), h
        self.n = torch.tanh(n + self.r * self.hn)
        return self.n + self.z * (h - self.n)

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives by r, z and n before their activations."""
        r, z = self.r, self.z
        n = (1 - z) * (1 - self.n * self.n)
        return n * self.hn * r * (1 - r), (self.h - self.n) * z * (1 - z), n

    def of(self, slot: str, v: Tensor) -> Tensor:
        """J'v."""
        if slot == "h":
            return v * self.z
        r, z, n = self.slopes
        return torch.cat([v * r, v * z, v * (n if slot == "x" else n * self.r)], -1)

    def of_sq(self, slot: str, d: Tensor) -> Tensor:
        """(J*J)'d."""
        if slot == "h":
            return d * self.z * self.z
        r, z, n = self.slopes
        n = n if slot == "x" else n * self.r
        return torch.cat([d * r * r, d * z * z, d * n * n], -1)

    def of_second(self, slot: str, g: Tensor) -> Tensor | None:
        """For r by way of n and along itself."""
        if slot == "h":
            return None
        r, z, n = self.slopes
        along = -2 * self.n * n  # by n twice
        moved = self.hn * self.r * (1 - self.r)
        over = along * moved * moved + r * (1 - 2 * self.r)
        own = along if slot == "x" else along * self.r * self.r
        return torch.cat([g * over, g * z * (1 - 2 * self.z), g * own], -1)


def cell_of(rule: type[Several], name: str) -> Callable[..., Any]:
    """Return the function whose rule it is, which a recorder sees as it sees torch's own."""

    def step(*args: Tensor) -> Any:
        if has_torch_function(args):
            return handle_torch_function(step, args, *args)
        return rule.call(step, args, {}).y

    step.__name__ = name
    return step


lstm_step, gru_step = cell_of(LSTMCell, "a step of lstm"), cell_of(GRUCell, "a step of gru")


def _lstm(gates: Tensor, state: State, hidden: Tensor) -> State:
    return lstm_step(gates + hidden, state[1])


def _gru(gates: Tensor, state: State, hidden: Tensor) -> State:
    return (gru_step(gates, hidden, state[0]),)


def _rnn(f: Callable[[Tensor], Tensor]) -> Callable[..., State]:
    return lambda gates, state, hidden: (f(gates + hidden),)


def _cell(step: Callable[..., State]) -> Callable[..., Any]:
    """The function of one step: torch.lstm_cell and its kin."""

    def cell(x: Tensor, state: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
        given = tuple(state) if isinstance(state, tuple | list) else (state,)
        new = step(F.linear(x, w_ih, b_ih), given, F.linear(given[0], w_hh, b_hh))
        return new if len(new) > 1 else new[0]

    return cell


def _layers(step: Callable[..., State], states: int) -> Callable[..., Any]:
    """The function of all layers, directions and steps: torch.lstm and its kin."""

    def run(
        x: Tensor,
        state: Any,
        weights: Sequence[Tensor],
        biases: bool,
        layers: int,
        *rest: Any,
    ) -> Any:
        if isinstance(weights, Tensor):
            raise Refusal("packed sequences have no rule: pad them, and mask the loss")
        dropout, training, both, batch_first = rest
        starts = [t.unbind(0) for t in (state if states > 1 else (state,))]
        steps = x.unbind(1 if batch_first else 0)
        directions, per = 2 if both else 1, 4 if biases else 2
        finals: list[State] = []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                w_ih, w_hh, *b = weights[k * per : (k + 1) * per]
                b_ih, b_hh = b if biases else (None, None)
                now: State = tuple(t[k] for t in starts)
                gates = F.linear(torch.stack(steps, 1), w_ih, b_ih).unbind(1)  # of all steps at once
                told = []
                for given in gates[::-1] if direction else gates:
                    now = step(given, now, F.linear(now[0], w_hh, b_hh))
                    told.append(now[0])
                outputs.append(told[::-1] if direction else told)
                finals.append(now)
            steps = tuple(torch.cat(parts, -1) for parts in zip(*outputs, strict=True)) if both else tuple(outputs[0])
            if dropout and training and layer < layers - 1:
                steps = F.dropout(torch.stack(steps, 1), dropout).unbind(1)
        y = torch.stack(steps, 1 if batch_first else 0)
        return (y, *(torch.stack([f[i] for f in finals]) for i in range(states)))

    return run


lstm, gru, rnn_tanh, rnn_relu = (
    _layers(_lstm, 2),
    _layers(_gru, 1),
    _layers(_rnn(torch.tanh), 1),
    _layers(_rnn(F.relu), 1),
)
lstm_cell, gru_cell = _cell(_lstm), _cell(_gru)
rnn_tanh_cell, rnn_relu_cell = _cell(_rnn(torch.tanh)), _cell(_rnn(F.relu))
