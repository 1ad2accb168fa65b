"""Loops over time, neurons and events, written once and compiled for each kind of cell."""

from .arguments import Cotangents as Cotangents
from .arguments import Drive as Drive
from .arguments import Weights as Weights
from .delays import UnderWay as UnderWay
from .events import Events as Events
from .events import Rows as Rows
from .events import event_currents as event_currents
from .events import event_product as event_product
from .neurons import Neurons as Neurons
from .neurons import neurons_of as neurons_of
from .readout import faded_spikes as faded_spikes
from .readout import readout_drive as readout_drive
from .readout import readout_gradient as readout_gradient
from .scalar import NotTranslatable as NotTranslatable
from .sparse import Wiring as Wiring
from .sparse import wiring as wiring
from .tiles import Tiles as Tiles
from .tiles import tiles_of as tiles_of
from .traces import Leads as Leads
from .traces import Traces as Traces
from .traces import event_traces as event_traces
from .traces import lead_traces as lead_traces
