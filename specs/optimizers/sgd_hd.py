from generator.language import *
from specs.optimizers.sgd import sgd

sgd_hd = hypergradient(sgd, wrt="lr")
