"""Adapters between csrm-guard and the outside world; each lives in a module of its own."""
