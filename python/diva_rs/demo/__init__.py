"""The main job from end to end, on two cores in two to four minutes.

`run` post-trains the microworld's tiny CLIP and measures what it gained and lost; `photographs` does the same
work on real photographs with models of random weights, which shows the machinery and no gain.
"""

from diva_rs.demo import photographs
from diva_rs.demo.microworld import Demo, run

__all__ = ["Demo", "photographs", "run"]
