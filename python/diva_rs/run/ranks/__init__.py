"""How several ranks run one loop together."""
