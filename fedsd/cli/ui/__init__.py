"""`fedsd ui`: a page on the device's own machine that draws with a run's adapters, begun on a server or not."""
