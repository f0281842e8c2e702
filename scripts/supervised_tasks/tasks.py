"""The tasks of supervised learning in the papers, by name: data, network, loss, batch size, epochs, settings.

Every task has a small twin on 8 by 8 digits, which keeps its kind of layers and loss, and one at full size on
Fashion-MNIST's grey images, in 10 classes. TASKS is the table of all three. The
networks are those of DeepOBS (mnist-mlp, the 3c3d's, allcnnc), of Dangel et al. 2020 (hbp-cifar10-mlp) and of Zhang
et al. 2017 (autoencoder, sequential-mnist-lstm, cifar10-resnet); docs/supervised.md says what was left open and is
chosen here. No task changes its images, drops entries or adds a penalty to its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hesscale_rl.errors import InputError

if TYPE_CHECKING:  # so that a command can offer the names before torch is loaded
    from torch import Tensor, nn

    from hesscale_rl.losses import Loss
    from hesscale_rl.scripts.supervised_tasks.data import Data

SMALL, GREY = "digits", "fashion-mnist"  # the data of the small twins, and of those with one channel
SMALL_BATCH, SMALL_EPOCHS = 64, 10
CHUNK = 1000  # examples at once in `evaluate`


@dataclass(frozen=True)
class Task:
    """One row of TASKS. `full`, `small` and `grey` make the networks, for `data`, SMALL and GREY.

    Without `grey` the full one serves: MNIST's images are of the same size.
    """

    data: str
    full: Callable[[], nn.Sequential]
    small: Callable[[], nn.Sequential]
    batch_size: int
    epochs: int
    grey: Callable[[], nn.Sequential] | None = None
    reconstruct: bool = False  # whether the outputs are to be the inputs again; else they are logits of classes
    learning_rate: float = 1e-3  # step size of AdaHesScale and its like
    # Of HessianFree, and the decay of the averaged weights that are tested; 0: the last weights are.
    blocks: int = 1
    damping: float = 0.1
    iterations: int = 30
    averaging: float = 0.0

    def network(self, data: str) -> nn.Sequential:
        """Return a new network for `data`, drawn from torch's global generator."""
        if data == GREY and self.grey is not None:
            return self.grey()
        return self.small() if data == SMALL else self.full()

    @property
    def choices(self) -> tuple[str, ...]:
        """The data that it can be learned on, its own first."""
        return self.data, GREY, SMALL

    def loss(self, x: Tensor, labels: Tensor) -> Loss:
        """Return the loss of a batch, x [N, ...] and labels [N]: cross-entropy, or the mean squared error from x."""
        from hesscale_rl.losses import CrossEntropy, MeanSquaredError

        return MeanSquaredError(x.flatten(1)) if self.reconstruct else CrossEntropy(labels)

    def correct(self, outputs: Tensor, labels: Tensor) -> int:
        """Return how many of the outputs [N, C] name the right class; 0 where there are no classes."""
        return 0 if self.reconstruct else int((outputs.argmax(1) == labels).sum())

    def figures(self, loss: float, accuracy: float) -> dict[str, float]:
        """Return both by name; the loss alone where there are no classes."""
        return {"loss": loss} if self.reconstruct else {"loss": loss, "accuracy": accuracy}

    def sizes(self, data: str) -> tuple[int, int]:
        """Return the batch size and the epochs for `data`."""
        return (SMALL_BATCH, SMALL_EPOCHS) if data == SMALL else (self.batch_size, self.epochs)


def dense(sizes: tuple[int, ...], activation: str, xavier: bool = False) -> nn.Sequential:
    """Return flattened inputs and Linear layers of these sizes, with the activation between them.

    `xavier`: Xavier's uniform weights, biases of zero; else torch's default.
    """
    from torch import nn

    return nn.Sequential(nn.Flatten(), *_dense(sizes, activation, xavier))


def _dense(sizes: tuple[int, ...], activation: str, xavier: bool = False) -> list[nn.Module]:
    from torch import nn

    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(inputs, outputs)
        if xavier:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, getattr(nn, activation)()]
    return layers[:-1]


