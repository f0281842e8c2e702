"""Networks of sequences, tables, graphs and sets, in small."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from zoo.model import Model, N, classes, next_tokens, normal, squared, tokens

T, WORDS = 5, 11  # steps; words, of which the last three occur in no input
SEEN = 8


class CausalSelfAttention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.c_attn, self.c_proj, self.fused = nn.Linear(8, 24), nn.Linear(8, 8), fused
        self.register_buffer("bias", torch.tril(torch.ones(T, T)).view(1, 1, T, T))

    def forward(self, x):
        n, t, c = x.size()
        q, k, v = self.c_attn(x).split(8, dim=2)
        q, k, v = (one.view(n, t, 2, c // 2).transpose(1, 2) for one in (q, k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
            y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(n, t, c))


class GPT(nn.Module):
    """One block; the matrix of the outputs is that of the embedding."""

    def __init__(self, fused):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, 8), nn.Embedding(T, 8)
        self.ln_1, self.ln_2, self.ln_f = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn, self.mlp = CausalSelfAttention(fused), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.lm_head = nn.Linear(8, WORDS, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx):
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return self.lm_head(self.ln_f(x))


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Llama(nn.Module):
    """One block: RMS norm by hand, rotary positions, grouped queries, SwiGLU."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(WORDS, 8)
        self.input_layernorm, self.post_attention_layernorm, self.norm = RMSNorm(8), RMSNorm(8), nn.RMSNorm(8)
        self.q_proj, self.k_proj = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)
        self.v_proj, self.o_proj = nn.Linear(8, 4, bias=False), nn.Linear(8, 8, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(8, 12, bias=False), nn.Linear(8, 12, bias=False)
        self.down_proj, self.lm_head = nn.Linear(12, 8, bias=False), nn.Linear(8, WORDS, bias=False)
        angle = torch.outer(torch.arange(T), 1 / 100 ** (torch.arange(2) / 2)).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rotate(self, x):
        half = torch.cat((-x[..., 2:], x[..., :2]), dim=-1)
        return x * self.cos + half * self.sin

    def forward(self, ids):
        x = self.embed_tokens(ids)
        n, t, _ = x.shape
        h = self.input_layernorm(x)
        q = self.rotate(self.q_proj(h).view(n, t, 2, 4).transpose(1, 2))
        k = self.rotate(self.k_proj(h).view(n, t, 1, 4).transpose(1, 2))
        v = self.v_proj(h).view(n, t, 1, 4).transpose(1, 2)
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, -1)
        x = x + self.o_proj(h)
        h = self.post_attention_layernorm(x)
        x = x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        return self.lm_head(self.norm(x))


class Encoder(nn.Module):
    """torch's own layers, with a mask of what is padding."""

    def __init__(self, norm_first):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 4)

    def forward(self, ids):
        x = self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0)
        return self.head(x.mean(dim=1))


class Attention(nn.Module):
    """nn.MultiheadAttention across two sequences, its weights returned too."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, kdim=6, vdim=6), nn.Linear(8, 3)

    def forward(self, query, memory):
        y, weights = self.attention(query, memory, memory)
        return self.head(y[0]) + weights.sum() * 0


class Recurrent(nn.Module):
    """A recurrent network of torch's over words, and a linear layer on the last step."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(WORDS, 4), kind(4, 5, batch_first=True, **settings)
        self.head = nn.Linear(10 if settings.get("bidirectional") else 5, 3)

    def forward(self, ids):
        outputs, _ = self.rnn(self.embedding(ids))
        return self.head(outputs[:, -1])


