"""What users see: progress, tables, demo, doctor, validation."""
