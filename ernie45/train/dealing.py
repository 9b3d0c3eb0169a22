"""Groups of answers dealt to updates and shards, with the pairs in them and what each label counts: pure functions.

Knows nothing about engines, models or losses.
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from ernie45.config.policy import RLVRConfig
from ernie45.train.episode import Episode, Portion
from ernie45.train.objectives.advantages import generalised_advantages, group_advantages, spread, whitened
from ernie45.train.objectives.policy import label_weights

Place = tuple[int, int]
"""Update of a rollout, and shard."""
Portions = dict[Place, Portion]


def teaches(group: Sequence[Episode], drop_equal: bool, min_std: float) -> bool:
    """Whether a group is learnt from: some have rewards, and they differ, by more than `min_std`, where that is asked for."""
    rewards = np.array([episode.reward for episode in group])
    if np.isnan(rewards).all():
        return False
    differs = spread(rewards)
    return (differs > 0 or not drop_equal) and (differs > min_std or not min_std)


def set_group_advantages(group: Sequence[Episode], kind: str) -> None:
    """The same advantage for each label of an answer, from the rewards of its group."""
    rewards = np.array([episode.reward for episode in group])
    for episode, advantage in zip(group, group_advantages(rewards, kind), strict=True):
        episode.advantages_N = np.full(episode.num_labels, advantage, dtype=np.float32)


def set_critic_advantages(portions: Portions, config: RLVRConfig) -> None:
    """GAE from the critic's values, the reward at the last label; whitened by update; and the returns for the critic."""
    for update in range(config.rollout.updates):
        episodes = [episode for episode in of_update(portions, update) if episode.has_reward]
        for episode in episodes:
            assert episode.values_N is not None
            rewards_N = np.zeros(episode.num_labels)
            rewards_N[-1] = episode.reward
            advantages_N = generalised_advantages(rewards_N, episode.values_N, config.critic.gamma, config.critic.lam)
            episode.returns_N = (advantages_N + episode.values_N).astype(np.float32)
            episode.advantages_N = advantages_N
        if config.policy.whiten:
            parts = whitened([episode.advantages_N for episode in episodes if episode.advantages_N is not None])
            for episode, part in zip(episodes, parts, strict=True):
                episode.advantages_N = part


def best_and_worst(group: Sequence[Episode], rng: Random) -> tuple[int, int] | None:
    """Places of an answer with the highest and of one with the lowest reward, by chance among equals; None if all are equal."""
    known = [place for place, episode in enumerate(group) if episode.has_reward]
    rewards = [group[place].reward for place in known]
    if len(known) < 2 or min(rewards) == max(rewards):
        return None
    best = [place for place in known if group[place].reward == max(rewards)]
    worst = [place for place in known if group[place].reward == min(rewards)]
    return rng.choice(best), rng.choice(worst)


def deal(
    groups: Sequence[Sequence[Episode]],
    config: RLVRConfig,
    spare: Episode,
    pair_of: Callable[[Sequence[Episode]], tuple[int, int] | None],
    given: Callable[[int], Sequence[tuple[Episode, Episode]]],
) -> Portions:
    """Groups in turn to updates, and whole to the shard that has fewest tokens. pair_of: the pair in a group, if one is wanted.
    given: pairs (better, worse) made beforehand for an update.

    An empty shard gets `spare`, which counts nothing: every process runs every part of the model in every step.
    """
    portions: Portions = {}
    for update, numbers in enumerate(np.array_split(np.arange(len(groups)), config.rollout.updates)):
        shards = [Portion() for _ in range(config.loop.num_shards)]
        learnt = [[episode for episode in groups[number] if _counts(episode, config)] for number in numbers]
        parts = [(group, pair_of(group)) for group in learnt if group] + [(pair, (0, 1)) for pair in given(update)]
        for group, pair in sorted(parts, key=lambda part: sum(episode.num_tokens for episode in part[0]), reverse=True):
            min(shards, key=lambda shard: shard.num_tokens).add(group, pair)
        _weigh(shards, config)
        for shard, portion in enumerate(shards):
            if not portion.episodes:
                portion.add([spare])
            portions[update, shard] = portion
    return portions


def of_update(portions: Portions, update: int) -> list[Episode]:
    """All episodes of an update."""
    return [episode for (of, _), portion in portions.items() if of == update for episode in portion.episodes]


def _counts(episode: Episode, config: RLVRConfig) -> bool:
    """Whether an answer is learnt from: it has a reward, and is not cut off where such are masked."""
    assert episode.answer is not None
    return episode.has_reward and (episode.answer.finished or config.policy.cut != "mask")


def _weigh(shards: Sequence[Portion], config: RLVRConfig) -> None:
    """What labels and pairs count in the loss of their update."""
    counted = [episode for shard in shards for episode in shard.episodes if episode.has_reward]
    lengths = [episode.num_labels for episode in counted]
    for episode, weight in zip(
        counted, label_weights(lengths, config.policy.normalise, config.rollout.max_tokens), strict=True
    ):
        episode.weight = weight
    better = [shard.episodes[place].num_labels for shard in shards for place, _ in shard.pairs]
    for shard in shards:
        if better:
            shard.pair_weight, shard.token_weight = 1 / len(better), 1 / sum(better)
