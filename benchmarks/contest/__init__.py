"""Contenders trained and probed by one protocol: what the claims of docs/evidence.md are asked of."""
