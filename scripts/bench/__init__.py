"""How fast each stage is, beside the reference's way of working and beside what the machine allows."""