def mirror(*sizes: int) -> nn.Sequential:
    """Return an autoencoder: tanh layers of these sizes and back, tanh at the code too, outputs linear."""
    return dense((*sizes, *sizes[-2::-1]), "Tanh")


def conv3_dense3(
    colours: int, kernel: int, padding: tuple[int, int, int], widths: tuple[int, ...], ends: tuple[int, ...], act: str
) -> nn.Sequential:
    """Return three convolutions, each before max-pooling by two, then Linear layers of the sizes `ends`.

    The first kernel is `kernel` wide, the others 3. Pooling windows of 3 go over the far edge, as TensorFlow's.
    """
    from torch import nn

    layers: list[nn.Module] = []
    channels = (colours, *widths)
    for i, (inputs, outputs) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        conv = nn.Conv2d(inputs, outputs, kernel if i == 0 else 3, padding=padding[i])
        layers += [conv, getattr(nn, act)(), nn.MaxPool2d(3, 2, ceil_mode=True)]
    return nn.Sequential(*layers, nn.Flatten(), *_dense(ends, act))


def all_conv(colours: int, width: int, classes: int, padding: int) -> nn.Sequential:
    """Return ALL-CNN-C: nine convolutions, ELU between them, and the mean over the image.

    The third and the sixth have stride 2; the seventh has `padding`. From the fourth on they are twice as wide.
    """
    from torch import nn

    w, v = width, 2 * width
    rows = [(w, 3, 1, 1), (w, 3, 1, 1), (w, 3, 2, 1), (v, 3, 1, 1), (v, 3, 1, 1), (v, 3, 2, 1)]
    rows += [(v, 3, 1, padding), (v, 1, 1, 0), (classes, 1, 1, 0)]
    layers: list[nn.Module] = []
    channels = colours
    for outputs, kernel, stride, pad in rows:
        layers += [nn.Conv2d(channels, outputs, kernel, stride, pad), nn.ELU()]
        channels = outputs
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())


def residual(colours: int, width: int, pool: int, features: int) -> nn.Sequential:
    """Return a convolution, three blocks x + conv(relu(conv(x))), ReLU after each, mean pooling and a dense layer."""
    from torch import nn

    from hesscale_rl.networks import Skip

    def conv(channels: int) -> nn.Conv2d:
        return nn.Conv2d(channels, width, 3, padding=1)

    layers: list[nn.Module] = [conv(colours), nn.ReLU()]
    for _ in range(3):
        layers += [Skip(conv(width), nn.ReLU(), conv(width)), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(pool), nn.Flatten(), nn.Linear(features, 10))


def recurrent(pool: int, steps: int, units: int) -> nn.Sequential:
    """Return three peephole LSTM layers, which read a pooled image pixel by pixel, and a dense layer."""
    from torch import nn

    from hesscale_rl.networks import PeepholeLSTM

    class Last(nn.Module):
        """The outputs after the last step."""

        def forward(self, x: Tensor) -> Tensor:
            """Return [N, units] of [N, T, units]."""
            return x[:, -1]

    sequence = [nn.AvgPool2d(pool), nn.Flatten(), nn.Unflatten(1, (steps, 1))]
    layers = [PeepholeLSTM(inputs, units) for inputs in (1, units, units)]
    return nn.Sequential(*sequence, *layers, Last(), nn.Linear(units, 10))


_3C3D = partial(conv3_dense3, 3, 5, (0, 0, 1), (64, 96, 128))
_GREY_3C3D = partial(conv3_dense3, 1, 5, (0, 0, 1), (64, 96, 128), (512, 512, 256, 10))
_SMALL_3C3D = partial(conv3_dense3, 1, 3, (1, 1, 1), (8, 12, 16), (16, 32, 16, 10))
_PYRAMID = (3072, 1024, 512, 256, 128, 64, 32, 16, 10)

