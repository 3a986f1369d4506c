"""Several ranks: one process per device, started by torchrun, accelerate launch or by hand.

`session` joins them and `Ranks` is how they talk; ``watch`` notices one that fails, ``start`` makes them
begin equal, ``split`` gives each its own images, ``reduce`` adds up the gradients, and ``together`` takes the
steps.
"""

from diva_rs._base.world import alone, launched, rank_and_world
from diva_rs.distributed.ranks import Ranks
from diva_rs.distributed.session import session

__all__ = ["Ranks", "alone", "launched", "rank_and_world", "session"]
