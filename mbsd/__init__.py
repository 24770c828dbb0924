"""mbsd: pre-training of multimodal product models with self-distillation (MBSD, WSDM'23).

`import mbsd` makes the model known to transformers' Auto classes. It imports neither torch nor transformers for that:
the model is registered when transformers is imported, be it before or after.
"""

import sys
from types import ModuleType

from wrapt import when_imported

__version__ = "0.1.0"


@when_imported("transformers")
def _register_model(transformers: ModuleType) -> None:
    if "mbsd.model" not in sys.modules:  # else it is on its way: the model's own modules import transformers
        import mbsd.model.mbsd  # noqa: F401
