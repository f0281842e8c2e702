"""Recurrent layers step by step: what torch runs as one operation, told in terms of recorded ones."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rule import Refusal

State = tuple[Tensor, ...]


def _lstm(gates: Tensor, state: State, hidden: Tensor) -> State:
    i, f, g, o = (gates + hidden).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(gates: Tensor, state: State, hidden: Tensor) -> State:
    (r, z, n), (hr, hz, hn) = gates.chunk(3, -1), hidden.chunk(3, -1)
    z = torch.sigmoid(z + hz)
    n = torch.tanh(n + torch.sigmoid(r + hr) * hn)
    return ((1 - z) * n + z * state[0],)


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
        steps = (x.transpose(0, 1) if batch_first else x).unbind(0)
        directions, per = 2 if both else 1, 4 if biases else 2
        finals: list[State] = []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                w_ih, w_hh, *b = weights[k * per : (k + 1) * per]
                b_ih, b_hh = b if biases else (None, None)
                now: State = tuple(t[k] for t in starts)
                gates = F.linear(torch.stack(steps), w_ih, b_ih).unbind(0)  # of all steps at once
                told = []
                for given in gates[::-1] if direction else gates:
                    now = step(given, now, F.linear(now[0], w_hh, b_hh))
                    told.append(now[0])
                outputs.append(told[::-1] if direction else told)
                finals.append(now)
            steps = tuple(torch.cat(parts, -1) for parts in zip(*outputs, strict=True)) if both else tuple(outputs[0])
            if dropout and training and layer < layers - 1:
                steps = F.dropout(torch.stack(steps), dropout).unbind(0)
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
