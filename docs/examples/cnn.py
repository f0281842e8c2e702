"""A convolutional network with group normalisation on scikit-learn's digits (extra `data`)."""

import torch
import torch.nn.functional as F
from torch import nn

import hesscale_rl as hs


class Net(nn.Module):
    """Two residual convolutions, the mean over positions, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(128, 10),
        )
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        """Return logits [N, 10] of images [N, 1, 8, 8]."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm(self.one(x)))
        return self.two(F.max_pool2d(x, 2).flatten(1))


def main(updates: int = 40) -> list[float]:
    """Return the cross-entropy of every update."""
    from sklearn.datasets import load_digits

    torch.manual_seed(1)
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    net = Net()
    optimizer = hs.AdaHesScale(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(updates):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        result = hs.backward(net, images[rows], hs.losses.CrossEntropy(labels[rows]), hs.HesScale())
        optimizer.step()
        losses.append(float(result.value))
    return losses


if __name__ == "__main__":
    losses = main(300)
    for update in range(0, len(losses), 50):
        print(f"update {update}: cross-entropy {losses[update]:.3f}")
