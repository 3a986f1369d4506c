"""Several ranks: one process per device, started by torchrun, accelerate launch or by hand.

`session` joins the ranks, `Ranks` exchanges facts and tensors, `weighted_sums` adds up gradients.
"""

from diva_rs._base.world import alone, launched, rank_and_world
from diva_rs.distributed.ranks import Ranks, weighted_sums
from diva_rs.distributed.session import session

__all__ = ["Ranks", "alone", "launched", "rank_and_world", "session", "weighted_sums"]
