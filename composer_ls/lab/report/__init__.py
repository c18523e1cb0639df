"""From run folders to answers: comparing runs, and pages that show them."""
