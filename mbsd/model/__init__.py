"""The network: attention over packed sequences, patchify, backbone and heads.

Whichever of its modules is imported first, the table of families is complete then and known to transformers.
"""

import mbsd.model.families  # noqa: F401
