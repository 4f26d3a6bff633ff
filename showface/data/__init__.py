"""Images, masks and the training set."""

from showface.data.augmentation import Augmentation
from showface.data.components import COMPONENTS, component_hole
from showface.data.faces import FaceDataset, FaceSource, LostFacesError
from showface.data.find import find_images, find_masks
from showface.data.folders import FaceFolder, list_faces
from showface.data.hole import HoleReport, Marks, alpha_hole, describe_hole, grow_hole, painted_hole
from showface.data.images import (
    UnreadableImageError,
    image_to_tensor,
    mask_to_tensor,
    read_image,
    read_mask,
    resize_and_crop,
    tensor_to_image,
)
from showface.data.masks import random_hole
from showface.data.photo import Photo, encode_photo, read_photo, save_photo
from showface.data.regions import ALIGNED_POINTS, NO_LABEL, REGIONS, read_labels
from showface.data.sampler import EpochSampler
from showface.data.shards import FaceShards, write_shards

__all__ = [
    "ALIGNED_POINTS",
    "COMPONENTS",
    "NO_LABEL",
    "REGIONS",
    "Augmentation",
    "EpochSampler",
    "FaceDataset",
    "FaceFolder",
    "FaceShards",
    "FaceSource",
    "HoleReport",
    "LostFacesError",
    "Marks",
    "Photo",
    "UnreadableImageError",
    "alpha_hole",
    "component_hole",
    "describe_hole",
    "encode_photo",
    "find_images",
    "find_masks",
    "grow_hole",
    "image_to_tensor",
    "list_faces",
    "mask_to_tensor",
    "painted_hole",
    "random_hole",
    "read_image",
    "read_labels",
    "read_mask",
    "read_photo",
    "resize_and_crop",
    "save_photo",
    "tensor_to_image",
    "write_shards",
]
