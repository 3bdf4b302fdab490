from generator.language import *
from specs.optimizers.lion import lion

lion_hd = hypergradient(lion, wrt="lr")
