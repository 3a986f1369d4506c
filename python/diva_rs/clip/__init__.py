"""The student: adapters that make the vision part of a CLIP model a Tower, for any library's model."""

from diva_rs.clip.adapter import adapt
from diva_rs.clip.facts import check_quick_gelu, facts
from diva_rs.clip.tower import Tower
from diva_rs.clip.wrappers import unwrap

__all__ = ["Tower", "adapt", "check_quick_gelu", "facts", "unwrap"]
