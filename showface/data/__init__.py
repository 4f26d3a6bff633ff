"""Images, masks and the training set."""

from showface.data.augmentation import Augmentation
from showface.data.faces import FaceDataset, FaceSource, LostFacesError
from showface.data.folders import FaceFolder, find_labels
from showface.data.images import (
    UnreadableImageError,
    find_images,
    image_to_tensor,
    mask_to_tensor,
    read_image,
    read_mask,
    resize_and_crop,
    tensor_to_image,
)
from showface.data.masks import random_hole
from showface.data.regions import ALIGNED_POINTS, NO_LABEL, REGIONS, read_labels
from showface.data.sampler import EpochSampler
from showface.data.shards import FaceShards, write_shards

__all__ = [
    "ALIGNED_POINTS",
    "NO_LABEL",
    "REGIONS",
    "Augmentation",
    "EpochSampler",
    "FaceDataset",
    "FaceFolder",
    "FaceShards",
    "FaceSource",
    "LostFacesError",
    "UnreadableImageError",
    "find_images",
    "find_labels",
    "image_to_tensor",
    "mask_to_tensor",
    "random_hole",
    "read_image",
    "read_labels",
    "read_mask",
    "resize_and_crop",
    "tensor_to_image",
    "write_shards",
]
