"""Post-trained models for other code: as files of open_clip, of transformers (LLaVA) and of OpenAI's `clip`.

Weights are renamed and rearranged, never computed with, so that they come back to the bit; what a layout
cannot express is an error that names the key or the setting.
"""

from diva_rs.clip.export.files import to_open_clip, to_openai
from diva_rs.clip.export.folder import to_transformers

__all__ = ["to_open_clip", "to_openai", "to_transformers"]
