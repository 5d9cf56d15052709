"""Training by several processes, on one machine or more: communicators, and the reduction of gradients."""

from gradflow.distributed.communicator import Communicator, Pending
from gradflow.distributed.world import world

__all__ = ["Communicator", "Pending", "world"]
