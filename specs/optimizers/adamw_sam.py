from generator.language import *
from specs.optimizers.adamw import adamw
from specs.wrappers.sam import sam

adamw_sam = chain(adamw, sam, name="adamw_sam", class_name="AdamWSAM")
