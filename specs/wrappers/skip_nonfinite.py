from generator.language import *

bad, skipped = names("bad skipped")


@wrapper
def skip_nonfinite():
    """Leave out steps in which a gradient is infinite or NaN, of whichever parameter.

    Source: the dynamic loss scaling of Micikevicius et al., Mixed Precision Training, ICLR 2018,
        section 3.2, which leaves out such steps. arXiv:1710.03740
    Note: parameters, states and the count of steps stay as they were; `skipped` counts what was left
        out. Nothing waits for the decision on the host.
    Note: what is inside sees no bad gradient, so put it last: adamw > skip_nonfinite.
    """
    skipped[0] = 0
    bad[t] = global_sum(where(finite(g[t]), 0, 1))
    with when(equal(bad[t], 0)):
        inner = update(g[t])
        theta[t] = inner
    with otherwise():
        skipped[t] = skipped[t-1] + 1
        theta[t] = theta[t-1]
