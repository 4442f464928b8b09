"""Backbones, their weights and stages, and the engines that run a frozen network."""
