"""Run config + DeepSpeed's JSON -> a training run."""
