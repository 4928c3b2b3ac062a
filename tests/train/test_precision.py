"""What matrix products run in, by recipe, device and CPU."""

import pytest
import torch

from csrm_guard_train.engine import product_dtype
from csrm_guard_train.recipe import Recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LOW = Recipe(backbone="tiny", precision="bfloat16")


def on(monkeypatch: pytest.MonkeyPatch, capability: str) -> torch.dtype:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    return product_dtype(LOW, CPU)


def test_a_cpu_that_emulates_bfloat16_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch):
    assert on(monkeypatch, "AVX2") == torch.float32


def test_a_cpu_with_avx512_multiplies_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    assert on(monkeypatch, "AVX512") == torch.bfloat16


def test_a_gpu_multiplies_in_bfloat16_whatever_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert product_dtype(LOW, GPU) == torch.bfloat16


def test_a_float32_recipe_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert product_dtype(Recipe(backbone="tiny", precision="float32"), CPU) == torch.float32
