"""Optimizers: each defines theta[t] from theta[t-1] and the gradient g[t]."""
