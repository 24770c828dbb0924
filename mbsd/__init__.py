"""mbsd: pre-training of multimodal product models with self-distillation (MBSD, WSDM'23)."""

__version__ = "0.1.0"
