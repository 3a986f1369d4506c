"""The main job from end to end, on two cores in two to four minutes.

`run` post-trains the microworld's tiny CLIP and measures what it gained and lost.
"""

from diva_rs.microworld.demo.run import Demo, run

__all__ = ["Demo", "run"]
