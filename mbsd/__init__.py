"""mbsd: pre-training of multimodal product models with self-distillation (MBSD, WSDM'23).

`import mbsd` makes the models known to transformers' Auto classes. It imports neither torch nor transformers for that:
`mbsd.model.families`, which has the table, is imported when transformers or any module of `mbsd.model` is, be it before
or after.
"""

import sys
from importlib import import_module
from types import ModuleType

from wrapt import when_imported

__version__ = "0.1.0"


@when_imported("transformers")
def _with_transformers(transformers: ModuleType) -> None:
    if "mbsd.model" not in sys.modules:
        import_module("mbsd.model.families")
