"""What a person types and looks at: verbs, plots, grids, the report and the live table."""
