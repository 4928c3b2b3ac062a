"""Data, augmentation, model, training loop, calibration and evaluation of the CSRM."""

from importlib.util import find_spec

if find_spec("torch") is None or find_spec("transformers") is None:
    raise ModuleNotFoundError('csrm_guard_train needs torch: pip install "csrm-guard[train]"')
