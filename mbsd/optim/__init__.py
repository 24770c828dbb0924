"""LAMB, with one trust ratio per tensor also where ZeRO has flattened and divided the tensors."""
