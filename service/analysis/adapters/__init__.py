"""Adapters: a context as changed weights, exact for one query or fitted to many."""

from service.analysis.adapters.made import LoadedAdapter, MadeAdapter, adapter_id, adapter_key
from service.analysis.adapters.static import plan_static_adapter
from service.analysis.adapters.token import plan_token_adapter

__all__ = [
    "LoadedAdapter",
    "MadeAdapter",
    "adapter_id",
    "adapter_key",
    "plan_static_adapter",
    "plan_token_adapter",
]
