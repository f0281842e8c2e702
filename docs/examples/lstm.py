"""An LSTM that remembers: the first number of a sequence is asked for at its end."""

import torch
from torch import nn

import hesscale_rl as hs


class Memory(nn.Module):
    """An LSTM over [N, T, 1] and a linear layer on its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 16, batch_first=True), nn.Linear(16, 1)

    def forward(self, x):
        """Return [N, 1]."""
        outputs, _ = self.lstm(x)
        return self.head(outputs[:, -1])


def main(updates: int = 60) -> list[float]:
    """Return the loss of every update."""
    torch.manual_seed(1)
    net = Memory()
    optimizer = hs.AdaHesScale(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(updates):
        x = torch.rand(64, 6, 1)
        optimizer.zero_grad()
        result = hs.backward(net, x, hs.losses.MeanSquaredError(x[:, 0]), hs.HesScale())
        optimizer.step()
        losses.append(float(result.value))
    return losses


if __name__ == "__main__":
    losses = main(1000)
    for update in range(0, len(losses), 100):
        print(f"update {update}: squared error {losses[update]:.4f}")
