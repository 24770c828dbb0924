"""What a run will take: memory, FLOPs, communication and days of a config on a named GPU, before a GPU is asked for."""
