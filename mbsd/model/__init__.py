"""The network: attention over packed sequences, patchify, backbone and heads."""