class Cells(nn.Module):
    """A loop of one's own over a cell."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        h, outputs = torch.zeros(x.size(0), 5, dtype=x.dtype), []
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
            outputs.append(self.head(h))
        return torch.stack(outputs, dim=1)


class SeqToSeq(nn.Module):
    """A GRU encoder, a GRU decoder and attention over the encoder's states by bmm."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4)
        self.encoder, self.decoder = nn.GRU(4, 5, batch_first=True), nn.GRU(4, 5, batch_first=True)
        self.attn, self.out = nn.Linear(5, 5), nn.Linear(10, WORDS)

    def forward(self, source, target):
        states, h = self.encoder(self.embedding(source))
        decoded, _ = self.decoder(self.embedding(target), h)
        scores = torch.bmm(decoded, self.attn(states).transpose(1, 2))
        context = torch.bmm(F.softmax(scores, dim=-1), states)
        return F.log_softmax(self.out(torch.cat([decoded, context], dim=-1)), dim=-1)


def likelihood(y):
    return F.nll_loss(y.flatten(0, 1), torch.arange(len(y) * y.shape[1]) % WORDS)


class TextCNN(nn.Module):
    """Kim's: convolutions of several widths over words, the maximum over time."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.convs, self.fc = nn.ModuleList(nn.Conv1d(6, 4, k) for k in (2, 3)), nn.Linear(8, 3)

    def forward(self, ids):
        x = self.embedding(ids).permute(0, 2, 1)
        pooled = [F.relu(conv(x)).max(dim=2)[0] for conv in self.convs]
        return self.fc(torch.cat(pooled, 1))


class CausalTCN(nn.Module):
    """WaveNet's block: dilated causal convolutions with a gate and a residual branch."""

    def __init__(self):
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv1d(3, 6, 2, dilation=d) for d in (1, 2))
        self.out = nn.Conv1d(3, 2, 1)

    def forward(self, x):
        for conv in self.gates:
            value, gate = conv(F.pad(x, (conv.dilation[0], 0))).chunk(2, dim=1)
            x = x + torch.tanh(value) * torch.sigmoid(gate)
        return self.out(F.glu(torch.cat([x, x.neg()], 1), dim=1))


class MixtureOfExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(5, 3), nn.ModuleList(nn.Linear(5, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        weights = torch.softmax(self.gate(x), dim=-1)
        outputs = torch.stack([F.relu(expert(x)) for expert in self.experts], dim=1)
        return self.head(torch.einsum("ne,ned->nd", weights, outputs))


class TopOneExperts(nn.Module):
    """Each sample goes to the expert of its highest gate: Python branches and index_add."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(5, 2), nn.ModuleList(nn.Linear(5, 6) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        best, index = torch.softmax(self.gate(x), dim=-1).max(dim=-1)
        y = torch.zeros(len(x), 6, dtype=x.dtype)
        for i, expert in enumerate(self.experts):
            rows = torch.where(index == i)[0]
            if len(rows) == 0:
                continue
            y = y.index_add(0, rows, best[rows, None] * expert(x[rows]))
        return self.head(torch.tanh(y))


class WideAndDeep(nn.Module):
    """Recommendation: embeddings of categories beside numbers, a product of two of them."""

    def __init__(self):
        super().__init__()
        self.user, self.item, self.bias = nn.Embedding(6, 4), nn.Embedding(7, 4), nn.Embedding(7, 1)
        self.deep, self.out = nn.Linear(10, 6), nn.Linear(6, 1)

    def forward(self, user, item, numbers):
        u, i = self.user(user), self.item(item)
        deep = self.out(F.mish(self.deep(torch.cat([u, i, numbers], dim=1))))
        return deep.squeeze(1) + (u * i).sum(dim=1) + self.bias(item).squeeze(1)


class GraphConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 6, bias=False), nn.Linear(6, 3)
        edges = (normal(N, N).abs() > 0.7).double() + torch.eye(N).double()
        self.register_buffer("adjacency", edges / edges.sum(1, keepdim=True))

    def forward(self, x):
        return self.two(self.adjacency @ F.relu(torch.mm(self.adjacency, self.one(x))))


class PointNet(nn.Module):
    """Sets: a layer for every point, the maximum over points."""

    def __init__(self):
        super().__init__()
        self.points, self.norm, self.head = nn.Conv1d(3, 8, 1), nn.InstanceNorm1d(8, affine=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.amax(F.relu(self.norm(self.points(x.transpose(1, 2)))), dim=2))


class Maxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.prelu, self.head = nn.Linear(5, 12), nn.PReLU(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.prelu(self.body(x).view(len(x), 6, 2).max(-1).values))


class Clip(nn.Module):
    """Two encoders, normalised embeddings, a temperature of its own: the loss couples the samples."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(5, 4), nn.Linear(6, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, image, text):
        image, text = F.normalize(self.image(image), dim=-1), self.text(text)
        text = text / text.norm(dim=1, keepdim=True)
        return self.logit_scale.exp() * image @ text.t()


def contrastive(logits):
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


class WorldModel(nn.Module):
    """Dreamer's core in small: a GRU cell, a categorical latent by straight-through, heads."""

    def __init__(self):
        super().__init__()
        self.cell, self.prior, self.reward = nn.GRUCell(6, 6), nn.Linear(6, 6), nn.Linear(12, 1)

    def forward(self, x):
        h, z, rewards = torch.zeros(len(x), 6, dtype=x.dtype), torch.zeros(len(x), 6, dtype=x.dtype), []
        for _ in range(2):
            h = self.cell(z + x, h)
            probs = torch.softmax(self.prior(h).view(-1, 2, 3), dim=-1)
            sample = F.one_hot(probs.argmax(-1), 3).to(probs.dtype)
            z = (sample + probs - probs.detach()).flatten(1)
            rewards += [self.reward(torch.cat([h, z], -1))]
        return torch.cat(rewards, 1)


X, IDS = normal(N, 5), tokens(N, T, of=SEEN)
UNSEEN = slice(SEEN, None)
MODELS = {
    "GPT block, masked softmax, tied": Model(lambda: GPT(False), IDS, next_tokens, "lm_head", UNSEEN),
    "GPT block, fused attention, tied": Model(lambda: GPT(True), IDS, next_tokens, "lm_head", UNSEEN),
    "Llama block: RMSNorm, rotary, SwiGLU": Model(Llama, IDS, next_tokens, "lm_head"),
    "TransformerEncoder, post-norm": Model(lambda: Encoder(False), IDS, classes, "head"),
    "TransformerEncoder, pre-norm": Model(lambda: Encoder(True), IDS, classes, "head"),
    "MultiheadAttention": Model(Attention, (normal(2, N, 8), normal(3, N, 6)), classes, "head"),
    "LSTM, two layers": Model(lambda: Recurrent(nn.LSTM, num_layers=2), IDS, classes, "head"),
    "LSTM, both directions": Model(lambda: Recurrent(nn.LSTM, bidirectional=True), IDS, classes, "head"),
    "GRU": Model(lambda: Recurrent(nn.GRU), IDS, classes, "head"),
    "RNN": Model(lambda: Recurrent(nn.RNN), IDS, classes, "head"),
    "GRUCell in a loop": Model(Cells, normal(N, 3, 4), squared, "head"),
    "sequence to sequence with attention": Model(SeqToSeq, (IDS, IDS.flip(1)), likelihood, "out"),
    "TextCNN": Model(TextCNN, IDS, classes, "fc"),
    "WaveNet block": Model(CausalTCN, normal(N, 3, 6), squared, "out"),
    "mixture of experts": Model(MixtureOfExperts, X, classes, "head"),
    "mixture of experts, top one": Model(TopOneExperts, X, classes, "head"),
    "wide and deep": Model(WideAndDeep, (torch.arange(N), torch.arange(N) + 1, normal(N, 2)), squared, "out bias"),
    "graph convolution": Model(GraphConvolution, X, classes, "two.bias"),
    "PointNet": Model(PointNet, normal(N, 6, 3), classes, "head"),
    "maxout, PReLU": Model(Maxout, X, classes, "head"),
    "CLIP": Model(Clip, (X, normal(N, 6)), contrastive, "", coupled=True),
    "Dreamer's core": Model(WorldModel, normal(N, 6), squared, ""),
}
