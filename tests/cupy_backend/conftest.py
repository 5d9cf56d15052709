"""Makes the backends' packages importable also from a checkout that is not installed, as `gradflow.device` does."""

from __future__ import annotations

from gradflow.device import backend_class

backend_class("cpu")
backend_class("cuda")
