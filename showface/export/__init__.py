"""Networks as files for other programs: ONNX (extra `export`), `torch.export` and AOTInductor."""

from showface.export.files import export_faces, export_model, parity_table

__all__ = ["export_faces", "export_model", "parity_table"]
