"""Backbones. A model calls `tap(site, x, ctx)` at named sites and knows no method."""
