"""The names that flags take, for whoever needs them before torch is loaded; optim.names() has the optimizers'."""

DEVICES = ("cpu", "cuda")  # the latter also as cuda:N
POOL = "envpool:"  # begins the names of EnvPool's environments
BACKENDS = ("auto", "compiled", "torch")  # backend.py says what they do
