"""`mbsd plan`: memory, FLOPs, communication and days of a training run on named GPUs, predicted without one."""
