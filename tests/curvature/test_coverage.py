"""All of torch.nn.functional and torch.nn: each has a rule, is made of what has one, is autodiff's, or is refused."""

import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import hesscale_rl as hs
from hesscale_rl.rules import CONSTANT, DEFINED, FUNCTIONS, IN_PLACE

N = 3
WORDS = {  # of the modules, which are no operations
    *("assert_int_or_pair", "boolean_dispatch", "handle_torch_function", "has_torch_function"),
    *("has_torch_function_unary", "has_torch_function_variadic", "upsample", "one_hot"),
}
CLASSES = torch.tensor([0, 2, 1])
SIGNS = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)


def positive(t):
    return F.softplus(t)


def pooled(pool, dims):
    """A pooling that gives its indices too."""
    return lambda x: pool(x[:, :8].reshape(N, 1, *([8] if dims == 1 else [2, 4] if dims == 2 else [2, 2, 2])), 2)


def fractional(name, x, w):
    """The maxima of random windows, the same at each call."""
    samples = torch.full((N, 1, int(name[19])), 0.3, dtype=x.dtype)
    shape = (N, 1, 4, 3) if name[19] == "2" else (N, 1, 3, 2, 2)
    size = 2 if name[19] == "2" else (2, 1, 1)
    y = getattr(F, name)(x.view(shape), 1 if name[19] == "3" else 2, output_size=size, _random_samples=samples)
    return y[0] if isinstance(y, tuple) else y


CALLS = {  # of x [N, 12] and w [N, 12]
    "affine_grid": lambda x, w: F.affine_grid(x[:, :6].view(N, 2, 3), [N, 1, 2, 2], align_corners=False),
    "adaptive_max_pool1d_with_indices": lambda x, w: F.adaptive_max_pool1d_with_indices(x[:, None], 3)[0],
    "adaptive_max_pool2d_with_indices": lambda x, w: F.adaptive_max_pool2d_with_indices(x.view(N, 1, 4, 3), 2)[0],
    "adaptive_max_pool3d_with_indices": lambda x, w: F.adaptive_max_pool3d_with_indices(x.view(N, 1, 2, 3, 2), 2)[0],
    "max_pool1d_with_indices": lambda x, w: pooled(F.max_pool1d_with_indices, 1)(x)[0],
    "max_pool2d_with_indices": lambda x, w: pooled(F.max_pool2d_with_indices, 2)(x)[0],
    "max_pool3d_with_indices": lambda x, w: pooled(F.max_pool3d_with_indices, 3)(x)[0],
    "max_unpool1d": lambda x, w: F.max_unpool1d(*pooled(F.max_pool1d_with_indices, 1)(x), 2),
    "max_unpool2d": lambda x, w: F.max_unpool2d(*pooled(F.max_pool2d_with_indices, 2)(x), 2),
    "max_unpool3d": lambda x, w: F.max_unpool3d(*pooled(F.max_pool3d_with_indices, 3)(x), 2),
    "binary_cross_entropy": lambda x, w: F.binary_cross_entropy(torch.sigmoid(x), torch.sigmoid(w.detach())),
    "conv_tbc": lambda x, w: F.conv_tbc(x.view(N, 4, 3), w[:, :6].reshape(2, 3, 3), w[0, :3]),
    "cosine_embedding_loss": lambda x, w: F.cosine_embedding_loss(x, w, SIGNS),
    "cosine_similarity": lambda x, w: F.cosine_similarity(x, w),
    "ctc_loss": lambda x, w: F.ctc_loss(
        x.view(4, N, 3).log_softmax(-1), torch.tensor([[1, 2]] * N), torch.tensor([4] * N), torch.tensor([2] * N)
    ),
    "embedding_bag": lambda x, w: F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), x),
    "feature_alpha_dropout": lambda x, w: F.feature_alpha_dropout(x, 0.5, training=False),
    "fractional_max_pool2d": partial(fractional, "fractional_max_pool2d"),
    "fractional_max_pool2d_with_indices": partial(fractional, "fractional_max_pool2d_with_indices"),
    "fractional_max_pool3d": partial(fractional, "fractional_max_pool3d"),
    "fractional_max_pool3d_with_indices": partial(fractional, "fractional_max_pool3d_with_indices"),
    "gaussian_nll_loss": lambda x, w: F.gaussian_nll_loss(x, torch.zeros_like(x), positive(w)),
    "grid_sample": lambda x, w: F.grid_sample(x.view(N, 1, 4, 3), 0.3 * w[:, :8].reshape(N, 2, 2, 2).tanh()),
    "gumbel_softmax": lambda x, w: None,
    "hinge_embedding_loss": lambda x, w: F.hinge_embedding_loss(x[:, 0], SIGNS),
    "huber_loss": lambda x, w: F.huber_loss(x, w),
    "kl_div": lambda x, w: F.kl_div(x.log_softmax(1), w.softmax(1), reduction="batchmean"),
    "linear_cross_entropy": lambda x, w: None,
    "local_response_norm": lambda x, w: F.local_response_norm(x.view(N, 4, 3), 2),
    "lp_pool1d": lambda x, w: F.lp_pool1d(positive(x)[:, None], 2, 3),
    "lp_pool2d": lambda x, w: F.lp_pool2d(positive(x).view(N, 1, 4, 3), 2, 2),
    "lp_pool3d": lambda x, w: F.lp_pool3d(positive(x).view(N, 1, 2, 3, 2), 2, 2),
    "margin_ranking_loss": lambda x, w: F.margin_ranking_loss(x[:, 0], w[:, 0], SIGNS),
    "multi_head_attention_forward": lambda x, w: attention(x.view(N, 3, 4), w.reshape(-1)),
    "multi_margin_loss": lambda x, w: F.multi_margin_loss(x, CLASSES),
    "multilabel_margin_loss": lambda x, w: F.multilabel_margin_loss(x[:, :3], torch.tensor([[0, 2, -1]] * N)),
    "multilabel_soft_margin_loss": lambda x, w: F.multilabel_soft_margin_loss(x, (w > 0).double()),
    "native_channel_shuffle": lambda x, w: F.native_channel_shuffle(x.view(N, 4, 3, 1), 2),
    "normalize": lambda x, w: F.normalize(x),
    "pairwise_distance": lambda x, w: F.pairwise_distance(x, w),
    "pdist": lambda x, w: F.pdist(x),
    "poisson_nll_loss": lambda x, w: F.poisson_nll_loss(x, positive(w.detach())),
    "smooth_l1_loss": lambda x, w: F.smooth_l1_loss(x, w),
    "soft_margin_loss": lambda x, w: F.soft_margin_loss(x[:, 0], SIGNS),
    "triplet_margin_loss": lambda x, w: F.triplet_margin_loss(x, w, x * w),
    "triplet_margin_with_distance_loss": lambda x, w: F.triplet_margin_with_distance_loss(x, w, x * w),
    "upsample_bilinear": lambda x, w: F.interpolate(x.view(N, 1, 4, 3), scale_factor=2, mode="bilinear"),
    "upsample_nearest": lambda x, w: F.interpolate(x.view(N, 1, 4, 3), scale_factor=2),
    "grouped_mm": lambda x, w: None,
    "scaled_grouped_mm": lambda x, w: None,
    "scaled_mm": lambda x, w: None,
}
# torch knows no second derivatives of these.
REFUSED = {"ctc_loss", "multi_margin_loss", "multilabel_margin_loss", "pdist"}
# Without a gradient in torch itself, of float8 on accelerators, of later versions of torch, or drawn anew each time.
UNTRIED = {
    "native_channel_shuffle",
    "grouped_mm",
    "scaled_grouped_mm",
    "scaled_mm",
    "linear_cross_entropy",
    "gumbel_softmax",
}


