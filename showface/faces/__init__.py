"""Finding faces in a photo."""

from showface.faces.detector import Face, FaceDetector, default_detector, find_faces

__all__ = ["Face", "FaceDetector", "default_detector", "find_faces"]
