"""Training runs as jobs of Slurm: submitting them, and what a job does on its first node."""
