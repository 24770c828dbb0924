"""The files of a run folder by which others see how its run stands, for those that import no torch."""

DONE = "DONE"  # finished
PREEMPTED = "PREEMPTED"  # left early and well, and saved
LAST_SAVED = "last_saved"  # names the newest checkpoint; where it exists and no checkpoint does, checkpoints were lost
