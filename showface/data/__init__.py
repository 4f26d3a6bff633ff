"""Images, masks and the training set."""

from showface.data.faces import REGIONS, EpochSampler, FaceFolder, find_labels
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

__all__ = [
    "REGIONS",
    "EpochSampler",
    "FaceFolder",
    "UnreadableImageError",
    "find_images",
    "find_labels",
    "image_to_tensor",
    "mask_to_tensor",
    "random_hole",
    "read_image",
    "read_mask",
    "resize_and_crop",
    "tensor_to_image",
]