TASKS: dict[str, Task] = {
    "mnist-mlp": Task(
        data="mnist",
        full=partial(dense, (784, 1000, 500, 100, 10), "Tanh"),
        small=partial(dense, (64, 100, 50, 25, 10), "Tanh"),
        batch_size=128,
        epochs=100,
    ),
    "cifar10-3c3d": Task(
        data="cifar10",
        full=partial(_3C3D, (1152, 512, 256, 10), "Tanh"),
        small=partial(_SMALL_3C3D, "Tanh"),
        grey=partial(_GREY_3C3D, "Tanh"),
        batch_size=128,
        epochs=100,
    ),
    "cifar100-3c3d": Task(
        data="cifar100",
        full=partial(_3C3D, (1152, 512, 256, 100), "ELU"),
        small=partial(_SMALL_3C3D, "ELU"),
        grey=partial(_GREY_3C3D, "ELU"),
        batch_size=128,
        epochs=200,
    ),
    "cifar100-allcnnc": Task(
        data="cifar100",
        full=partial(all_conv, 3, 96, 100, 0),
        small=partial(all_conv, 1, 8, 10, 1),  # the images have shrunk to 2 by 2: too small for a 3 by 3 kernel
        grey=partial(all_conv, 1, 96, 10, 0),
        batch_size=256,
        epochs=350,
        learning_rate=1e-4,
    ),
    "hbp-cifar10-mlp": Task(
        data="cifar10",
        full=partial(dense, _PYRAMID, "Sigmoid", xavier=True),
        small=partial(dense, (64, 64, 32, 16, 10), "Sigmoid", xavier=True),
        grey=partial(dense, (784, *_PYRAMID[1:]), "Sigmoid", xavier=True),
        batch_size=500,
        epochs=100,
    ),
    "autoencoder": Task(
        data="mnist",
        full=partial(mirror, 784, 1000, 500, 250, 30),
        small=partial(mirror, 64, 80, 40, 20, 8),
        batch_size=1000,
        epochs=100,
        reconstruct=True,
        blocks=2,
        damping=0.0,
    ),
    "sequential-mnist-lstm": Task(
        data="mnist",
        full=partial(recurrent, 4, 49, 10),
        small=partial(recurrent, 2, 16, 10),
        batch_size=1000,
        epochs=100,
        blocks=3,
        damping=0.01,
        iterations=100,
    ),
    "cifar10-resnet": Task(
        data="cifar10",
        full=partial(residual, 3, 16, 8, 256),
        small=partial(residual, 1, 8, 4, 32),
        grey=partial(residual, 1, 16, 7, 256),  # pooled to 4 by 4, as its own
        batch_size=1000,
        epochs=100,
        learning_rate=1e-4,
        blocks=3,
        averaging=0.99,
    ),
}


def evaluate(net: nn.Module, task: Task, part: Data) -> dict[str, float]:
    """Return the mean "loss" over the examples, and the share that is right, "accuracy", where there are classes."""
    import torch

    total, right = 0.0, 0
    with torch.no_grad():
        for x, labels in zip(part.inputs.split(CHUNK), part.labels.split(CHUNK), strict=True):
            outputs = net(x)
            total += float(task.loss(x, labels).value(outputs)) * len(x)
            right += task.correct(outputs, labels)
    return task.figures(total / len(part.labels), right / len(part.labels))


def is_taped(net: nn.Module) -> bool:
    """Return whether hesscale_rl.backward passes `net`: all but the LSTMs, whose many steps autograd walks faster."""
    from hesscale_rl.networks import PeepholeLSTM

    return not any(isinstance(m, PeepholeLSTM) for m in net.modules())


def layer_blocks(net: nn.Sequential, count: int) -> list[dict[str, Any]]:
    """Return parameter groups of adjacent layers, about equal in size; a residual block or an LSTM is never cut."""
    from hesscale_rl.optim.hessian_free import adjacent

    whole: list[tuple[str, Tensor]] = []  # `adjacent` cuts between names that differ before the last dot
    for name, p in net.named_parameters():
        layer, _, rest = name.partition(".")
        whole.append((f"{layer}.{rest.replace('.', '_')}", p))
    try:
        cut = adjacent(whole, count)
    except ValueError:
        layers = len({name.partition(".")[0] for name, _ in whole})
        raise InputError(f"--blocks {count}: must be at most {layers}, the layers of the network") from None
    return [{"params": [p for _, p in block]} for block in cut]
