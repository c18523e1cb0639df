from __future__ import annotations
def ready(logits): return False
