"""The mask head's training step when the frozen detector's outputs are kept from an earlier epoch.

The peer is that of `frozen_step`. Ours runs the detector in its first step alone, which is not timed.
"""

from benchmarks.frozen_step import BENCHMARK as FROZEN_STEP
from benchmarks.frozen_step import our_step
from benchmarks.measuring import Benchmark, Options, Step, main
from construction_panoptic.config.training import AugmentationSettings, MaskHeadSettings
from construction_panoptic.training.tasks.feature_cache import open_cache


def ours(options: Options) -> Step:
    still = AugmentationSettings(flip=0, crop=0, sides=(800,))
    settings = MaskHeadSettings(cache="memory", augmentation=still)
    return our_step(options, settings, open_cache(settings, {}))


BENCHMARK = Benchmark(
    name="frozen_step_cached",
    workload=f"{FROZEN_STEP.workload}, detector outputs kept in memory",
    peer=FROZEN_STEP.peer,
    sides={"peer": FROZEN_STEP.sides["peer"], "ours": ours},
    published=FROZEN_STEP.published,
)

if __name__ == "__main__":
    main(BENCHMARK)
