from generator.language import *
from specs.optimizers.momentum import momentum

momentum_hd_beta = hypergradient(momentum, wrt="beta")
