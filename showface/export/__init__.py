"""Networks as files for other programs: ONNX (extra `export`), `torch.export` and AOTInductor."""

from showface.export.files import export_faces, export_model, parity_table
from showface.export.onnx import onnx_model

__all__ = ["export_faces", "export_model", "onnx_model", "parity_table"]
