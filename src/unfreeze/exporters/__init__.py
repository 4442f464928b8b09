"""Export of a run to ONNX, OpenVINO or TorchScript, verified against the run."""
