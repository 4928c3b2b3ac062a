"""Turn a checkpoint into a model directory and prove that both score alike."""

from importlib.util import find_spec

if find_spec("onnx") is None or find_spec("onnxruntime") is None:
    raise ModuleNotFoundError('csrm_guard_export needs onnx: pip install "csrm-guard[export]"')
