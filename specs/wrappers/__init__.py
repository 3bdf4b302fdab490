"""Wrappers: each stands around an optimizer, whose new parameters are `inner = update(g[t])`."""
