"""Backbones, their weights, and how a frozen part runs fastest on this machine."""
