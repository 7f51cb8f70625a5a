"""The initial network: the rows RandomCNN and Initial (FC) of the paper's tables."""

from src.methods.base import Method


class Untrained(Method):
    """Learns nothing, whatever `trainer.max_epochs` says."""

    trains = False
