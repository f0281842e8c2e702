"""The names that flags take, for whoever needs them before torch is loaded; a test holds the code to them."""

PLAIN = ("sgd", "adam", "adahesscale", "adahesscale-gn", "adabl89", "adaggn-mc", "adahessian", "kfac")
NEWTON = ("hessian-free", "newton-cg")  # which solve with a curvature matrix, of the loss or of a divergence
SCALED = "scaled-"  # begins the name of an optimizer within a trust region
OPTIMIZER_NAMES = (*PLAIN, *NEWTON, *(SCALED + name for name in (*PLAIN, *NEWTON)))
CURVATURES_OF = ("loss", "kl")
BACKENDS = ("auto", "compiled", "torch")  # what backend.py says
