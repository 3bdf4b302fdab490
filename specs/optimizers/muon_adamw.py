from generator.language import *
from specs.optimizers.adamw import adamw
from specs.optimizers.muon import muon

muon_adamw = route(muon, adamw)
