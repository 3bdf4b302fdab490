from generator.language import *
from specs.optimizers.adamw import adamw

adamw_hd = hypergradient(adamw, wrt="lr")
