"""Finding faces, and cutting them out of a photo as the networks were trained to see them."""

from showface.faces.alignment import TEMPLATE, Alignment, Crops, Patch, crop_faces, set_back, similarity
from showface.faces.detector import Face, FaceDetector, default_detector, find_faces

__all__ = [
    "TEMPLATE",
    "Alignment",
    "Crops",
    "Face",
    "FaceDetector",
    "Patch",
    "crop_faces",
    "default_detector",
    "find_faces",
    "set_back",
    "similarity",
]
