"""Transforms: each defines u[t], which takes the place of the gradient or update g[t]."""
