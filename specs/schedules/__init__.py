"""Schedules: each defines lr[n], the learning rate after n finished steps."""
