"""Loops over time, neurons and events, written once and compiled for each kind of cell."""

from . import events as events
from .neurons import Neurons as Neurons
from .neurons import neurons_of as neurons_of
from .scalar import NotTranslatable as NotTranslatable
