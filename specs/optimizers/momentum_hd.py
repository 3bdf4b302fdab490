from generator.language import *
from specs.optimizers.momentum import momentum

momentum_hd = hypergradient(momentum, wrt="lr")
