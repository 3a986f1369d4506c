"""What loaders may yield, pixel conventions, readers for folders and shards, and the latent cache."""

from diva_rs.data.accounting import Accounting
from diva_rs.data.augment import Views, center_transform, keyed, train_transform, unit_tensor
from diva_rs.data.batches import Batch, read_batch
from diva_rs.data.checks import PixelGuard, check_finite, check_images, check_shape
from diva_rs.data.decode import BadImage
from diva_rs.data.folder import ImageFolder, folder_loader
from diva_rs.data.latent_cache import LatentCache
from diva_rs.data.loader import ImageLoader, KeyedSampler, collate
from diva_rs.data.pixels import clip_input, to_unit, vae_input
from diva_rs.data.shards import ImageShards, shard_loader

__all__ = [
    "Accounting",
    "BadImage",
    "Batch",
    "ImageFolder",
    "ImageLoader",
    "ImageShards",
    "KeyedSampler",
    "LatentCache",
    "PixelGuard",
    "Views",
    "center_transform",
    "check_finite",
    "check_images",
    "check_shape",
    "clip_input",
    "collate",
    "folder_loader",
    "keyed",
    "read_batch",
    "shard_loader",
    "to_unit",
    "train_transform",
    "unit_tensor",
    "vae_input",
]
