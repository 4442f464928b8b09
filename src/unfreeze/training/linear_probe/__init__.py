"""Strategy 'probe': linear heads on the features of a frozen backbone."""
