"""A small transformer on characters: the next one from those before it."""

import torch
import torch.nn.functional as F
from torch import nn

import hesscale_rl as hs

TEXT = "the curvature of a network is the curvature of all that it does, one operation after the other. " * 4
CHARACTERS = sorted(set(TEXT))
CONTEXT = 16


class Transformer(nn.Module):
    """Embeddings, a causal block of torch's own, and outputs by the embedding's matrix."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(len(CHARACTERS), width), nn.Embedding(CONTEXT, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(CHARACTERS), bias=False)
        self.head.weight = self.characters.weight
        nn.init.normal_(self.head.weight, std=0.1)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, index):
        """Return the logits [N, T, characters] of index [N, T]."""
        x = self.characters(index) + self.positions.weight
        x = self.block(x, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(x))


def main(updates: int = 30) -> list[float]:
    """Return the cross-entropy of every update."""
    torch.manual_seed(1)
    data = torch.tensor([CHARACTERS.index(c) for c in TEXT])
    net = Transformer()
    optimizer = hs.AdaHesScale(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(updates):
        start = torch.randint(len(data) - CONTEXT, (16,))
        batch = data[start[:, None] + torch.arange(CONTEXT + 1)]
        with hs.record() as tape:
            loss = F.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        tape.backward(loss, hs.HesScale())
        optimizer.step()
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = main(300)
    for update in range(0, len(losses), 50):
        print(f"update {update}: cross-entropy {losses[update]:.3f}")
