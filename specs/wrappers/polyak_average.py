from generator.language import *

average = names("average")


@wrapper
def polyak_average(decay: Decay = 0.999):
    """Evaluate with an exponential average of the parameters.

    Source: Polyak & Juditsky, SIAM J. Control and Optimization 30(4), 1992, with exponential
        weights as in Tarvainen & Valpola, NeurIPS 2017. arXiv:1703.01780
    Note: the average starts at theta[0] and is not corrected for it. Reinforcement learning writes
        tau for 1 - decay.

    Args:
        decay: part of the average that a step keeps.
    """
    average[0] = theta[0]
    inner = update(g[t])
    average[t] = decay * average[t-1] + (1 - decay) * inner
    theta[t] = inner
    evaluate(average[t])