def attention(x, w):
    weights = w[:12].reshape(12, 1).expand(12, 4) * torch.arange(1.0, 5.0, dtype=x.dtype)
    return F.multi_head_attention_forward(
        x, x, x, 4, 2, weights, None, None, None, False, 0.0, torch.eye(4, dtype=x.dtype), None
    )[0]


def operations():
    """The names of torch.nn.functional's public functions."""
    for name in dir(F):
        f = getattr(F, name)
        if (
            not name.startswith("_")
            and not inspect.isclass(f)
            and callable(f)
            and getattr(f, "__module__", "").startswith("torch")
        ):
            yield name, f


def leaves():
    torch.manual_seed(0)
    return [torch.randn(N, 12, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def test_every_function_of_torch_has_a_row_or_a_case_here():
    known = {*FUNCTIONS, *DEFINED, *CONSTANT, *IN_PLACE}
    here = {name for name, f in operations() if f not in known}
    assert here - WORDS <= CALLS.keys()


@pytest.mark.filterwarnings("ignore")  # torch's own, of what is deprecated
@pytest.mark.parametrize("name", sorted(CALLS.keys() - UNTRIED))
def test_a_function_without_a_row_has_autograds_gradient_or_is_refused(name):
    call, inputs = CALLS[name], leaves()
    y = call(*inputs)
    weights = torch.rand(y.shape, dtype=y.dtype)
    expected = torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True)
    with hs.record() as tape:
        loss = (call(*inputs) * weights).sum()
    if name in REFUSED:
        with pytest.raises(hs.UnsupportedLayerError, match=f"{name} at .*has no rule, and autodiff says: .*Ways out"):
            tape.backward(loss, hs.HesScale())
        return
    tape.backward(loss, hs.HesScale())
    for t, g in zip(inputs, expected, strict=True):
        if g is None or not g.any():
            assert t.grad is None or not t.grad.any()
        else:
            torch.testing.assert_close(t.grad, g, rtol=1e-9, atol=1e-12)
            assert t.hess_diag.shape == t.shape and t.hess_diag.isfinite().all()
