"""The curvatures: each a message that travels back beside the gradient, and its verbs (base.py).

base.py has the diagonal methods, hutchinson.py the random one, ggn.py Gauss-Newton matrices and K-FAC, hbp.py whole
blocks, blocks.py what a block can be asked, matmul.py products with a matrix that is never held.
"""

from .base import BL89, Curvature, ExactDiagonal, HesScale, HesScaleGN, NoCurvature

__all__ = ["BL89", "Curvature", "ExactDiagonal", "HesScale", "HesScaleGN", "NoCurvature"]
