"""The student: adapters that make the vision part of a CLIP model a Tower, whatever library it comes from."""

from diva_rs.clip.adapter import adapt
from diva_rs.clip.open_clip import check_quick_gelu
from diva_rs.clip.tower import Tower
from diva_rs.clip.wrappers import unwrap

__all__ = ["Tower", "adapt", "check_quick_gelu", "unwrap"]
