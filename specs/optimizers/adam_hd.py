from generator.language import *
from specs.optimizers.adam import adam

adam_hd = hypergradient(adam, wrt="lr")
