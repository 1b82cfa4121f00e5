"""What must not lose a row, done often: each module holds what one kind of misfortune does to a store."""
