"""stable_baselines3's PPO with AdaHesScale: its policy, its losses and its loop as they are.

pip install 'hesscale-rl[sb3]'
"""

import torch
from stable_baselines3 import PPO

import hesscale_rl as hs


class HesScalePPO(PPO):
    """PPO whose updates know the curvature: loss.backward() in them is HesScale's walk back."""

    def train(self) -> None:
        """Update the policy from the rollout."""
        with hs.record(hs.HesScale()):
            super().train()


def main(total_timesteps: int = 20_000) -> HesScalePPO:
    """Return an agent that has learned CartPole-v1."""
    torch.set_num_threads(1)
    model = HesScalePPO(
        "MlpPolicy", "CartPole-v1", learning_rate=1e-3, seed=1, policy_kwargs={"optimizer_class": hs.AdaHesScale}
    )
    return model.learn(total_timesteps)


if __name__ == "__main__":
    from stable_baselines3.common.evaluation import evaluate_policy

    model = main()
    mean, deviation = evaluate_policy(model, model.get_env(), n_eval_episodes=20)
    print(f"CartPole-v1: a return of {mean:.0f} +- {deviation:.0f}")
