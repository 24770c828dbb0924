"""The models that MBSD is compared with, over the same batches, heads and stages (SPEC 8)."""
