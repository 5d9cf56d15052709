"""What `gradflow.onnx` offers; it is imported when it is used first."""

from gradflow.onnx.exporting import export

__all__ = ["export"]
