"""Export a trained policy: hesscale-rl export RUN [--onnx]

Writes RUN/export/policy.safetensors (all tensors of the policy) and policy.pt2, a program that needs only torch:

    act = torch.export.load("policy.pt2").module()
    action = act(observation)  # [N, O] float64, raw; the most likely action [N, A] within its bounds, or [N] numbers

Normaliser and bounds are inside. --onnx adds policy.onnx with the same input and output. Each file is read again and
compared with the policy before it counts.
"""

import argparse
import io
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.playing import agent_of, read_run
from hesscale_rl.runs.command_line import Parser, obey
from hesscale_rl.system.console import say

from .evaluate import run_flags

if TYPE_CHECKING:
    import numpy as np

CLOSE = 1e-6  # what a file's actions may differ from the policy's, by the largest of them where that is above 1


def export(args: argparse.Namespace) -> int:
    """Write and check the files."""
    agent_of(args.run)  # before torch is imported
    if args.onnx:
        _need_onnx()
    import numpy as np
    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save as to_bytes

    from hesscale_rl.runs.directory import atomic_write

    trust = {name: getattr(args, name) for name in ("env_module", "trust_env_module", "checkpoint")}
    policy, env, config, saved = read_run(args.run, **trust)
    policy.eval().requires_grad_(False)
    folder = args.run / "export"
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    obs = _observations(env, random)
    live = act(policy, obs)

    def report(path: Path, other: Any) -> None:
        off, share = difference(np.asarray(other, dtype=np.float64), live)
        told = f"{off:.2g}, {share:.2g} of the actions' size"
        if not share <= CLOSE:
            path.unlink()
            raise InputError(f"{path}: its actions differ from the policy's by {told}, more than {CLOSE}; removed")
        say(f"{path}  step {saved['global_step']:,}, {len(obs)} observations, largest difference {told}")

    weights = folder / "policy.safetensors"
    meta = {"env_id": config.env_id, "parametrization": policy.parametrization}
    atomic_write(weights, to_bytes({k: v.contiguous().clone() for k, v in policy.state_dict().items()}, meta))
    again = read_run(args.run, **trust)[0]
    again.load_state_dict(load_file(weights))
    report(weights, act(again, obs))
    inputs = torch.from_numpy(obs)
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(policy, (inputs[:2],), dynamic_shapes=(batch,))
    path = folder / "policy.pt2"
    data = io.BytesIO()
    torch.export.save(program, data)
    atomic_write(path, data.getvalue())
    report(path, torch.export.load(path).module()(inputs).numpy())
    if args.onnx:
        path = folder / "policy.onnx"
        report(path, _onnx(path, policy, inputs, batch))
    env.close()
    return DONE


def difference(actions: "np.ndarray", live: "np.ndarray") -> tuple[float, float]:
    """Return the largest difference of actions [N, A] or [N] from the policy's own: as it is, and by their size.

    The size of an action is the largest that it takes, or 1 if that is less.
    """
    import numpy as np

    apart = np.abs(actions - live)
    return float(apart.max()), float((apart / np.maximum(1.0, np.abs(live).max(axis=0))).max())


def act(policy: Any, obs: "np.ndarray") -> "np.ndarray":
    """Return what the live policy does, the way training and evaluation call it."""
    import numpy as np

    seen = obs.astype(np.float32) if policy.obs_norm is None else policy.obs_norm.normalize(obs)
    return policy.to_env(policy.act(seen, None))


def _observations(env: Any, random: Any) -> "np.ndarray":
    """256 observations as the environment gives them to random actions, float64."""
    import numpy as np

    env.action_space.seed(0)
    rows, over = [env.reset(seed=0)[0]], False
    while len(rows) < 256:
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        over = terminated or truncated
        rows.append(env.reset()[0] if over else obs)
    return np.stack(rows).astype(np.float64)


def _need_onnx() -> None:
    """InputError before anything is written."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("--onnx: needs onnx and onnxscript, pip install 'hesscale-rl[export]'") from None


def _onnx(path: Path, policy: Any, inputs: Any, batch: Any) -> Any:
    import onnx
    import torch
    from onnx.reference import ReferenceEvaluator

    names: dict[str, Any] = {"input_names": ["observation"], "output_names": ["action"]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of packages that are not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own use of torch
        program: Any = torch.onnx.export(
            policy, (inputs[:2],), dynamo=True, dynamic_shapes=(batch,), verbose=False, **names
        )
    program.save(path)
    evaluator: Any = ReferenceEvaluator(onnx.load(path))
    return evaluator.run(None, {"observation": inputs.numpy()})[0]


def main() -> int:
    """Run the command line."""
    parser = Parser("hesscale-rl export", __doc__)
    run_flags(parser)
    parser.add_argument("--onnx", action="store_true", help="write policy.onnx as well")
    return obey(parser, export, "interrupted", OSError)


if __name__ == "__main__":
    sys.exit(main())
