"""Objects as lists of shapes in unit coordinates, and the looks and styles that render them."""
