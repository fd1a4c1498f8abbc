"""What `coke cluster` and `coke assign` do."""
