"""De-identification: find every face, put synthetic people in their place, and measure whether anybody is left."""
