"""Fill a folder or tar files of photos, a few at a time."""

from showface.batch.folder import BatchResult, FindHole, MaskFolder, fill_folder, keep_apart
from showface.batch.tars import FindSampleHole, TarsResult, are_tars, fill_tars
from showface.batch.work import Fill, Filled, Shard

__all__ = [
    "BatchResult",
    "Fill",
    "Filled",
    "FindHole",
    "FindSampleHole",
    "MaskFolder",
    "Shard",
    "TarsResult",
    "are_tars",
    "fill_folder",
    "fill_tars",
    "keep_apart",
]
