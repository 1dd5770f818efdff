"""Where a bundle runs, as tables: targets, boards, operators, and what this machine has."""
